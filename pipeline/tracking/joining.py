"""Which DVC experiments have a run in MLflow, which runs git and DVC know of, and what is on one side only."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal, NamedTuple

from mlflow import MlflowClient
from mlflow.entities import Run, ViewType
from mlflow.exceptions import MlflowException

from pipeline import paths
from pipeline.errors import PipelineError, first_line
from pipeline.repository import Reader, at_commit, check_repository, commits_of, experiments, in_folder
from pipeline.tracking.provenance import EXPERIMENT_TAG, REUSED_FROM
from pipeline.tracking.store import Store, experiment_name

PAGE = 1000  # runs that the store is asked for at once
State = Literal["joined", "only in DVC", "only in MLflow"]


class Result(NamedTuple):
    """What git and DVC know by a name: a DVC experiment, or what is in the working tree or was committed."""

    name: str
    experiment: bool
    run_id: str | None  # of the MLflow run that its reports/metrics.json names


class Row(NamedTuple):
    """A result and its run, or one of the two alone."""

    result: str
    run_name: str
    run_id: str
    state: State
    reason: str
    remedy: str


def join(store: Store) -> list[Row]:
    """All experiments and runs, and what the working tree holds. Raises PipelineError without git or the store."""
    check_repository()
    runs = all_runs(store)
    results = [result for result in (working_tree(), *find_experiments()) if result.experiment or result.run_id]
    pairs = [(result, run_of(result, runs)) for result in results]
    found = {run.info.run_id: run for _, run in pairs if run is not None}
    sources = {run.data.tags.get(REUSED_FROM): ("", f"{run.info.run_name} has its model") for run in found.values()}
    known = sources | {result.run_id: (result.name, "") for result in find_committed()}
    names = {result.name for result in results if result.experiment}
    rows = [row_of(result, run, runs) for result, run in pairs]
    return rows + [row_of_run(run, names, known.get(run.info.run_id)) for run in others(store, runs, found)]


def others(store: Store, runs: Mapping[str, Run], found: Mapping[str, Run]) -> list[Run]:
    """The runs beside those that were found, where this project's runs are: a shared store has other projects'."""
    client = MlflowClient(store.uri)
    names = {experiment_name(path.stem) for path in (paths.CONF / "dataset").glob("*.yaml")}
    try:
        named = [client.get_experiment_by_name(name) for name in names]
    except MlflowException as error:
        raise does_not_list(store, error) from None
    places = {place.experiment_id for place in named if place} | {run.info.experiment_id for run in found.values()}
    return [
        run for key, run in runs.items() if key not in found and is_active(run) and run.info.experiment_id in places
    ]


def all_runs(store: Store) -> dict[str, Run]:
    """Every run in the store by its id, deleted ones included, the newest first."""
    client, token = MlflowClient(store.uri), None
    runs: dict[str, Run] = {}
    try:
        places = [found.experiment_id for found in client.search_experiments()]
        while places:
            page = client.search_runs(places, "", ViewType.ALL, PAGE, page_token=token)
            runs |= {run.info.run_id: run for run in page}
            token = page.token
            if not token:
                break
    except MlflowException as error:
        raise does_not_list(store, error) from None
    return runs


def does_not_list(store: Store, error: MlflowException) -> PipelineError:
    """What to raise where the store does not answer."""
    return PipelineError(f"the MLflow store {store.uri} does not list its runs: {first_line(error)}")


def working_tree() -> Result:
    """What the working tree holds."""
    return Result("the working tree", False, run_named(in_folder(Path())))


def find_experiments() -> Iterator[Result]:
    """The DVC experiments of this clone."""
    for name, commit in experiments():
        yield Result(name, True, run_named(at_commit(commit)))


def find_committed() -> list[Result]:
    """What was committed, in any branch."""
    return [Result(f"commit {commit[:7]}", False, run_named(at_commit(commit))) for commit in commits_of(paths.METRICS)]


def run_named(read: Reader) -> str | None:
    """The MLflow run that reports/metrics.json names; None where there is none, or none that can be read."""
    try:
        return str(json.loads(read(paths.METRICS) or b"")["mlflow"]["run_id"])
    except (ValueError, KeyError, TypeError):
        return None


def run_of(result: Result, runs: Mapping[str, Run]) -> Run | None:
    """The run of a result: the one that its metrics.json names, or else the newest that names the experiment."""
    named = runs.get(result.run_id or "")
    if named is not None and is_active(named):
        return named
    own = (run for run in runs.values() if is_active(run) and run.data.tags.get(EXPERIMENT_TAG) == result.name)
    return next(own, None) if result.experiment else None


def is_active(run: Run) -> bool:
    """Whether a run is not deleted."""
    return bool(run.info.lifecycle_stage == "active")


def row_of(result: Result, run: Run | None, runs: Mapping[str, Run]) -> Row:
    """A result that git and DVC know, and its run if it has one."""
    if run is not None:
        return Row(result.name, run.info.run_name, run.info.run_id, "joined", how_joined(result, run, runs), "")
    again = "dvc repro --force --single-item evaluate"
    if result.experiment:
        again = f"dvc exp apply {result.name} && dvc exp run --force --single-item evaluate --name {result.name}"
    if result.run_id is None:
        return Row(result.name, "", "", "only in DVC", "it names no run", f"`{again}` gives it one")
    if result.run_id in runs:
        restore = f"`mlflow runs restore --run-id {result.run_id}` brings it back"
        return Row(result.name, "", result.run_id, "only in DVC", "its run was deleted", restore)
    return Row(
        result.name, "", result.run_id, "only in DVC", "this store has no such run", f"`{again}` gives it one here"
    )


def how_joined(result: Result, run: Run, runs: Mapping[str, Run]) -> str:
    """Whose model it is, where it is not the run's own."""
    source = run.data.tags.get(REUSED_FROM)
    if source is None and result.experiment and run.data.tags.get(EXPERIMENT_TAG) != result.name:
        return "nothing had to run: it is the run of an earlier one"
    if source is None:
        return "restored from another store" if "restored.from" in run.data.tags else ""
    return f"reuses the model of {runs[source].info.run_name if source in runs else source}"


def row_of_run(run: Run, experiments_here: set[str], known: tuple[str, str] | None) -> Row:
    """A run that is nobody's own: `known` is what it was committed as, and why else something knows it."""
    name, reason, remedy = run.info.run_name, "", f"`mlflow runs delete --run-id {run.info.run_id}` if it is not wanted"
    if known is not None:
        return Row(known[0], name, run.info.run_id, "joined", known[1], "")
    experiment = run.data.tags.get(EXPERIMENT_TAG)
    if run.info.status != "FINISHED":
        reason = f"not finished ({run.info.status}): it still runs, or its training failed or was killed"
    elif experiment in experiments_here:
        reason = f"the experiment {experiment} has another run by now"
    elif experiment:
        reason = f"this clone has no experiment {experiment}: it was removed, or is elsewhere"
        remedy = f"`dvc exp pull REMOTE {experiment}`, or {remedy}"
    else:
        reason = "a `dvc repro` whose results were replaced before they were committed"
    return Row("", name, run.info.run_id, "only in MLflow", reason, remedy)
