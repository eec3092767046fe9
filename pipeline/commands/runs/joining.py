"""Match the results in git and DVC with MLflow runs, and find the ones that exist on one side only."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal, NamedTuple

from mlflow import MlflowClient
from mlflow.entities import Run, ViewType
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST, ErrorCode

from pipeline.core import paths
from pipeline.core.errors import PipelineError, first_line
from pipeline.repository.dvc import experiments
from pipeline.repository.git import check_repository, commits_of
from pipeline.repository.reading import Reader, at_commit, in_folder, read_evaluation
from pipeline.tracking.provenance import EXPERIMENT_TAG, REUSED_FROM
from pipeline.tracking.runs import user_name
from pipeline.tracking.store import Store, experiment_name
from pipeline.tracking.sweeps import has_no_result
from pipeline.tracking.tags import USER

PAGE = 200  # runs per request: with more, a busy server may take longer than MLflow's client waits
State = Literal["joined", "only in DVC", "only in MLflow"]


class Result(NamedTuple):
    """A named result in git or DVC: a DVC experiment, a commit, or the working tree."""

    name: str
    experiment: bool
    run_id: str | None  # the MLflow run that its evaluation names


class Row(NamedTuple):
    """A result and its run, or either of them alone."""

    result: str
    run_name: str
    run_id: str
    state: State
    reason: str
    remedy: str


def join(store: Store) -> list[Row]:
    """Match the working tree, all experiments and all runs; of a shared store's runs, the user's own.

    Raises PipelineError without git or the store.
    """
    check_repository()
    results = [result for result in (working_tree(), *find_experiments()) if result.experiment or result.run_id]
    runs = all_runs(store, "" if store.file else own_runs())
    runs |= named_runs(store, {result.run_id for result in results if result.run_id} - runs.keys())
    pairs = [(result, run_of(result, runs)) for result in results]
    found = {run.info.run_id: run for _, run in pairs if run is not None}
    sources = {run.data.tags.get(REUSED_FROM): ("", f"{run.info.run_name} reuses its model") for run in found.values()}
    known = sources | {result.run_id: (result.name, "") for result in find_committed()}
    names = {result.name for result in results if result.experiment}
    rows = [row_of(result, run, runs) for result, run in pairs]
    return rows + [row_of_run(run, names, known.get(run.info.run_id)) for run in others(store, runs, found)]


def others(store: Store, runs: Mapping[str, Run], found: Mapping[str, Run]) -> list[Run]:
    """The unmatched runs in this project's MLflow experiments: a shared store also has other projects' runs."""
    client = MlflowClient(store.uri)
    names = {experiment_name(path.stem) for path in (paths.CONF / "dataset").glob("*.yaml")}
    try:
        named = [client.get_experiment_by_name(name) for name in names]
    except MlflowException as error:
        raise does_not_list(store, error) from None
    places = {place.experiment_id for place in named if place} | {run.info.experiment_id for run in found.values()}
    return [
        run
        for key, run in runs.items()
        if key not in found and is_active(run) and run.info.experiment_id in places and not has_no_result(run.data.tags)
    ]


def own_runs() -> str:
    """The filter for the runs of this user: the experiments of other users' runs are in their clones."""
    name = user_name()
    quote = '"' if "'" in name else "'"
    return f"tags.`{USER}` = {quote}{name}{quote}"


def named_runs(store: Store, run_ids: set[str]) -> dict[str, Run]:
    """The runs with these IDs that the store has."""
    client, runs = MlflowClient(store.uri), {}
    for run_id in run_ids:
        try:
            runs[run_id] = client.get_run(run_id)
        except MlflowException as error:
            if error.error_code != ErrorCode.Name(RESOURCE_DOES_NOT_EXIST):
                raise does_not_list(store, error) from None
    return runs


def all_runs(store: Store, query: str) -> dict[str, Run]:
    """Every run in the store that matches a filter by its ID, newest first, including deleted runs."""
    client, token = MlflowClient(store.uri), None
    runs: dict[str, Run] = {}
    try:
        places = [found.experiment_id for found in client.search_experiments()]
        while places:
            page = client.search_runs(places, query, ViewType.ALL, PAGE, page_token=token)
            runs |= {run.info.run_id: run for run in page}
            token = page.token
            if not token:
                break
    except MlflowException as error:
        raise does_not_list(store, error) from None
    return runs


