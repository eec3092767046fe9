"""Runs that differ only in their seed, below one run with their mean and standard deviation."""

import statistics
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from pipeline.commands.runs.seeds import kept_parents
from pipeline.tracking.store import open_store
from tests.conftest import Project

SEEDS = ("python", "-m", "pipeline.commands.runs", "seeds")


@pytest.fixture
def committed(trained: Project) -> Project:
    """A clone with recipe=smoke trained and committed."""
    trained.commit()
    return trained


def groups(project: Project) -> dict[str, tuple[Run, dict[str, Run]]]:
    """The runs above those of several seeds by name, and the runs below by their seed."""
    client = MlflowClient(f"sqlite:///{project.root}/mlflow.db")
    runs = client.search_runs([each.experiment_id for each in client.search_experiments()])
    found = {}
    for run in runs:
        if "seeds" in run.data.tags:
            below = [each for each in runs if each.data.tags.get("mlflow.parentRunId") == run.info.run_id]
            found[run.info.run_name] = (run, {each.data.params["seed"]: each for each in below})
    return found


def test_seeds_of_one_configuration_have_one_run_above_them(committed: Project) -> None:
    assert "no configuration has runs with two seeds" in committed.succeed(*SEEDS)
    committed.succeed("dvc", "exp", "run", "--queue", "-S", "++seed=range(1,3)")  # as `make seeds N=2` does
    committed.succeed("dvc", "exp", "run", "--queue", "-S", "training.epochs=1", "-S", "++seed=3")  # is another one
    committed.succeed("dvc", "exp", "run", "--run-all")
    printed = committed.succeed(*SEEDS)
    found = groups(committed)
    assert [*found] == ["smoke-mlp, 2 seeds"]
    parent, children = found["smoke-mlp, 2 seeds"]
    assert [*sorted(children)] == ["1", "2"]
    assert children["1"].info.run_id == committed.report("evaluation.json")["mlflow"]["run_id"]
    for name in ("test/accuracy", "test/loss", "val/accuracy"):
        values = [run.data.metrics[name] for run in children.values()]
        assert parent.data.metrics[f"{name}_mean"] == pytest.approx(statistics.mean(values))
        assert parent.data.metrics[f"{name}_std"] == pytest.approx(statistics.stdev(values))
    mean, std = (parent.data.metrics[f"test/accuracy_{each}"] for each in ("mean", "std"))
    assert f"smoke-mlp, 2 seeds: test accuracy {mean:.2%} ± {std:.2%} (mean" in printed
    assert not any(name.startswith("system/") for name in parent.data.metrics)
    assert "seed" not in parent.data.params
    assert parent.data.params["training.epochs"] == children["1"].data.params["training.epochs"]
    assert parent.info.status == "FINISHED"
    assert f"| mean ± std | {mean:.6g} ± {std:.2g} |" in parent.data.tags["mlflow.note.content"]
    committed.succeed("python", "-m", "pipeline.commands.runs", "check")  # no unmatched run

    committed.succeed("dvc", "exp", "run", "--name", "third", "-S", "++seed=4")
    committed.succeed(*SEEDS)
    later = groups(committed)
    parent, children = later["smoke-mlp, 3 seeds"]
    assert parent.info.run_id == found["smoke-mlp, 2 seeds"][0].info.run_id
    assert [*sorted(children)] == ["1", "2", "4"]
    assert parent.data.metrics["test/accuracy_mean"] != mean
    committed.succeed("dvc", "exp", "remove", "third")
    committed.succeed("git", "checkout", ".")
    committed.succeed("dvc", "checkout", "--force")
    committed.succeed(*SEEDS)
    parent, _ = groups(committed)["smoke-mlp, 2 seeds"]
    assert parent.data.metrics["test/accuracy_mean"] == mean, "MLflow shows the latest of one step"


def test_damaged_results_and_missing_runs_are_left_out(committed: Project) -> None:
    for seed in (2, 3):
        committed.succeed("dvc", "exp", "run", "--name", f"seed-{seed}", "-S", f"++seed={seed}")
    client = MlflowClient(f"sqlite:///{committed.root}/mlflow.db")
    client.delete_run(committed.report("evaluation.json")["mlflow"]["run_id"])
    committed.succeed("git", "checkout", ".")
    committed.succeed("dvc", "checkout", "--force")
    committed.succeed(*SEEDS)
    ((parent, children),) = groups(committed).values()
    assert [*sorted(children)] == ["1", "2"]
    client.delete_run(parent.info.run_id)
    committed.succeed(*SEEDS)
    ((_, children),) = groups(committed).values()
    assert [*sorted(children)] == ["1", "2"], "they are below the new run"
    (committed.root / "reports" / "evaluation.json").write_text("{", encoding="utf-8")
    assert "no configuration has runs with two seeds" in committed.succeed(*SEEDS)


def test_runs_stay_below_a_run_that_the_user_chose(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """But not below a deleted one, or that of other seeds."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    store = open_store(tmp_path)
    client = MlflowClient(store.uri)
    place = client.create_experiment("digits")
    chosen, deleted, seeds = (
        client.create_run(place, tags=tags).info.run_id for tags in ({}, {}, {"seeds": "of another configuration"})
    )
    client.delete_run(deleted)
    below = [client.create_run(place, tags={"mlflow.parentRunId": each}) for each in (chosen, deleted, seeds)]
    assert kept_parents(store, [*below, client.create_run(place)]) == {chosen}


def test_it_needs_git_and_a_store(committed: Project) -> None:
    said = committed.run(*SEEDS, MLFLOW_TRACKING_URI="http://127.0.0.1:9").stdout
    assert "tracking: " in said
    assert "Traceback" not in said
