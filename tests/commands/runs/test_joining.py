"""Match DVC experiments and MLflow runs in a real clone, and report the unmatched ones."""

import re
import shutil
from pathlib import Path

import pytest
from mlflow import MlflowClient

from pipeline.commands.runs.joining import others
from pipeline.core.errors import PipelineError
from pipeline.tracking.store import Store
from tests.conftest import Project

CHECK = ("python", "-m", "pipeline.commands.runs", "check")


def check(project: Project, status: int = 0, **settings: str) -> str:
    """The output of the check, which must exit with this status."""
    result = project.run(*CHECK, COLUMNS="220", **settings)
    assert result.returncode == status, result.stdout
    assert "Traceback" not in result.stdout
    return result.stdout


def rows(output: str) -> dict[tuple[str, str], tuple[str, str]]:
    """State and reason of each row, by the names of its result and run."""
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in output.splitlines() if line.startswith("│")]
    return {(row[0], row[1]): (row[3], row[4]) for row in cells}


@pytest.fixture
def committed(trained: Project) -> Project:
    """A clone with recipe=smoke trained and committed."""
    trained.commit()
    return trained


def test_every_experiment_is_joined_to_a_run(committed: Project) -> None:
    client = MlflowClient(f"sqlite:///{committed.root}/mlflow.db")
    own = committed.report("evaluation.json")["mlflow"]["run_id"]
    assert rows(check(committed)) == {("the working tree", "smoke-mlp-seed-1"): ("joined", "")}
    committed.succeed("dvc", "exp", "run", "-n", "idle")
    committed.succeed("dvc", "exp", "run", "-n", "short", "-S", "training.epochs=1")
    output = committed.succeed("dvc", "exp", "run", "-n", "back", "-S", "training.epochs=null")
    assert f"evaluate: the model belongs to MLflow run {own}: recording this experiment in a child run" in output
    reused = client.get_run(committed.report("evaluation.json")["mlflow"]["run_id"])
    assert (reused.data.tags["mlflow.parentRunId"], reused.data.tags["reused.from"]) == (own, own)
    assert reused.data.tags["dvc.experiment"] == "back"
    assert (reused.data.tags["device"], reused.data.tags["precision"]) == ("cpu", "float32")
    assert reused.data.metrics["test/accuracy"] == client.get_run(own).data.metrics["test/accuracy"]
    output = check(committed)
    assert rows(output) == {
        ("the working tree", "smoke-mlp-seed-1 (back)"): ("joined", "reuses the model of smoke-mlp-seed-1"),
        ("back", "smoke-mlp-seed-1 (back)"): ("joined", "reuses the model of smoke-mlp-seed-1"),
        ("short", "smoke-mlp-seed-1 (short)"): ("joined", ""),
        ("idle", "smoke-mlp-seed-1"): ("joined", "no stage had to run: this is the run of an earlier result"),
    }
    assert output.endswith("tracking: 4 joined, 0 unmatched\n")
    committed.succeed("dvc", "exp", "remove", "idle")
    name = f"commit {committed.succeed('git', 'rev-parse', 'HEAD')[:7]}"
    assert rows(check(committed))[(name, "smoke-mlp-seed-1")] == ("joined", ""), "git has it without an experiment"


def test_an_unmatched_result_or_run_is_reported_with_a_remedy(committed: Project) -> None:
    client = MlflowClient(f"sqlite:///{committed.root}/mlflow.db")
    committed.succeed("dvc", "exp", "run", "--temp", "-n", "short", "-S", "training.epochs=1")
    (run,) = (run for run in client.search_runs(["1"]) if run.data.tags["dvc.experiment"] == "short")
    client.delete_run(run.info.run_id)
    output = check(committed, 1)
    assert rows(output)["short", ""] == ("only in DVC", "its run was deleted")
    (restore,) = re.findall(r"^only in DVC: short: its run was deleted\. `(.*)` restores it$", output, re.MULTILINE)
    committed.succeed(*restore.split(), MLFLOW_TRACKING_URI=f"sqlite:///{committed.root}/mlflow.db")
    assert rows(check(committed))["short", "smoke-mlp-seed-1 (short)"] == ("joined", "")

    committed.succeed("dvc", "exp", "remove", "short")
    output = check(committed, 1)
    gone = ("only in MLflow", "this clone has no experiment short: it was removed, or is in another clone")
    assert rows(output)["", "smoke-mlp-seed-1 (short)"] == gone
    assert f"`mlflow runs delete --run-id {run.info.run_id}` if not needed" in output
    assert output.count("only in MLflow: ") == 1
    client.delete_run(run.info.run_id)
    assert check(committed).endswith("tracking: 1 joined, 0 unmatched\n")


@pytest.mark.slow
def test_an_experiment_from_another_store_gets_a_run(committed: Project) -> None:
    committed.succeed("dvc", "exp", "run", "--temp", "-n", "short", "-S", "training.epochs=1")
    other = f"sqlite:///{committed.root}/other.db"
    output = check(committed, 1, MLFLOW_TRACKING_URI=other)
    assert rows(output)["short", ""] == ("only in DVC", "its run is not in this store")
    (remedy,) = re.findall(r"^only in DVC: short: .*\. `(.*)` creates one here$", output, re.MULTILINE)
    committed.succeed("sh", "-c", remedy, MLFLOW_TRACKING_URI=other)
    found = rows(check(committed, 0, MLFLOW_TRACKING_URI=other))
    assert found["short", "smoke-mlp-seed-1 (short)"] == ("joined", "restored from another store")


def test_runs_that_git_does_not_reference(committed: Project) -> None:
    client = MlflowClient(f"sqlite:///{committed.root}/mlflow.db")
    client.create_run("1", run_name="killed", tags={"dvc.experiment": ""})
    client.set_terminated(client.create_run("1", run_name="replaced [/again]", tags={"dvc.experiment": ""}).info.run_id)
    client.create_run(client.create_experiment("somebody else's"), run_name="elsewhere")
    found = rows(check(committed, 1))
    replaced = "a `dvc repro` whose results were replaced before they were committed"
    assert found["", "replaced [/again]"] == ("only in MLflow", replaced)
    killed = "not finished (RUNNING): its training is still running, failed or was killed"
    assert found["", "killed"] == ("only in MLflow", killed)
    assert len(found) == 3, "another project's run is not listed"


def test_a_missing_repository_or_store_is_reported(committed: Project) -> None:
    assert "the tracking server cannot be reached" in check(committed, 1, MLFLOW_TRACKING_URI="http://127.0.0.1:9")
    shutil.rmtree(committed.root / ".git")
    assert "is not a usable git repository" in check(committed, 1)


def test_a_store_that_fails_between_two_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(PipelineError, match=r"cannot list the runs in the MLflow store http://127\.0\.0\.1:9: "):
        others(Store("http://127.0.0.1:9", Path()), {}, {})


def test_unreadable_reports_name_no_run(committed: Project) -> None:
    committed.succeed("dvc", "exp", "run", "-n", "idle")
    Path(committed.root / "reports" / "evaluation.json").write_text("{", encoding="utf-8")
    assert set(rows(check(committed))) == {("idle", "smoke-mlp-seed-1")}
