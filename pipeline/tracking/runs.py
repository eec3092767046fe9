"""One MLflow run per trained model: train opens it, evaluate goes on with it."""

import getpass
import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST, ErrorCode
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

from pipeline.config import Config, flatten
from pipeline.errors import PipelineError
from pipeline.tracking.recorder import Recorder
from pipeline.tracking.store import Store, experiment_id

EXPERIMENT = "DVC_EXP_NAME"  # set by DVC for the stages of `dvc exp run`
BASELINE = "DVC_EXP_BASELINE_REV"

EPOCH_NAMES = {"seconds": "seconds_per_epoch"}


def start_run(store: Store, config: Config, root: Path, stage: str, extra_tags: dict[str, str]) -> Recorder:
    """Open a run for one model, named after the DVC experiment or the recipe, with everything it was configured to be.

    Raises PipelineError if the store does not take it: nothing has been trained yet.
    """
    name = os.environ.get(EXPERIMENT) or f"{config.recipe}-{config.model.name}-seed-{config.seed}"
    tags = run_tags(stage) | {"recipe": config.recipe} | extra_tags
    try:
        run = MlflowClient(store.uri).create_run(experiment_id(store, config.dataset.name), tags=tags, run_name=name)
    except MlflowException as error:
        raise PipelineError(f"the MLflow store {store.uri} does not take a new run: {error}") from None
    recorder = Recorder(store.uri, run.info.run_id, root)
    recorder.params(dict(flatten(config.model_dump(by_alias=True, exclude={"gate"}))))
    return recorder


def continue_run(store: Store, run_id: str | None, root: Path) -> Recorder | None:
    """Go on with a run that this store knows; None if it does not know it, or if it was deleted.

    A store that does not answer is taken to know it: what is recorded then is kept and sent later.
    """
    if run_id is None:
        return None
    recorder = Recorder(store.uri, run_id, root)
    try:
        run = MlflowClient(store.uri).get_run(run_id)
    except MlflowException as error:
        return None if error.error_code == ErrorCode.Name(RESOURCE_DOES_NOT_EXIST) else recorder
    return recorder if run.info.lifecycle_stage == "active" else None


def run_tags(stage: str) -> dict[str, str]:
    """Who ran what from which code: MLflow's own tags, and git's and DVC's names for it."""
    commit = os.environ.get(BASELINE) or _git("rev-parse", "HEAD")
    return {
        "mlflow.user": _user(),
        "mlflow.source.type": "LOCAL",
        "mlflow.source.name": f"python -m pipeline.{stage}",
        "mlflow.source.git.commit": commit,
        "git.commit": commit,
        "git.dirty": str(bool(_git("status", "--porcelain"))).lower(),
        "dvc.experiment": os.environ.get(EXPERIMENT, ""),
    }


def epoch_metrics(epoch: Mapping[str, float], validate_on: str) -> dict[str, float]:
    """An epoch's figures under the names of the MLflow UI's charts.

    What is watched is called by what it is: `test/…` for the recipe that watches the test images.
    """
    watched = "test" if validate_on == "test" else "val"
    return {
        f"{watched}/{name.removeprefix('val_')}"
        if name.startswith("val_")
        else f"train/{EPOCH_NAMES.get(name, name)}": value
        for name, value in epoch.items()
        if name not in ("epoch", "timestamp")
    }


@contextmanager
def system_metrics(recorder: Recorder) -> Iterator[None]:
    """Record the machine's load every second while the block runs (every ten, as by default, a short run has none)."""
    monitor = SystemMetricsMonitor(recorder.run_id, sampling_interval=1, resume_logging=True, tracking_uri=recorder.uri)
    monitor.start()
    try:
        yield
    finally:
        monitor.finish()


def _user() -> str:
    """The user's name, or number where a container gives it no name."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return str(os.getuid())


def _git(*arguments: str) -> str:
    """What git answers, or nothing where there is no git or no repository."""
    try:
        answer = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return answer.stdout.strip()
