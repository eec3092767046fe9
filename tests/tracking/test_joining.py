"""DVC experiments and MLflow runs, in a real clone: what joins them, and what is on one side only."""

import re
import shutil
from pathlib import Path

import pytest
from mlflow import MlflowClient

from pipeline.errors import PipelineError
from pipeline.tracking.joining import others
from pipeline.tracking.store import Store
from tests.conftest import Project

CHECK = ("python", "-m", "pipeline.tracking", "check")


def check(project: Project, status: int = 0, **settings: str) -> str:
    """What the check prints, which must end with an exit status."""
    result = project.run(*CHECK, COLUMNS="220", **settings)
    assert result.returncode == status, result.stdout
    assert "Traceback" not in result.stdout
    return result.stdout


def rows(output: str) -> dict[tuple[str, str], tuple[str, str]]:
    """State and reason by the names of result and run."""
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in output.splitlines() if line.startswith("│")]
    return {(row[0], row[1]): (row[3], row[4]) for row in cells}


@pytest.fixture
def committed(trained: Project) -> Project:
    """A clone with recipe=smoke trained and committed."""
    trained.commit()
    return trained


def test_every_experiment_is_joined_to_a_run(committed: Project) -> None:
    client = MlflowClient(f"sqlite:///{committed.root}/mlflow.db")
    own = committed.report("metrics.json")["mlflow"]["run_id"]
    assert rows(check(committed)) == {("the working tree", "smoke-mlp-seed-1"): ("joined", "")}
    committed.succeed("dvc", "exp", "run", "-n", "idle")
    committed.succeed("dvc", "exp", "run", "-n", "short", "-S", "training.epochs=1")
    output = committed.succeed("dvc", "exp", "run", "-n", "back", "-S", "training.epochs=null")
    assert f"evaluate: the model is that of MLflow's run {own}; this experiment has a run below it" in output
    reused = client.get_run(committed.report("metrics.json")["mlflow"]["run_id"])
    assert (reused.data.tags["mlflow.parentRunId"], reused.data.tags["reused.from"]) == (own, own)
    assert reused.data.tags["dvc.experiment"] == "back"
    assert (reused.data.tags["device"], reused.data.tags["precision"]) == ("cpu", "float32")
    assert reused.data.metrics["test/accuracy"] == client.get_run(own).data.metrics["test/accuracy"]
    output = check(committed)
    assert rows(output) == {
        ("the working tree", "smoke-mlp-seed-1 (back)"): ("joined", "reuses the model of smoke-mlp-seed-1"),
        ("back", "smoke-mlp-seed-1 (back)"): ("joined", "reuses the model of smoke-mlp-seed-1"),
        ("short", "smoke-mlp-seed-1 (short)"): ("joined", ""),
        ("idle", "smoke-mlp-seed-1"): ("joined", "nothing had to run: it is the run of an earlier one"),
    }
    assert output.endswith("tracking: 4 joined, 0 on one side only\n")
    committed.succeed("dvc", "exp", "remove", "idle")
    name = f"commit {committed.succeed('git', 'rev-parse', 'HEAD')[:7]}"
    assert rows(check(committed))[(name, "smoke-mlp-seed-1")] == ("joined", ""), "git knows it without an experiment"


def test_what_is_on_one_side_only_is_told_with_what_to_do(committed: Project) -> None:
    client = MlflowClient(f"sqlite:///{committed.root}/mlflow.db")
    committed.succeed("dvc", "exp", "run", "--temp", "-n", "short", "-S", "training.epochs=1")
    (run,) = (run for run in client.search_runs(["1"]) if run.data.tags["dvc.experiment"] == "short")
    client.delete_run(run.info.run_id)
    output = check(committed, 1)
    assert rows(output)["short", ""] == ("only in DVC", "its run was deleted")
    (restore,) = re.findall(r"^only in DVC: short: its run was deleted\. `(.*)` brings it back$", output, re.MULTILINE)
    committed.succeed(*restore.split(), MLFLOW_TRACKING_URI=f"sqlite:///{committed.root}/mlflow.db")
    assert rows(check(committed))["short", "smoke-mlp-seed-1 (short)"] == ("joined", "")

    committed.succeed("dvc", "exp", "remove", "short")
    output = check(committed, 1)
    gone = ("only in MLflow", "this clone has no experiment short: it was removed, or is elsewhere")
    assert rows(output)["", "smoke-mlp-seed-1 (short)"] == gone
    assert f"`mlflow runs delete --run-id {run.info.run_id}` if it is not wanted" in output
    assert output.count("only in MLflow: ") == 1
    client.delete_run(run.info.run_id)
    assert check(committed).endswith("tracking: 1 joined, 0 on one side only\n")


@pytest.mark.slow
def test_an_experiment_from_elsewhere_gets_a_run(committed: Project) -> None:
    committed.succeed("dvc", "exp", "run", "--temp", "-n", "short", "-S", "training.epochs=1")
    other = f"sqlite:///{committed.root}/other.db"
    output = check(committed, 1, MLFLOW_TRACKING_URI=other)
    assert rows(output)["short", ""] == ("only in DVC", "this store has no such run")
    (remedy,) = re.findall(r"^only in DVC: short: .*\. `(.*)` gives it one here$", output, re.MULTILINE)
    committed.succeed("sh", "-c", remedy, MLFLOW_TRACKING_URI=other)
    found = rows(check(committed, 0, MLFLOW_TRACKING_URI=other))
    assert found["short", "smoke-mlp-seed-1 (short)"] == ("joined", "restored from another store")


def test_runs_that_nothing_in_git_names(committed: Project) -> None:
    client = MlflowClient(f"sqlite:///{committed.root}/mlflow.db")
    client.create_run("1", run_name="killed", tags={"dvc.experiment": ""})
    client.set_terminated(client.create_run("1", run_name="replaced [/again]", tags={"dvc.experiment": ""}).info.run_id)
    client.create_run(client.create_experiment("somebody else's"), run_name="elsewhere")
    found = rows(check(committed, 1))
    replaced = "a `dvc repro` whose results were replaced before they were committed"
    assert found["", "replaced [/again]"] == ("only in MLflow", replaced)
    killed = "not finished (RUNNING): it still runs, or its training failed or was killed"
    assert found["", "killed"] == ("only in MLflow", killed)
    assert len(found) == 3, "another project's run is no matter of this one"


def test_without_git_or_a_store_it_says_so(committed: Project) -> None:
    assert "the tracking server cannot be reached" in check(committed, 1, MLFLOW_TRACKING_URI="http://127.0.0.1:9")
    shutil.rmtree(committed.root / ".git")
    assert "is not a git repository that can be used" in check(committed, 1)


def test_a_store_that_goes_away_half_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(PipelineError, match=r"the MLflow store http://127\.0\.0\.1:9 does not list its runs: "):
        others(Store("http://127.0.0.1:9", Path()), {}, {})


def test_reports_that_cannot_be_read_name_no_run(committed: Project) -> None:
    committed.succeed("dvc", "exp", "run", "-n", "idle")
    Path(committed.root / "reports" / "metrics.json").write_text("{", encoding="utf-8")
    assert set(rows(check(committed))) == {("idle", "smoke-mlp-seed-1")}
