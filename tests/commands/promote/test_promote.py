"""Promotion end to end: the command in clones, with better and worse models and a real registry."""

import csv
import re
import shutil
from pathlib import Path

import mlflow
import numpy as np
import pytest
import yaml
from mlflow import MlflowClient

from pipeline.core.dataset import load_split
from pipeline.registry.model_files import digest, download
from tests.commands.promote.command import NAME, PROMOTE, aliases, promote, refusal, take, versions
from tests.conftest import PATH, Project, Start, copy, free_port, serve_store

INTERRUPTED_AT = """
import runpy, subprocess, sys
from mlflow import MlflowClient

method, turn, command, *sys.argv[1:] = sys.argv[1:]
real, calls = getattr(MlflowClient, method), []

def interrupted(*arguments, **named):
    calls.append(method)
    if len(calls) == int(turn):
        subprocess.run(command, shell=True, check=True)
    return real(*arguments, **named)

setattr(MlflowClient, method, interrupted)
runpy.run_module("pipeline.commands.promote", run_name="__main__")
"""


# Promotions.


def test_the_first_promotion_registers_the_committed_model(
    candidates_once: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = f"sqlite:///{candidates_once.root}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    client, metrics = MlflowClient(uri), candidates_once.report("evaluation.json")
    commit = candidates_once.succeed("git", "rev-parse", "main").strip()
    lock = yaml.safe_load(candidates_once.succeed("git", "show", "main:dvc.lock"))["stages"]
    hashes = {out["path"]: out["md5"] for out in lock["train"]["outs"]}
    assert aliases(client) == {"champion": 1}
    version = client.get_model_version_by_alias(NAME, "champion")
    assert version.run_id == metrics["mlflow"]["run_id"]
    assert version.tags["git.commit"] == commit
    assert version.tags["dvc.model"] == hashes["models/model.keras"]
    assert version.tags["served.sha256"] == digest(download(version.source, str(tmp_path)))
    assert float(version.tags["test.accuracy"]) == metrics["test"]["accuracy"] > 0.8
    assert (version.tags["recipe"], version.tags["gate.verdict"]) == ("smoke", "pass")
    assert version.tags["gate.baseline"] == f"HEAD at {commit[:7]}"
    assert "mlflow models serve -m models:/digits@champion --env-manager local" in version.description
    log = (candidates_once.root / "promote.log").read_text(encoding="utf-8")
    assert "digits version 1 is now the champion" in log
    assert f"pass, against HEAD at {commit[:7]}" in log
    assert (
        "View it at http://127.0.0.1:5000/#/models/digits/versions/1?workflowType=machine_learning "
        "(start the UI with `make ui`)" in log
    )


def test_the_champion_predicts_as_reported(candidates_once: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{candidates_once.root}/mlflow.db")
    test = load_split(candidates_once.root / "data" / "prepared" / "test.npz")
    champion = mlflow.pyfunc.load_model(f"models:/{NAME}@champion")
    wrong = np.flatnonzero(np.asarray(champion.predict(test.images)).argmax(axis=1) != test.labels)
    with (candidates_once.root / "reports" / "errors.csv").open(encoding="utf-8") as file:
        assert wrong.tolist() == [int(row["index"]) for row in csv.DictReader(file)]


@pytest.mark.long
def test_a_better_model_becomes_champion_and_the_two_can_be_swapped(candidates: Project, client: MlflowClient) -> None:
    before = candidates.succeed("git", "rev-parse", "main").strip()
    assert "digits version 1 is already the champion: nothing to do" in promote(candidates)
    assert aliases(client) == {"champion": 1}
    take(candidates, "better")
    (candidates.root / "tmp").mkdir()
    output = promote(candidates, PATH=PATH, TMPDIR=str(candidates.root / "tmp"))  # in a separate interpreter
    assert not [*(candidates.root / "tmp").iterdir()], "neither TensorFlow's nor ONNX Runtime's"
    assert "digits version 2 is now the champion" in output
    assert f"pass, against champion (version 1) at {before[:7]}" in output
    assert aliases(client) == {"champion": 2, "previous": 1}
    assert "digits version 1 is the champion again" in promote(candidates, "--rollback")
    assert aliases(client) == {"champion": 1, "previous": 2}
    assert "digits version 2 is now the champion" in promote(candidates), (
        "an already registered model: only the aliases move"
    )
    assert aliases(client) == {"champion": 2, "previous": 1}
    for swapped in ({"champion": 1, "previous": 2}, {"champion": 2, "previous": 1}):
        promote(candidates, "--rollback")
        assert aliases(client) == swapped
    assert versions(client) == [1, 2]


def test_a_champion_with_changed_files_is_registered_again(candidates: Project, client: MlflowClient) -> None:
    take(candidates, "better")
    promote(candidates)
    place = client.get_logged_model(client.get_model_version(NAME, "2").source.removeprefix("models:/"))
    (network,) = Path(place.artifact_location.removeprefix("file://")).rglob("model.keras")
    network.write_bytes(b"edited")
    assert "digits version 3 is now the champion" in promote(candidates)
    assert aliases(client) == {"champion": 3, "previous": 1}, "the changed version is not the one to roll back to"


# Models that are not promoted.


def test_a_model_that_the_gate_stops_is_not_registered(candidates: Project, client: MlflowClient) -> None:
    take(candidates, "worse")
    models = client.search_logged_models([client.get_experiment_by_name(NAME).experiment_id])
    line = refusal(candidates)
    assert re.search(
        r"this model fails the gate against champion \(version 1\) at \w{7}: floor \(80\.00 % → [67]\d\.\d+ %\)",
        line,
    )
    assert "; accuracy (" in line
    assert line.endswith("Nothing was registered")
    assert (aliases(client), versions(client)) == ({"champion": 1}, [1])
    assert len(client.search_logged_models([client.get_experiment_by_name(NAME).experiment_id])) == len(models)


def test_only_a_committed_and_current_model_is_promoted(candidates: Project, client: MlflowClient) -> None:
    take(candidates, "better")
    model, lock, fitting = (
        candidates.root / name for name in ("models/model.keras", "dvc.lock", "pipeline/stages/train/fitting.py")
    )
    whole = model.read_bytes()
    model.write_bytes(whole[:-1] + bytes([whole[-1] ^ 0xFF]))
    assert "models/model.keras does not match dvc.lock: its MD5 is " in refusal(candidates)
    model.unlink()
    assert "models/model.keras is missing: run `dvc checkout` or `dvc pull` to restore it" in refusal(candidates)
    candidates.succeed("dvc", "checkout")
    lock.unlink()
    assert "dvc.lock has no models/model.keras: run `dvc repro`" in refusal(candidates)
    candidates.succeed("git", "checkout", "-q", "dvc.lock")
    candidates.succeed("git", "reset", "-q", "--soft", "HEAD~1")
    line = refusal(candidates)
    assert "this model is not committed: commit composed.yaml, dvc.lock, params.yaml" in line
    assert line.endswith("first, then promote")
    candidates.succeed("git", "reset", "-q", "--soft", "better@{1}")
    (candidates.root / "pipeline" / "new.py").write_text("", encoding="utf-8")
    assert "commit pipeline/new.py first, then promote" in refusal(candidates)
    (candidates.root / "pipeline" / "new.py").unlink()
    fitting.write_text(fitting.read_text(encoding="utf-8") + "\n# edited\n", encoding="utf-8")
    assert "the reports do not match the current code, configuration and data: train" in refusal(candidates)
    candidates.succeed("git", "checkout", "-q", "pipeline")
    assert "git does not know the revision 'nothing'" in refusal(candidates, "--base", "nothing")
    assert (aliases(client), versions(client)) == ({"champion": 1}, [1])


def test_an_unusable_store(candidates_once: Project) -> None:
    for arguments in ((), ("--rollback",)):
        line = refusal(candidates_once, *arguments, MLFLOW_TRACKING_URI="http://127.0.0.1:9")
        assert "MLFLOW_TRACKING_URI=http://127.0.0.1:9: the tracking server cannot be reached" in line
    assert "MLflow 3 no longer keeps runs in folders" in refusal(candidates_once, MLFLOW_TRACKING_URI="./mlruns")


def test_nothing_to_roll_back_to(candidates: Project, client: MlflowClient) -> None:
    nothing = "there is nothing to roll back to"
    assert refusal(candidates, "--rollback").endswith(f"'{NAME}' has no previous model: {nothing}")
    client.delete_registered_model_alias(NAME, "champion")
    assert refusal(candidates, "--rollback").endswith(f"'{NAME}' has no champion: {nothing}")
    client.delete_registered_model(NAME)
    assert refusal(candidates, "--rollback").endswith(f"has no registered model '{NAME}': `make promote` creates it")
    assert "not allowed with argument" in candidates.fail(*PROMOTE, "--rollback", "--base", "HEAD")


def test_a_model_replaced_while_the_gate_judges_it_is_not_promoted(candidates: Project, client: MlflowClient) -> None:
    replace = "git switch -q main && dvc checkout -q"
    command = ("python", "-c", INTERRUPTED_AT, "search_experiments", "1", replace)
    take(candidates, "better")
    line = "promote: models/model.keras was replaced while the gate judged it: promote again\n"
    assert candidates.fail(*command).endswith(line)
    assert (aliases(client), versions(client)) == ({"champion": 1}, [1])
    take(candidates, "better")
    promote(candidates)
    promote(candidates, "--rollback")
    before = client.get_model_version(NAME, "2").tags
    assert candidates.fail(*command).endswith(line), "the version is already registered"
    assert aliases(client) == {"champion": 1, "previous": 2}
    assert client.get_model_version(NAME, "2").tags == before


# Baselines.


def test_a_base_is_compared_in_addition_to_the_champion(
    candidates: Project, client: MlflowClient, tmp_path: Path
) -> None:
    take(candidates, "better")
    output = promote(candidates, "--base", "main")
    first, second = (candidates.succeed("git", "rev-parse", "--short=7", name).strip() for name in ("main", "better"))
    assert f"pass, against champion (version 1) at {first}" in output
    assert f"it also passes against main at {first}" in output
    take(candidates, "main")
    line = refusal(candidates, "--base", "HEAD")
    assert f"this model fails the gate against champion (version 2) at {second}: accuracy (" in line
    client.set_model_version_tag(NAME, "2", "git.commit", candidates.succeed("git", "rev-parse", "main").strip())
    candidates.succeed("git", "worktree", "add", "-q", "--detach", str(tmp_path / "better"), "better")
    line = refusal(candidates, "--base", str(tmp_path / "better"))
    assert f"this model fails the gate against {tmp_path / 'better'}: accuracy (" in line
    assert aliases(client) == {"champion": 2, "previous": 1}


def test_a_champion_whose_commit_git_does_not_know(candidates: Project, client: MlflowClient) -> None:
    client.set_model_version_tag(NAME, "1", "git.commit", "0" * 40)
    take(candidates, "better")
    assert "git does not know the revision 'origin/main'" in refusal(candidates)
    candidates.succeed("git", "update-ref", "refs/remotes/origin/main", "main")
    output = promote(candidates)
    assert f"not compared with the champion (version 1): git does not know its commit {'0' * 40}" in output
    assert "pass, against origin/main at" in output
    assert aliases(client) == {"champion": 2, "previous": 1}


def test_a_champion_with_other_test_images_is_replaced_on_request(candidates: Project, client: MlflowClient) -> None:
    candidates.params(
        recipe="smoke", dataset={"name": None, "test_count": 400}, training={"epochs": None}, optimizer=None
    )
    candidates.succeed("dvc", "repro")
    candidates.commit()
    line = refusal(candidates, "--base", "HEAD")
    assert "different test sets of digits cannot be compared" in line or "different datasets cannot be compared" in line
    assert line.endswith("To replace the champion without a comparison, run `make promote WITHOUT_CHAMPION=1`")
    output = promote(candidates, "--base", "HEAD", "--without-champion")
    assert "not compared with the champion (version 1), as requested" in output
    assert aliases(client) == {"champion": 2, "previous": 1}
    both = candidates.fail(*PROMOTE, "--rollback", "--without-champion")
    assert "argument --without-champion: not allowed with argument --rollback" in both


def test_a_store_that_does_not_know_the_run(candidates: Project) -> None:
    run_id = candidates.report("evaluation.json")["mlflow"]["run_id"]
    other = f"sqlite:///{candidates.root}/other.db"
    line = refusal(candidates, "--base", "HEAD", MLFLOW_TRACKING_URI=other)
    assert (
        f"{other} does not have the run that reports/evaluation.json names ({run_id}): run `dvc repro --force" in line
    )


@pytest.mark.slow
def test_on_a_server_that_does_not_know_the_run_yet(candidates: Project, tmp_path: Path, start: Start) -> None:
    port = free_port()
    uri = f"http://127.0.0.1:{port}"
    serve_store(start, tmp_path, port)
    run_id = candidates.report("evaluation.json")["mlflow"]["run_id"]
    line = refusal(candidates, "--base", "HEAD", MLFLOW_TRACKING_URI=uri)
    assert f"{uri} does not have the run that reports/evaluation.json names ({run_id}): " in line
    (remedy,) = re.findall(r"run `(dvc .*)` to create one there, commit, then promote", line)
    candidates.succeed(*remedy.split(), MLFLOW_TRACKING_URI=uri)
    assert "this model is not committed: commit dvc.lock, reports/evaluation.json" in refusal(
        candidates, "--base", "HEAD", MLFLOW_TRACKING_URI=uri
    )
    candidates.commit()
    output = promote(candidates, "--base", "HEAD", MLFLOW_TRACKING_URI=uri)
    assert f"View it at {uri}/#/models/digits/versions/1?workflowType=machine_learning\n" in output
    assert aliases(MlflowClient(uri)) == {"champion": 1}
    take(candidates, "better")
    candidates.succeed(*remedy.split(), MLFLOW_TRACKING_URI=uri)
    candidates.commit()
    promote(candidates, MLFLOW_TRACKING_URI=uri)
    promote(candidates, "--rollback", MLFLOW_TRACKING_URI=uri)
    assert aliases(MlflowClient(uri)) == {"champion": 1, "previous": 2}


# Kills and concurrent promotions.


def test_a_killed_promotion_keeps_the_champion_and_the_next_one_finishes(
    candidates: Project, client: MlflowClient
) -> None:
    take(candidates, "better")

    def kill(method: str, turn: int, *arguments: str) -> None:
        result = candidates.run("python", "-c", INTERRUPTED_AT, method, str(turn), "kill -9 $PPID", *arguments)
        assert result.returncode == -9, result.stdout

    kill("create_model_version", 1)
    assert (aliases(client), versions(client)) == ({"champion": 1}, [1])
    kill("set_registered_model_tag", 1)
    assert (aliases(client), versions(client)) == ({"champion": 1}, [1, 2])
    kill("set_registered_model_alias", 1)
    assert aliases(client) == {"champion": 1}
    kill("set_registered_model_alias", 2)
    assert aliases(client) == {"champion": 1, "previous": 1}
    assert refusal(candidates, "--rollback").endswith("has no previous model: there is nothing to roll back to")
    assert "digits version 2 is now the champion" in promote(candidates)
    assert (aliases(client), versions(client)) == ({"champion": 2, "previous": 1}, [1, 2])
    kill("set_registered_model_alias", 2, "--rollback")
    assert aliases(client) == {"champion": 2, "previous": 2}
    promote(candidates, "--rollback")
    assert aliases(client) == {"champion": 1, "previous": 2}


def test_concurrent_promotions_leave_one_champion_and_one_previous(
    candidates: Project, client: MlflowClient, tmp_path: Path, start: Start
) -> None:
    client.delete_registered_model(NAME)
    folders = [candidates.root, copy(candidates, tmp_path / "second").root]
    store = {"MLFLOW_TRACKING_URI": f"sqlite:///{candidates.root}/mlflow.db"}

    def at_once(*commands: tuple[str, ...]) -> list[str]:
        processes = [
            start((*PROMOTE, *command), folders[number % 2], **store) for number, command in enumerate(commands)
        ]
        return [process.communicate()[0] for process in processes]

    outputs = at_once(*[("--base", "HEAD")] * 3)
    assert sorted("is now the champion" in output for output in outputs) == [False, False, True], outputs
    assert sum("is already the champion" in output for output in outputs) == 2
    assert (aliases(client), versions(client)) == ({"champion": 1}, [1]), "the same file is registered once"
    take(Project(folders[1]), "better")
    outputs = at_once(("--rollback",), (), ("--rollback",), ())
    assert not any("Traceback" in output for output in outputs), outputs
    assert sorted(aliases(client).values()) == [1, 2]
    assert versions(client) == [1, 2]
    shutil.rmtree(folders[1])
