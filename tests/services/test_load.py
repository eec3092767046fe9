"""Many runs that record at once: a small version of benchmarks/team.py."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from mlflow import MlflowClient

from benchmarks.team import record_run

pytestmark = pytest.mark.services

RUNS, EPOCHS = 10, 20


def test_runs_that_record_at_once_lose_nothing(client: MlflowClient, tmp_path: Path) -> None:
    experiment = client.create_experiment("load")
    with ThreadPoolExecutor(RUNS) as threads:
        work = [threads.submit(record_run, client.tracking_uri, experiment, tmp_path, n, EPOCHS) for n in range(RUNS)]
        recorded = [future.result()[0] for future in work]
    assert not list((tmp_path / ".unsent").glob("*/event-*.json"))
    found = client.search_runs([experiment])
    assert {run.info.run_id for run in found} == set(recorded)
    assert Counter(run.info.status for run in found) == {"FINISHED": RUNS}
    for run in found:
        steps = [point.step for point in client.get_metric_history(run.info.run_id, "train/loss")]
        assert steps == [*range(1, EPOCHS + 1)]
        assert len(run.data.params) == 50
        assert [file.path for file in client.list_artifacts(run.info.run_id)] == ["model_summary.txt"]
