"""Processes that are killed with `kill -9`."""

import random
import signal
import sys
import time
from pathlib import Path

import pytest
from psutil import Process, wait_procs

from tests.conftest import PATH, Project, Start, copy, once
from tests.faults.conftest import Tell
from tests.faults.moments import VARIABLE
from tests.faults.trial import Results, Trial, client_of, killed, leftovers, read_until, run_killed, runs_of

PROMOTE = ("python", "-m", "pipeline.commands.promote", "--base", "HEAD")
STAGES = {"compose": 4, "fetch": 5, "preprocess": 6, "train": 18, "evaluate": 8}
STAGES |= {"train.worker": 12, "evaluate.worker": 6}  # the processes that record


def moments(number: int, name: str) -> list[float]:
    """Seeded moments, one in each of `number` equal parts of a process's life from 0 to 1."""
    chooser = random.Random(name)
    return [round((part + chooser.random()) / number, 3) for part in range(number)]


@pytest.mark.faults
@pytest.mark.parametrize(("stage", "moment"), [(name, at) for name, n in STAGES.items() for at in moments(n, name)])
def test_a_stage_is_killed(
    trial: Trial, tell: Tell, operations: dict[str, list[str]], stage: str, moment: float
) -> None:
    process = f"pipeline.stages.{stage}"
    number = 1 + int(moment * len(operations[process]))
    run = trial.kill(f"{process} {number}")
    assert "Traceback" not in run.stdout
    worker = stage.endswith(".worker")
    assert run.returncode or worker, "DVC noticed it"
    output = trial.recover()
    resumed = "resuming after epoch" in output
    who = "`kill -9` of " + (f"the process that records for {stage.removesuffix('.worker')}" if worker else stage)
    ended = "the stage ended with a message" if run.returncode else "the stage finished"
    outcome = f"{ended}; `dvc repro` " + ("continued the training" if resumed else "ran the rest")
    tell(who, "before a file operation", outcome + trial.repaired)


@pytest.mark.faults
@pytest.mark.parametrize("moment", moments(14, "dvc"))
def test_dvc_is_killed(trial: Trial, tell: Tell, operations: dict[str, list[str]], moment: float) -> None:
    number = 1 + int(moment * len(operations["dvc"]))
    assert trial.kill(f"dvc {number}").returncode == -signal.SIGKILL
    trial.recover()
    tell("`kill -9` of `dvc repro`", "before a file operation of DVC", f"`dvc repro` ran the rest{trial.repaired}")


@pytest.mark.faults
@pytest.mark.parametrize("shell", ["/bin/bash", "/bin/sh"])
@pytest.mark.parametrize("moment", moments(2, "dvc alone"))
def test_dvc_alone_is_killed(trial: Trial, tell: Tell, start: Start, lines: int, moment: float, shell: str) -> None:
    """The stage that it was running notices it and ends, so that it does not train beside the next one."""
    process = start([sys.executable, "-m", "dvc", "repro"], trial.root, **trial.settings, PATH=PATH, SHELL=shell)
    read_until(process, "", 1 + int(moment * lines))
    stages = Process(process.pid).children(recursive=True)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    _, alive = wait_procs(stages, 30)
    assert not alive, "they ended"
    trial.recover()
    tell("`kill -9` of `dvc repro` alone", "after a line of its output", f"its stage ended, too{trial.repaired}")


@pytest.mark.faults
@pytest.mark.parametrize("moment", moments(12, "everything"))
def test_everything_is_killed_at_once(trial: Trial, tell: Tell, start: Start, lines: int, moment: float) -> None:
    """As when the machine loses power, but with a working disk cache."""
    process = start(["dvc", "repro"], trial.root, **trial.settings)
    read_until(process, "", 1 + int(moment * lines))
    time.sleep(random.Random(moment).random() / 4)
    killed(process)
    time.sleep(0.1)
    trial.recover()
    tell(
        "`kill -9` of DVC and its stages at once",
        "up to 0.25 s after a line of output",
        f"`dvc repro` ran the rest{trial.repaired}",
    )


@pytest.fixture(scope="session")
def promotable(undisturbed: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The project after its run, committed, with a model to promote; the file `promotion` lists file operations."""

    def make(folder: Path) -> None:
        project = copy(undisturbed, folder)
        project.commit()
        other = copy(project, folder.parent / "other")
        operations = folder.parent / "promotion"
        operations.touch()
        other.succeed(*PROMOTE, **{VARIABLE: f"list {operations}"})

    return once(tmp_path_factory, "promotable", make)


@pytest.mark.faults
@pytest.mark.parametrize("moment", moments(8, "promote"))
def test_promotion_is_killed(promotable: Project, expected: Results, tell: Tell, tmp_path: Path, moment: float) -> None:
    lines = (promotable.root.parent / "promotion").read_text(encoding="utf-8").splitlines()
    count = sum(line.startswith("pipeline.commands.promote\t") for line in lines)
    project = copy(promotable, tmp_path / "project")
    run = run_killed(project, PROMOTE, f"pipeline.commands.promote {1 + int(moment * count)}")
    assert run.returncode == -signal.SIGKILL, run.stdout
    project.succeed(*PROMOTE)
    client = client_of(project)
    (model,) = client.search_registered_models()
    versions = client.search_model_versions(f"name='{model.name}'")
    champion = client.get_model_version_by_alias(model.name, "champion")
    assert [version.status for version in versions] == ["READY"] * len(versions)
    assert float(champion.tags["test.accuracy"]) == expected.metrics["accuracy"]
    assert leftovers(project.root) == []
    outcome = "the second promotion made the model the champion"
    outcome += "" if len(versions) == 1 else f"; {len(versions)} versions"
    tell("`kill -9` of `make promote`", "before a file operation", outcome)


@pytest.mark.faults
@pytest.mark.parametrize("moment", moments(4, "sweep"))
def test_a_sweep_is_killed(trial: Trial, tell: Tell, start: Start, moment: float) -> None:
    """And the same two commands run again, which are those of `make seeds`."""
    trial.project.commit()
    queue = ("dvc", "exp", "run", "--queue", "-S", "seed=range(3,6)")
    trial.project.succeed(*queue, **trial.settings)
    process = start(["dvc", "exp", "run", "--run-all"], trial.root, **trial.settings)
    time.sleep(1 + moment * 12)
    killed(process)
    trial.project.run("dvc", "queue", "remove", "--all")
    deadline = time.monotonic() + 30
    while "Unable to acquire lock" in (again := trial.project.run(*queue, **trial.settings)).stdout:
        assert time.monotonic() < deadline, "a worker of DVC still runs"
    assert again.returncode == 0, again.stdout
    trial.project.succeed("dvc", "exp", "run", "--run-all", **trial.settings)
    runs = [run for run in runs_of(client_of(trial.project)) if run.info.run_id not in trial.before]
    trained = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    assert sorted(run.data.params["seed"] for run in trained) == ["3", "4", "5"], "one run for each seed"
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert leftovers(trial.root) == []
    tell("`kill -9` of a sweep", "after a random time", "the same commands finished it")
