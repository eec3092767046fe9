"""MLflow runs of a sweep: one for the whole, and one below it for each trial."""

import contextlib
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from pipeline.core.config import Config
from pipeline.core.records import Provenance
from pipeline.tracking.outbox import RunAddress
from pipeline.tracking.provenance import PATCH
from pipeline.tracking.recorder import Recorder
from pipeline.tracking.runs import NAME, PARENT, continue_run, origin_tags, params_of, run_tags
from pipeline.tracking.store import Store, does_not_record, experiment_id, experiment_name, run_list

SWEEP, TRIAL = "sweep", "sweep.trial"  # tags: the name of a sweep, of its own run, and the name of a trial
COLUMNS = {  # of the list of trials, with widths in pixels
    "tags.`sweep.state`": 110,
    "metrics.`val_accuracy`": 110,
    "metrics.`val_loss`": 90,
    "metrics.`fit_seconds`": 105,
    "metrics.`parameters`": 105,
}
ABOUT = {  # of the experiment, so that thousands of trials are not in the list of trained models
    "mlflow.experimentKind": "custom_model_development",
    "mlflow.note.content": "One run per sweep, and one per trial below it.",
}
MOST = 50_000  # runs that MLflow lists at once
SEEDS = "seeds"  # a tag of a run above those of one configuration: its digest


def has_no_result(tags: Mapping[str, str]) -> bool:
    """Whether a run with these tags is that of a sweep, a trial or several seeds: no result in DVC belongs to it."""
    return not {SWEEP, TRIAL, SEEDS}.isdisjoint(tags)


def named(dataset: str) -> str:
    """The name of the experiment with a dataset's sweeps."""
    return f"{dataset}-sweeps"


def open_sweep(
    store: Store, name: str, dataset: str, root: Path, provenance: Provenance, known: str | None
) -> RunAddress:
    """The run of a sweep: the known one, if the store has it, or a new one.

    Raises PipelineError if the store does not answer or creates none.
    """
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    try:
        experiment = experiment_id(store, named(dataset), ABOUT)
        run = continue_run(store, known, root)
        if run and run.experiment_id in (experiment, None):  # None if the store did not answer just then
            return run._replace(experiment_id=experiment)
        tags = run_tags(provenance) | {NAME: f"sweep {name}", SWEEP: name}
        created = MlflowClient(store.uri).create_run(experiment, tags=tags)
    except MlflowException as error:
        raise does_not_record(store, experiment_name(named(dataset)), error) from None
    return RunAddress(store.uri, created.info.run_id, experiment, root)


def discard_sweep(run: RunAddress) -> None:
    """Delete the run of a sweep that has another one, if the server allows it."""
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    with contextlib.suppress(MlflowException):
        MlflowClient(run.uri).delete_run(run.run_id)


def adopt(run: RunAddress, deleted: Iterable[str]) -> None:
    """Put the runs that are below a sweep's deleted runs below its new one, as far as the store allows."""
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    client = MlflowClient(run.uri)
    with contextlib.suppress(MlflowException):
        for former in deleted:
            for each in client.search_runs([str(run.experiment_id)], f"tags.`{PARENT}` = '{former}'", max_results=MOST):
                client.set_tag(each.info.run_id, PARENT, run.run_id)


def sweep_list(store: Store, dataset: str) -> str:
    """The path of the list of sweeps and their trials."""
    return run_list(store, named(dataset), COLUMNS)


def open_trial(
    store: Store, sweep: RunAddress, name: str, config: Config, params: str, provenance: Provenance, known: str | None
) -> RunAddress:
    """The run of a trial below that of its sweep: the known one of a trial that is started again, or a new one."""
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    if run := continue_run(store, known, sweep.root):
        Recorder(run).tags({NAME: name, TRIAL: name, PARENT: sweep.run_id})  # it has a new number
        return run
    tags = origin_tags(config, provenance, {PARENT: sweep.run_id, TRIAL: name})
    try:
        created = MlflowClient(store.uri).create_run(
            sweep.experiment_id, tags=tags | {NAME: name, "started": time.strftime("%Y-%m-%d %H:%M:%S")}
        )
    except MlflowException as error:
        raise does_not_record(store, experiment_name(named(config.dataset.name)), error) from None
    run = RunAddress(store.uri, created.info.run_id, sweep.experiment_id, sweep.root)
    recorder = Recorder(run)
    recorder.params(params_of(config))
    recorder.text("config/params.yaml", params)
    if provenance.patch:
        recorder.text(PATCH, provenance.patch)
    return run
