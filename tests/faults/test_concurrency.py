"""Commands that run at the same time."""

import re
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tests.conftest import Start, copy
from tests.faults.conftest import Tell
from tests.faults.trial import EPOCHS, Trial, check_artifacts, client_of, leftovers, runs_of

pytestmark = pytest.mark.faults
SIX = 6


@pytest.mark.parametrize("delay", [0.0, 0.7, 1.6, 2.6])
def test_two_repros_in_one_clone(trial: Trial, tell: Tell, start: Start, delay: float) -> None:
    first = start(["dvc", "repro"], trial.root, **trial.settings)
    time.sleep(delay)
    assert first.poll() is None, "the first one still runs"
    second = start(["dvc", "repro"], trial.root, **trial.settings)
    outputs = [process.communicate()[0] for process in (first, second)]
    assert not [output for output in outputs if "Traceback" in output]
    for process, output in zip((first, second), outputs, strict=True):
        assert process.returncode == 0 or "Unable to acquire lock" in output or "is busy" in output, output
    trial.recover()
    refused = "one finished, DVC refused the other" if first.returncode or second.returncode else "both finished"
    tell("two `dvc repro` at once in one clone", "started 0 to 2.6 s apart", refused)


@pytest.mark.parametrize("seed", range(2))
def test_six_clones_share_a_database_that_does_not_exist_yet(
    trial: Trial, tell: Tell, start: Start, tmp_path: Path, seed: int
) -> None:
    uri = f"sqlite:///{tmp_path}/shared {seed}/team.db" if seed else f"sqlite:///{tmp_path}/team.db"
    (tmp_path / f"shared {seed}").mkdir()
    clones = [copy(trial.project, tmp_path / f"clone-{number}") for number in range(SIX)]
    shared = trial.settings | {"MLFLOW_TRACKING_URI": uri, "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
    started = [start(["dvc", "repro"], project.root, **shared) for project in clones]
    outputs = [process.communicate()[0] for process in started]
    for process, output in zip(started, outputs, strict=True):
        assert process.returncode == 0, output
        assert "Traceback" not in output
        assert "refuses" not in output, output
    for project in clones:
        one = Trial(project, trial.expected, Path(trial.settings["DATASET_MIRROR"]))
        one.check(MLFLOW_TRACKING_URI=uri)
    tell("six clones start at once on an SQLite database that does not exist yet", "six processes", "all six finished")


def test_six_experiments_start_at_once_in_one_clone_without_a_store(trial: Trial, tell: Tell, start: Start) -> None:
    store = {"MLFLOW_TRACKING_URI": "sqlite:///new.db"}
    trial.project.commit()
    commands = [
        ["dvc", "exp", "run", "--temp", "-n", f"six-{seed}", "-S", f"seed={seed}"] for seed in range(3, 3 + SIX)
    ]
    started = [start(command, trial.root, **trial.settings, **store) for command in commands]
    outputs = [process.communicate()[0] for process in started]
    assert not [output for output in outputs if "Traceback" in output], outputs
    finished = [process for process in started if process.returncode == 0]
    for process, output in zip(started, outputs, strict=True):
        assert process.returncode == 0 or "Unable to acquire lock" in output or "is busy" in output, output
    for command, process in zip(commands, started, strict=True):
        if process.returncode:  # DVC refused it: once more
            trial.project.succeed(*command, **trial.settings, **store)
    client = MlflowClient(f"sqlite:///{trial.root}/new.db")
    runs = runs_of(client)
    assert sorted(run.data.params["seed"] for run in runs) == [str(seed) for seed in range(3, 3 + SIX)]
    for run in runs:
        check_finished(client, run.info.run_id)
    assert leftovers(trial.root) == []
    outcome = f"{len(finished)} finished; DVC refused the others, which finished when started again"
    tell("six experiments start at once in one clone without a store", "six processes", outcome)


def check_finished(client: MlflowClient, run_id: str) -> None:
    """Check that a run has each epoch once, test metrics and one model."""
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    steps = sorted(point.step for point in client.get_metric_history(run_id, "train/loss"))
    assert steps == list(range(1, EPOCHS + 1))
    assert "test/accuracy" in run.data.metrics
    check_artifacts(client, run)


def test_eight_queued_experiments(trial: Trial, tell: Tell) -> None:
    trial.project.commit()
    trial.project.succeed("dvc", "exp", "run", "--queue", "-S", "seed=range(3,11)", **trial.settings)
    trial.project.succeed("dvc", "queue", "start", "-j", "4", **trial.settings)
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        status = trial.project.succeed("dvc", "queue", "status", **trial.settings)
        if not re.search("Running|Queued", status):
            break
        time.sleep(1)
    trial.project.run("dvc", "queue", "stop", "--kill")
    runs = [run for run in runs_of(client_of(trial.project)) if run.info.run_id not in trial.before]
    for run in runs:
        check_finished(client_of(trial.project), run.info.run_id)
    trial.before |= {run.info.run_id: run.data.metrics for run in runs}
    assert sorted(int(run.data.params["seed"]) for run in runs) == list(range(3, 11)), status
    trial.recover()
    tell("eight queued experiments, four at a time", "`dvc queue start -j 4`", f"{status.count('Success')} finished")