def does_not_list(store: Store, error: MlflowException) -> PipelineError:
    """The error for a store that does not answer."""
    return PipelineError(f"cannot list the runs in the MLflow store {store.uri}: {first_line(error)}")


def working_tree() -> Result:
    """The result in the working tree."""
    return Result("the working tree", False, run_named(in_folder(Path())))


def find_experiments() -> Iterator[Result]:
    """The DVC experiments in this clone."""
    for name, commit in experiments():
        yield Result(name, True, run_named(at_commit(commit)))


def find_committed() -> list[Result]:
    """The committed results of all branches."""
    commits = commits_of(paths.EVALUATION, paths.METRICS)
    return [Result(f"commit {commit[:7]}", False, run_named(at_commit(commit))) for commit in commits]


def run_named(read: Reader) -> str | None:
    """The MLflow run that an evaluation names; None if the file is missing, unreadable or names none."""
    found = read_evaluation(read)
    try:
        return str(json.loads(found[1])["mlflow"]["run_id"]) if found else None
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def run_of(result: Result, runs: Mapping[str, Run]) -> Run | None:
    """The run of a result: the one that its evaluation names, or else the experiment's newest run."""
    named = runs.get(result.run_id or "")
    if named is not None and is_active(named):
        return named
    own = (run for run in runs.values() if is_active(run) and run.data.tags.get(EXPERIMENT_TAG) == result.name)
    return next(own, None) if result.experiment else None


def is_active(run: Run) -> bool:
    """Whether a run is not deleted."""
    return bool(run.info.lifecycle_stage == "active")


def row_of(result: Result, run: Run | None, runs: Mapping[str, Run]) -> Row:
    """The row of a result, with its run if it has one."""
    if run is not None:
        return Row(result.name, run.info.run_name, run.info.run_id, "joined", how_joined(result, run, runs), "")
    create = "dvc repro --force --single-item evaluate"
    if result.experiment:
        create = f"dvc exp apply {result.name} && dvc exp run --force --single-item evaluate --name {result.name}"
    if result.run_id is None:
        return Row(result.name, "", "", "only in DVC", "it names no run", f"`{create}` creates one")
    if result.run_id in runs:
        restore = f"`mlflow runs restore --run-id {result.run_id}` restores it"
        return Row(result.name, "", result.run_id, "only in DVC", "its run was deleted", restore)
    return Row(
        result.name, "", result.run_id, "only in DVC", "its run is not in this store", f"`{create}` creates one here"
    )


def how_joined(result: Result, run: Run, runs: Mapping[str, Run]) -> str:
    """The origin of a matched run's model; empty if the run trained it itself."""
    source = run.data.tags.get(REUSED_FROM)
    if source is None and result.experiment and run.data.tags.get(EXPERIMENT_TAG) != result.name:
        return "no stage had to run: this is the run of an earlier result"
    if source is None:
        return "restored from another store" if "restored.from" in run.data.tags else ""
    return f"reuses the model of {runs[source].info.run_name if source in runs else source}"


def row_of_run(run: Run, experiments_here: set[str], known: tuple[str, str] | None) -> Row:
    """The row of a run without a current result; `known` is the commit that names it, or the use of its model."""
    name, reason, remedy = run.info.run_name, "", f"`mlflow runs delete --run-id {run.info.run_id}` if not needed"
    if known is not None:
        return Row(known[0], name, run.info.run_id, "joined", known[1], "")
    experiment = run.data.tags.get(EXPERIMENT_TAG)
    if run.info.status != "FINISHED":
        reason = f"not finished ({run.info.status}): its training is still running, failed or was killed"
    elif experiment in experiments_here:
        reason = f"the experiment {experiment} now has another run"
    elif experiment:
        reason = f"this clone has no experiment {experiment}: it was removed, or is in another clone"
        remedy = f"`dvc exp pull REMOTE {experiment}`, or {remedy}"
    else:
        reason = "a `dvc repro` whose results were replaced before they were committed"
    return Row("", name, run.info.run_id, "only in MLflow", reason, remedy)
