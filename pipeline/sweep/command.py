"""Run a sweep from its file to the finals."""

import logging
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import optuna
import yaml
from filelock import FileLock
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from pipeline.core import paths
from pipeline.core.records import Provenance
from pipeline.stages.compose.composition import read_params
from pipeline.sweep.cluster import Workers, train_on_cluster
from pipeline.sweep.crew import Crew, Report
from pipeline.sweep.finals import Result, open_finals, results
from pipeline.sweep.search import LOCK, Search
from pipeline.sweep.settings import Settings, prepare_images
from pipeline.sweep.shares import Share
from pipeline.sweep.space import read_sweep
from pipeline.sweep.study import agree, best, check_choice, counted, figures, lost, noted, open_study, started_with
from pipeline.sweep.summary import summary
from pipeline.sweep.winner import check_recipe, edits
from pipeline.tracking.outbox import RunAddress, say, send_unsent
from pipeline.tracking.provenance import find_provenance
from pipeline.tracking.recorder import Recorder
from pipeline.tracking.store import Store, open_store
from pipeline.tracking.sweeps import adopt, discard_sweep, open_sweep

RUN = "run"  # the study's attribute with the ID of its MLflow run
FORMER = "former runs"  # the study's attribute with the IDs of its runs that were deleted
FOLDER = ".sweeps"  # in the project: the study and the images of each sweep


def prepare(name: str, study_name: str, trials: int | None, recipe: str | None, chosen: int | None) -> Search:
    """Read and check a sweep, and open or create its study and its MLflow run.

    Raises PipelineError if the file or an option is invalid, or if the study or the run cannot be opened.
    """
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    optuna.logging.set_verbosity(logging.ERROR)
    sweep = read_sweep(name)
    sweep = sweep.model_copy(update={"trials": trials or sweep.trials})
    if recipe is not None:
        check_recipe(recipe)
    root = paths.project_root()
    folder = root / FOLDER / study_name
    settings = Settings(name, sweep, started_with(study_name, folder))
    digest = settings.check()
    if changed := edits(read_params(paths.PARAMS), settings.base):
        print(
            f"{paths.PARAMS} has changed since the study was started ({', '.join(changed)}): the study goes on with "
            "the earlier values; --study NAME starts a new one"
        )
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / LOCK):  # two commands at once open the same study and run
        study = open_study(study_name, sweep, folder)
        agree(study, sweep, settings.base, digest)
        check_choice(study, sweep, chosen, ended=False)
        prepare_images(settings.current, folder)
        store, provenance = open_store(root), find_provenance()
        run = agreed_run(study, store, settings, provenance)
        adopt(run, study.user_attrs.get(FORMER, []))  # each command tries what an earlier one could not finish
    send(root)
    return Search(sweep, settings, study, folder, store, run, provenance, threading.Lock(), threading.Event())


def agreed_run(study: Study, store: Store, settings: Settings, provenance: Provenance) -> RunAddress:
    """The MLflow run of a sweep, also if several machines start the sweep at once."""
    dataset, root, known = settings.current.dataset.name, paths.project_root(), study.user_attrs.get(RUN)
    run = open_sweep(store, study.study_name, dataset, root, provenance, known)
    if run.run_id == known:
        return run
    recorder = Recorder(run)  # before others can know the run: it may be the last that this command does
    recorder.text("config/sweep.yaml", settings.path.read_text(encoding="utf-8"))
    recorder.text("config/params.yaml", yaml.safe_dump(settings.base, sort_keys=False))
    if known:
        study.set_user_attr(FORMER, [*study.user_attrs.get(FORMER, []), known])
    agreed = noted(study, RUN, run.run_id, known)
    if agreed == run.run_id:
        return run
    discard_sweep(run)
    return open_sweep(store, study.study_name, dataset, root, provenance, agreed)


def train(search: Search, shares: list[Share]) -> None:
    """Train the trials that are left, one for each share of the machine side by side."""
    minutes = search.sweep.minutes
    with progress(search) as report:
        end = None if minutes is None else time.monotonic() + 60 * minutes
        Crew(search, end, report).run(shares[: search.sweep.trials])


@contextmanager
def recorded(search: Search) -> Iterator[None]:
    """Record whether the sweep is running, failed or was interrupted."""
    recorder = Recorder(search.run)
    recorder.status("RUNNING")
    try:
        yield
    except BaseException as error:
        recorder.status("FAILED" if isinstance(error, Exception) else "KILLED")
        raise


def train_by_ray(address: str, search: Search, command: list[str], workers: Workers) -> None:
    """Train the trials that are left, and the finals, by workers on a Ray cluster, and show their progress here."""
    watched, reported = search, {trial.number for trial in finished(search)}
    with ExitStack() as shown:
        report = shown.enter_context(progress(search))

        def watch() -> None:
            nonlocal watched, report
            for trial in finished(watched):
                if trial.number not in reported:
                    reported.add(trial.number)
                    report(trial)
            if watched is search and len(finished(search)) >= search.sweep.trials and plays_finals(search):
                shown.close()
                watched = open_finals(search)
                reported.clear()
                report = shown.enter_context(progress(watched))

        train_on_cluster(address, search, command, workers, watch)


def finished(search: Search) -> list[FrozenTrial]:
    """The trials that have ended, except for those that were or will be started again."""
    again = {trial.number for trial in lost(search.study)}
    ended = [trial for trial in counted(search.study.get_trials(deepcopy=False)) if trial.state.is_finished()]
    return [trial for trial in ended if trial.number not in again]


@contextmanager
def progress(search: Search) -> Iterator[Report]:
    """Show a progress bar with the best so far, and a line for each trial that ends."""
    console = Console(markup=False, highlight=False)
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(TextColumn("{task.description}"), *columns, console=console) as bar:
        task = bar.add_task("sweep", total=search.sweep.trials)

        def report(trial: FrozenTrial | None) -> None:
            if trial:
                console.print(f"{search.name_of(trial)}: {summary(trial, search.sweep)}", soft_wrap=True)
            trials = counted(search.study.get_trials(deepcopy=False))
            running = sum(each.state == TrialState.RUNNING for each in trials)
            pruned = sum(each.state == TrialState.PRUNED for each in trials)
            found = best(search.study, search.sweep)
            text = f"best {figures(found[0].values, search.sweep)}" if found else "no complete trial"
            done = sum(each.state.is_finished() for each in trials)
            bar.update(task, completed=done, description=f"{text}, {running} running, {pruned} pruned")

        report(None)
        yield report


def send(root: Path) -> None:
    """Send what earlier commands could not record, and print a line for each failure."""
    for problem in send_unsent(root)[1]:
        say(problem)


def play_finals(search: Search, shares: list[Share]) -> list[Result]:
    """Train the best trials with further seeds, unless a cluster has, and return their results, the best first."""
    if not plays_finals(search):
        return []
    finals = open_finals(search)
    if shares:
        train(finals, shares)
    found = results(finals)
    if missing := (finals.finalists or {}).keys() - {each.name for each in found}:
        print(f"Not compared, because trainings with further seeds failed or are missing: {', '.join(sorted(missing))}")
    return found


def plays_finals(search: Search) -> bool:
    """Whether there are trials to compare over further seeds."""
    return search.sweep.has_finals and bool(best(search.study, search.sweep))
