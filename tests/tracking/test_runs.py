import time
from pathlib import Path

import psutil
import pytest
from mlflow import MlflowClient

from pipeline.core.config import flatten
from pipeline.tracking.outbox import RunAddress
from pipeline.tracking.recorder import Recorder
from pipeline.tracking.runs import epoch_metrics, system_metrics

EPOCH = {"epoch": 3.0, "loss": 0.1, "val_loss": 0.2, "learning_rate": 0.3, "seconds": 4.0, "timestamp": 5.0}


def test_epoch_metrics_are_named_after_their_images() -> None:
    common = {"train/loss": 0.1, "train/learning_rate": 0.3, "train/seconds_per_epoch": 4.0}
    assert epoch_metrics(EPOCH, "validation") == common | {"val/loss": 0.2}
    assert epoch_metrics(EPOCH, "test") == common | {"test/loss": 0.2}


def test_keys_are_dotted() -> None:
    values = {"a": {"b": [1, {"c": None}]}, "d": "e"}
    assert dict(flatten(values)) == {"a.b.0": 1, "a.b.1.c": None, "d": "e"}


def test_a_short_run_has_system_metrics(tmp_path: Path) -> None:
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    recorder = Recorder(RunAddress(uri, client.create_run("0").info.run_id, "0", tmp_path))
    real = []
    for _ in range(2):  # the second one resumes a killed training
        psutil.cpu_percent()
        with system_metrics(recorder):
            busy_until = time.monotonic() + 0.5
            while time.monotonic() < busy_until:
                pass
        real.append(psutil.cpu_percent())
    load = client.get_metric_history(recorder.run_id, "system/cpu_utilization_percentage")
    assert [sample.step for sample in load] == [0, 1]
    assert [sample.value for sample in load] == pytest.approx(real, rel=0.3), "not averaged with an initial 0"
