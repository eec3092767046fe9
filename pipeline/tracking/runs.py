"""One MLflow run per trained model: train starts it, and evaluate continues it."""

import getpass
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.core import paths
from pipeline.core.config import Config, flatten
from pipeline.core.errors import PipelineError
from pipeline.core.machine import describe_machine, describe_versions
from pipeline.core.process.stage import chosen_backend
from pipeline.core.process.surroundings import computing_settings
from pipeline.core.records import Provenance, TrainingRun
from pipeline.tracking.events import remove_partial_uploads
from pipeline.tracking.outbox import RunAddress
from pipeline.tracking.provenance import EXPERIMENT, EXPERIMENT_TAG, PATCH, REUSED_FROM, commands
from pipeline.tracking.recorder import Recorder
from pipeline.tracking.store import Store, does_not_record, experiment_id, experiment_name
from pipeline.tracking.tags import COMMIT, DVC_HASH, TRAINING, USER

DESCRIPTION = "mlflow.note.content"  # the Markdown that the UI shows at the top of a run's page
BYTES = {"mirrors", "files", "about"}  # the dataset's origin; the run records its digests anyway
SCORED = "test/accuracy"  # only evaluated runs have this metric
CUT = 250  # characters: MLflow's smallest limit of a param
PARENT, NAME = "mlflow.parentRunId", "mlflow.runName"
RESTORED_FROM = "restored.from"  # a tag: the ID of the run that is not in this store
EPOCH_NAMES = {"seconds": "seconds_per_epoch"}

_monitors: dict[RunAddress, Any] = {}  # the system monitors that run in this process, by run


def start_run(
    store: Store,
    config: Config,
    root: Path,
    provenance: Provenance,
    extra_tags: Mapping[str, str],
    again: bool = False,
) -> RunAddress:
    """Start a run for one model, and record its configuration and its code.

    If the training is started `again`, its earlier process may have started the run already.
    Raises PipelineError if the store does not create the run, because nothing has been trained yet.
    """
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    started = time.strftime("%Y-%m-%d %H:%M:%S")
    tags = origin_tags(config, provenance, extra_tags)
    try:
        experiment = experiment_id(store, config.dataset.name)
        client = MlflowClient(store.uri)
        query = f"tags.`{TRAINING}` = '{tags.get(TRAINING)}'"
        found = client.search_runs([experiment], query, max_results=1) if again else []
        if found and (resumed := resume_run(store, found[0].info.run_id, config, root, provenance, extra_tags)):
            return resumed
        run = client.create_run(experiment, tags=tags | {"started": started})
    except MlflowException as error:
        raise does_not_record(store, experiment_name(config.dataset.name), error) from None
    opened = RunAddress(store.uri, run.info.run_id, experiment, root)
    record_origin(Recorder(opened), config, provenance)
    return opened


def resume_run(
    store: Store,
    run_id: str | None,
    config: Config,
    root: Path,
    provenance: Provenance,
    extra_tags: Mapping[str, str],
) -> RunAddress | None:
    """Continue the run of a killed training, with the current origin of its code and configuration.

    None if the store does not have it. None, too, and the run has ended, if it is of another experiment or has other
    params, which MLflow does not change: the new run gets all epochs.
    """
    from mlflow import MlflowClient

    run = continue_run(store, run_id, root)
    if run is None or run.experiment_id is None:  # the store does not answer
        return run
    recorder = Recorder(run)
    known = MlflowClient(store.uri).get_run(run.run_id).data.params
    here = run.experiment_id == experiment_id(store, config.dataset.name)
    if not here or any(map(differs, known.values(), map(params_of(config).get, known))):
        recorder.status("KILLED")
        return None
    recorder.tags(origin_tags(config, provenance, extra_tags))
    record_origin(recorder, config, provenance)
    return run


def differs(known: str, value: str | None) -> bool:
    """Whether a param of a run has another value; MLflow may have cut a long one, and a user may have added one."""
    return value not in (known, None) and not (len(known) >= CUT and value.startswith(known))


def origin_tags(config: Config, provenance: Provenance, extra_tags: Mapping[str, str]) -> dict[str, str]:
    """Tags for the configuration, the code and the machine of a run, and its name."""
    return run_tags(provenance) | {NAME: run_name(config), "recipe": config.recipe, **extra_tags}


def params_of(config: Config) -> dict[str, str]:
    """The configuration as MLflow's params."""
    values = config.model_dump(by_alias=True, exclude={"gate": True, "dataset": BYTES})
    return {key: str(value) for key, value in flatten(values)}


def record_origin(recorder: Recorder, config: Config, provenance: Provenance) -> None:
    """Record the configuration and the code of a run, and how to reproduce it."""
    recorder.params(params_of(config))
    for path in (paths.COMPOSED, paths.PARAMS):
        recorder.artifact(path, "config")
    if provenance.patch:
        recorder.text(PATCH, provenance.patch)
    describe_run(recorder, "Not evaluated yet.", commands(provenance, recorder.run_id, chosen_backend()))


