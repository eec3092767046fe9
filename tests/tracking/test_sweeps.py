"""MLflow runs of a sweep whose store does not answer at one moment, or whose run was deleted."""

from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from pipeline.core.records import Provenance
from pipeline.tracking.runs import PARENT
from pipeline.tracking.store import Store, open_store
from pipeline.tracking.sweeps import adopt, open_sweep

ORIGIN = Provenance(commit="", patch="", overrides=None)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """An empty store."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return open_store(tmp_path)


def refusing(monkeypatch: pytest.MonkeyPatch, name: str, at: int) -> None:
    """Let MLflow's client refuse one call of a method."""
    method, calls = getattr(MlflowClient, name), []

    def refuse(*arguments: Any, **named: Any) -> Any:
        calls.append(1)
        if len(calls) == at:
            raise MlflowException("API request failed: 503 Service Unavailable")
        return method(*arguments, **named)

    monkeypatch.setattr(MlflowClient, name, refuse)


def test_runs_below_a_deleted_run_move_even_if_the_store_refuses_one(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = MlflowClient(store.uri)
    former = open_sweep(store, "s", "digits", tmp_path, ORIGIN, None)
    place = str(former.experiment_id)
    below = [client.create_run(place, tags={PARENT: former.run_id}).info.run_id for _ in range(5)]
    client.delete_run(former.run_id)
    new = open_sweep(store, "s", "digits", tmp_path, ORIGIN, former.run_id)
    assert new.run_id != former.run_id
    refusing(monkeypatch, "set_tag", 3)
    adopt(new, [former.run_id])
    assert {client.get_run(run_id).data.tags[PARENT] for run_id in below} == {former.run_id, new.run_id}
    adopt(new, [former.run_id])
    assert {client.get_run(run_id).data.tags[PARENT] for run_id in below} == {new.run_id}


def test_a_store_that_does_not_answer_once_gives_a_sweep_no_second_run(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = open_sweep(store, "s", "digits", tmp_path, ORIGIN, None)
    refusing(monkeypatch, "get_run", 1)
    assert open_sweep(store, "s", "digits", tmp_path, ORIGIN, first.run_id) == first
