"""A trial: a project with results of an earlier run, in which a fault happens during the next one."""

import hashlib
import json
import signal
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from subprocess import CompletedProcess, Popen
from typing import Any, NamedTuple
from urllib.parse import unquote

import yaml
from mlflow import MlflowClient
from mlflow.entities import Run

from pipeline.core.config import PackagedDataset
from pipeline.core.paths import RAW_FILES
from pipeline.stages.fetch.packaged import packaged_files
from tests.conftest import CONF, Project, clone, kill_all
from tests.faults.moments import KILLED, VARIABLE

EPOCHS = 4
TEST_IMAGES = 400  # another number than in the dataset digits, so that the files differ
RESULTS = ("reports/errors.csv", "models/history.csv", "models/model.keras", "data/prepared/train.npz")
FILE_NAMES = {role: path.name for role, path in RAW_FILES.items()}


class Results(NamedTuple):
    """What an undisturbed run gives."""

    metrics: dict[str, Any]
    digests: dict[str, str]


def results(project: Project) -> Results:
    """The final metrics, without times, and the digests of the files that are the same in every run."""
    metrics = {name: value for name, value in project.report("metrics.json").items() if name != "fit_s"}
    digests = {path: hashlib.md5((project.root / path).read_bytes()).hexdigest() for path in RESULTS}
    return Results(metrics, digests)


def tiny_dataset() -> tuple[dict[str, Any], dict[str, bytes]]:
    """A dataset of four files like MNIST's, made from scikit-learn's digits: its configuration, and the files."""
    packaged = yaml.safe_load((CONF / "dataset" / "digits.yaml").read_text(encoding="utf-8"))
    dataset = PackagedDataset.model_validate(packaged | {"test_count": TEST_IMAGES})
    contents = {FILE_NAMES[role]: content for role, content in packaged_files(dataset).items()}
    files = {
        role: {"name": name, "size": len(contents[name]), "sha256": hashlib.sha256(contents[name]).hexdigest()}
        for role, name in FILE_NAMES.items()
    }
    about = packaged["about"]
    mirrors = ["http://127.0.0.1:9/"]  # nothing listens there
    configuration = {"name": "tiny", "source": "idx", "classes": 10, "files": files, "mirrors": mirrors, "about": about}
    return configuration, contents


def make_earlier(folder: Path) -> None:
    """Make a project that has run once on digits, and whose next run also downloads, prepares and trains.

    The files of the next run's dataset are in the folder `mirror` beside the project.
    """
    project = clone(folder)
    configuration, contents = tiny_dataset()
    (folder / "conf" / "dataset" / "tiny.yaml").write_text(yaml.safe_dump(configuration), encoding="utf-8")
    mirror = folder.parent / "mirror"
    mirror.mkdir(exist_ok=True)
    for name, content in contents.items():
        (mirror / name).write_bytes(content)
    project.params(**settings(dataset="digits", seed=1))
    project.succeed("dvc", "repro")
    project.commit()
    project.params(**settings())


def settings(**values: Any) -> dict[str, Any]:
    """The params.yaml of the runs in which faults happen, or of others."""
    training = {"epochs": EPOCHS, "deterministic": True}
    return {"recipe": "smoke", "dataset": "tiny", "seed": 2, "training": training} | values


def client_of(project: Project) -> MlflowClient:
    """MLflow's client for the project's own database."""
    return MlflowClient(f"sqlite:///{project.root}/mlflow.db")


def runs_of(client: MlflowClient) -> list[Run]:
    """All runs of a store, newest first."""
    return list(client.search_runs([each.experiment_id for each in client.search_experiments()], max_results=1000))


def run_killed(project: Project, command: Sequence[str], moment: str, **settings: str) -> CompletedProcess[str]:
    """Run a command of which a process is killed at a moment: its module, and the number of its file operation."""
    mark = project.root.parent / "mark"
    mark.unlink(missing_ok=True)
    result = project.run(*command, **settings, **{VARIABLE: f"{moment} {mark}"})
    assert mark.exists(), f"{moment} was not reached: {result.stdout}"
    assert mark.read_text(encoding="utf-8").replace(KILLED, "") == ""  # evaluate may start a second such process
    return result