def find_restored(store: Store, trained: TrainingRun, config: Config, root: Path) -> RunAddress | None:
    """The run that an earlier evaluation recorded for a model whose own run is not in this store.

    None if there is none, or if the store does not answer.
    """
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    query = f"tags.`{RESTORED_FROM}` = '{trained.run_id}' and tags.`dvc.model` = '{trained.model_md5}'"
    try:
        experiment = experiment_id(store, config.dataset.name)
        found = MlflowClient(store.uri).search_runs([experiment], query, max_results=1)
    except (MlflowException, PipelineError):
        return None
    return RunAddress(store.uri, found[0].info.run_id, experiment, root) if found else None


def link_run(store: Store, run_id: str, config: Config, root: Path, provenance: Provenance) -> RunAddress | None:
    """A run for a DVC experiment that reuses the model of an earlier run; None if that run is this experiment's own.

    The UI shows it below the earlier run, which has the model. A second evaluation continues it.
    """
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    client, experiment = MlflowClient(store.uri), os.environ.get(EXPERIMENT)
    if not experiment:
        return None
    try:
        run = client.get_run(run_id)
        if run.data.tags.get(EXPERIMENT_TAG) == experiment or SCORED not in run.data.metrics:
            return None
        query = f"tags.`{PARENT}` = '{run_id}' and tags.`{EXPERIMENT_TAG}` = '{experiment}'"
        found = client.search_runs([run.info.experiment_id], query, max_results=1)
    except MlflowException:  # the store does not answer: events are kept for the known run
        return None
    if found:
        return RunAddress(store.uri, found[0].info.run_id, found[0].info.experiment_id, root)
    same = ("machine", "versions", "environment", "device", "devices", "precision", "keras.backend", DVC_HASH)
    kept = {name: run.data.tags.get(name, "") for name in same}
    return start_run(store, config, root, provenance, kept | {PARENT: run_id, "reused": "true", REUSED_FROM: run_id})


def look_up_packages() -> None:
    """Make MLflow list the installed packages now: logging a model requires it, and it takes a second per process."""
    from mlflow.utils.requirements_utils import warn_dependency_requirement_mismatches

    warn_dependency_requirement_mismatches(["mlflow"])


def run_name(config: Config) -> str:
    """A recognizable name: recipe, network, seed, and the name of the DVC experiment if there is one."""
    name, experiment = f"{config.recipe}-{config.model.name}-seed-{config.seed}", os.environ.get(EXPERIMENT)
    return f"{name} ({experiment})" if experiment else name


def describe_run(recorder: Recorder, text: str, reproduce: list[str]) -> None:
    """Set the description at the top of the run's page: a text in Markdown, and the commands that reproduce the run."""
    code = "\n".join(reproduce)
    recorder.tags({DESCRIPTION: f"{text}\n\nTo reproduce this run in a clone of the repository:\n\n```\n{code}\n```\n"})


def continue_run(store: Store, run_id: str | None, root: Path) -> RunAddress | None:
    """Continue a run in this store; None if the store does not have it, or if it was deleted.

    If the store does not answer, the run is assumed to exist: its events are kept and sent later.
    """
    if run_id is None:
        return None
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST, ErrorCode

    client = MlflowClient(store.uri)
    try:
        info = client.get_run(run_id).info
        remove_partial_uploads(client, info)
    except MlflowException as error:
        gone = error.error_code == ErrorCode.Name(RESOURCE_DOES_NOT_EXIST)
        return None if gone else RunAddress(store.uri, run_id, None, root)
    return RunAddress(store.uri, run_id, info.experiment_id, root) if info.lifecycle_stage == "active" else None


def run_tags(provenance: Provenance) -> dict[str, str]:
    """Tags for the user, the code, the DVC experiment and the machine, including the tags that MLflow's UI reads."""
    return {
        USER: user_name(),
        "mlflow.source.type": "LOCAL",
        "mlflow.source.name": "python -m pipeline.stages.train",
        "mlflow.source.git.commit": provenance.commit,
        COMMIT: provenance.commit,
        "git.dirty": str(bool(provenance.patch)).lower(),
        EXPERIMENT_TAG: os.environ.get(EXPERIMENT, ""),
        "machine": describe_machine(),
        "versions": describe_versions(),
        "environment": computing_settings(),
    }


def epoch_metrics(epoch: Mapping[str, float], validate_on: str) -> dict[str, float]:
    """An epoch's metrics under the names of the MLflow UI's charts.

    Validation metrics are named after their images: `test/…` for the recipe that validates on the test images.
    """
    prefix = "test" if validate_on == "test" else "val"
    return {
        f"{prefix}/{name.removeprefix('val_')}"
        if name.startswith("val_")
        else f"train/{EPOCH_NAMES.get(name, name)}": value
        for name, value in epoch.items()
        if name not in ("epoch", "timestamp")
    }


@contextmanager
def system_metrics(recorder: Recorder) -> Iterator[None]:
    """Record the machine's load every second inside the block, and at its end."""
    recorder.execute(_start_monitor, recorder.run)
    try:
        yield
    finally:
        recorder.execute(_stop_monitor, recorder.run)


def _start_monitor(run: RunAddress) -> None:
    from pipeline.tracking.system_metrics import LoadMonitor

    _monitors[run] = LoadMonitor(run.uri, run.run_id)
    _monitors[run].start()


def _stop_monitor(run: RunAddress) -> None:
    if run in _monitors:  # otherwise it failed to start, which was reported
        _monitors.pop(run).finish()


def user_name() -> str:
    """The user's name, or the user ID if a container defines no name for it."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return str(os.getuid())