def read_until(process: "Popen[str]", what: str, count: int = 1) -> str:
    """Read the output of a process up to the line number `count` that contains `what`."""
    assert process.stdout
    output = ""
    for line in process.stdout:
        output += line
        count -= what in line
        if not count:
            return output
    raise AssertionError(f"it ended before it printed {what!r}: {output}")


def killed(process: "Popen[str]") -> None:
    """Kill a running process and its children; it must not have ended before."""
    kill_all(process)
    assert process.returncode == -signal.SIGKILL, "it ended before it was killed"


def leftovers(root: Path) -> list[str]:
    """Files and folders that no finished command should leave behind."""
    hidden = [*(root / ".resume").glob("*"), *(root / ".unsent").glob("*")]
    found = [*hidden, *root.rglob(".writing-*"), *root.rglob(".artifact.uploading.*")]
    found += [path for path in root.rglob("*.tmp") if ".dvc" not in path.parts]
    return sorted(str(path.relative_to(root)) for path in found if ".git" not in path.parts)


def damaged_cache_files(root: Path) -> list[str]:
    """Files of DVC's cache whose content is not that of their name."""
    cache = root / ".dvc" / "cache" / "files" / "md5"
    found = []
    for path in cache.glob("[0-9a-f][0-9a-f]/*"):
        named = (path.parent.name + path.name).removesuffix(".dir")
        if len(named) == 32 and hashlib.md5(path.read_bytes()).hexdigest() != named:
            found.append(str(path.relative_to(root)))
    return found


def absent_cache_files(root: Path, lock: dict[str, Any]) -> Iterator[str]:
    """Cached outputs in a dvc.lock that are not in DVC's cache."""
    declared = yaml.safe_load((root / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    for name, stage in lock["stages"].items():
        uncached = {
            path
            for kind in ("outs", "metrics", "plots")
            for entry in declared[name].get(kind, [])
            if isinstance(entry, dict)
            for path, options in entry.items()
            if options.get("cache") is False
        }
        for out in stage["outs"]:
            if out["path"] not in uncached:
                digest = out["md5"]
                if not (root / ".dvc" / "cache" / "files" / "md5" / digest[:2] / digest[2:]).exists():
                    yield out["path"]


def check_earlier(project: Project, client: MlflowClient, lock: dict[str, Any], before: dict[str, Any]) -> None:
    """Check that the earlier MLflow run and the earlier outputs in DVC's cache are readable."""
    assert damaged_cache_files(project.root) == []
    assert list(absent_cache_files(project.root, lock)) == []
    for run_id, metrics in before.items():
        run = client.get_run(run_id)
        assert (run.info.status, run.data.metrics) == ("FINISHED", metrics)
        check_artifacts(client, run)


def check_artifacts(client: MlflowClient, run: Run) -> None:
    """Check that a run has its pictures, its reports and exactly one model, whose files are there."""
    for folder, name in (("plots", "plots/curves.png"), ("reports", "reports/errors.csv"), ("", "model_card.md")):
        assert name in {file.path for file in client.list_artifacts(run.info.run_id, folder or None)}
    assert not [file.path for file in client.list_artifacts(run.info.run_id) if file.path.startswith(".")]
    models = client.search_logged_models([run.info.experiment_id], f"source_run_id = '{run.info.run_id}'")
    assert [str(model.status) for model in models] == ["READY"], "the model is logged once"
    assert [output.model_id for output in run.outputs.model_outputs] == [models[0].model_id]
    files = Path(unquote(models[0].artifact_location.removeprefix("file://")))
    if files.is_absolute() and not models[0].artifact_location.startswith("mlflow-artifacts"):
        digest = hashlib.md5((files / "data" / "model.keras").read_bytes()).hexdigest()
        assert digest == run.data.tags["dvc.model"]


def check_epochs(client: MlflowClient, run_id: str) -> None:
    """Check that a run is finished and has each epoch once."""
    assert client.get_run(run_id).info.status == "FINISHED"
    for name in ("train/loss", "train/accuracy", "val/loss"):
        steps = sorted(point.step for point in client.get_metric_history(run_id, name))
        assert steps == list(range(1, EPOCHS + 1)), f"{name}: each epoch once"


def check_new_run(client: MlflowClient, run_id: str, metrics: dict[str, Any]) -> None:
    """Check that the run of the disturbed training has each epoch once, the final metrics, and one model."""
    check_epochs(client, run_id)
    run = client.get_run(run_id)
    assert run.data.metrics["test/accuracy"] == metrics["accuracy"]
    assert run.data.metrics["test/errors"] == metrics["errors"]
    assert run.data.params["training.epochs"] == str(EPOCHS)
    check_artifacts(client, run)


def check_database(root: Path) -> None:
    """Check that SQLite finds no damage in the project's database."""
    with closing(sqlite3.connect(root / "mlflow.db")) as database:
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


class Trial:
    """A copy of the earlier project, and what an undisturbed next run gives."""

    def __init__(self, project: Project, expected: Results, mirror: Path) -> None:
        self.project, self.expected, self.repaired = project, expected, ""
        self.restarted = False  # whether the training started again, because of a damaged checkpoint
        self.root = project.root
        self.settings = {"DATASET_MIRROR": str(mirror)}
        self.lock = yaml.safe_load((self.root / "dvc.lock").read_text(encoding="utf-8"))
        self.before = {run.info.run_id: run.data.metrics for run in runs_of(client_of(project))}

    def kill(self, moment: str) -> CompletedProcess[str]:
        """Run `dvc repro`, of which a process is killed."""
        return run_killed(self.project, ("dvc", "repro"), moment, **self.settings)

    def recover(self, **settings: str) -> str:
        """Run `dvc repro` after the fault, check that nothing is lost, and return the output."""
        result = self.project.run("dvc", "repro", **self.settings | settings)
        remedy = self.repair(result.stdout) if result.returncode else ""
        output = self.project.succeed("dvc", "repro", **self.settings | settings) if remedy else result.stdout
        assert remedy or result.returncode == 0, output
        self.restarted = "training starts without it" in output
        self.send(**settings)
        self.check(**settings)
        self.repaired = remedy
        return output

    def repair(self, output: str) -> str:
        """Remove what a killed DVC left half-written, as docs/troubleshooting.md says."""
        if ".dvc/tmp/rwlock" in output:
            (self.root / ".dvc" / "tmp" / "rwlock").unlink()
            return "; after `rm .dvc/tmp/rwlock`, which DVC left half-written"
        if "dvc.lock' validation failed" in output:
            self.project.succeed("git", "checkout", "dvc.lock")
            return "; after `git checkout dvc.lock`, which DVC left half-written"
        if "join() argument must be str" in output:
            self.project.succeed("find", ".dvc/cache/runs", "-type", "d", "-empty", "-delete")
            return "; after `find .dvc/cache/runs -type d -empty -delete`, which DVC left empty"
        return ""

    def send(self, **settings: str) -> bool:
        """Send the records that the store did not accept. Returns whether there were any."""
        kept = [path for path in (self.root / ".unsent").glob("*/") if path.name != "refused"]
        if kept:
            sent = self.project.succeed("python", "-m", "pipeline.commands.runs", "send", **settings)
            assert "refuses" not in sent, sent
        return bool(kept)

    def check(self, **settings: str) -> None:
        """Check that everything is as after an undisturbed run."""
        project = self.project
        assert results(project) == self.expected
        client = MlflowClient(settings["MLFLOW_TRACKING_URI"]) if "MLFLOW_TRACKING_URI" in settings else None
        check_earlier(project, client_of(project), self.lock, self.before)
        run = json.loads((self.root / "models" / "run.json").read_text(encoding="utf-8"))
        check_new_run(client or client_of(project), run["run_id"], self.expected.metrics)
        if client is None:
            known = {*self.before, run["run_id"]}
            others = [each.info.status for each in runs_of(client_of(project)) if each.info.run_id not in known]
            assert others == ["FAILED"] * self.restarted, "one run for each training"
        assert project.report("evaluation.json")["mlflow"]["run_id"] == run["run_id"]
        check_database(self.root)
        assert "up to date" in project.succeed("dvc", "status", **self.settings | settings)
        assert leftovers(self.root) == []

    def fail(self, *command: str, **settings: str) -> str:
        """Run a command that the fault makes fail with a message, and return its output."""
        return self.project.fail(*command, **self.settings | settings)
