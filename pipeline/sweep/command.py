"""Run a sweep from its file to the winner."""

import logging
import os
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import optuna
from filelock import FileLock
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from pipeline.core import paths
from pipeline.core.errors import PipelineError
from pipeline.core.records import Provenance
from pipeline.stages.compose.composition import read_params
from pipeline.sweep.charts import save_charts
from pipeline.sweep.cluster import Workers, train_on_cluster
from pipeline.sweep.crew import Crew, Report
from pipeline.sweep.finals import CURRENT, Result, open_finals, results
from pipeline.sweep.search import LOCK, Search, name_of
from pipeline.sweep.settings import Settings, prepare_images
from pipeline.sweep.shares import Share
from pipeline.sweep.space import read_sweep
from pipeline.sweep.study import (
    AGREEING,
    VARIABLE,
    agree,
    best,
    counted,
    figures,
    lost,
    open_study,
    ranked,
    started_with,
)
from pipeline.sweep.summary import ALPHA, Table, best_table, described, finals_table, states, summary
from pipeline.sweep.winner import apply, check_recipe, edits, recipe_file, write_recipe
from pipeline.tracking.outbox import RunAddress, say, send_unsent
from pipeline.tracking.provenance import find_provenance
from pipeline.tracking.recorder import Recorder
from pipeline.tracking.runs import DESCRIPTION
from pipeline.tracking.store import Store, open_store, page
from pipeline.tracking.sweeps import discard_sweep, open_sweep, sweep_list

RUN = "run"  # the study's attribute with the ID of its MLflow run
FOLDER = ".sweeps"  # in the project: the study and the images of each sweep


def prepare(name: str, study_name: str, trials: int | None, recipe: str | None) -> Search:
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
        config = settings.config({})
        prepare_images(config, folder)
        store, provenance = open_store(root), find_provenance()
        run = agreed_run(study, store, config.dataset.name, provenance)
    send(root)
    return Search(sweep, settings, study, folder, store, run, provenance, threading.Lock(), threading.Event())


def agreed_run(study: Study, store: Store, dataset: str, provenance: Provenance) -> RunAddress:
    """The MLflow run of a sweep, also if several machines start the sweep at once: the last one that they noted."""
    root, known = paths.project_root(), study.user_attrs.get(RUN)
    run = open_sweep(store, study.study_name, dataset, root, provenance, known)
    if run.run_id == known:
        return run
    if study.user_attrs.get(RUN) == known:
        study.set_user_attr(RUN, run.run_id)
        if VARIABLE in os.environ:
            time.sleep(AGREEING)
    agreed = study.user_attrs[RUN]
    if agreed == run.run_id:
        return run
    discard_sweep(run)
    return open_sweep(store, study.study_name, dataset, root, provenance, agreed)


def train(search: Search, shares: list[Share]) -> None:
    """Train the trials that are left, one for each share of the machine side by side."""
    minutes = search.sweep.minutes
    with recorded(search), progress(search) as report:
        Crew(search, None if minutes is None else time.monotonic() + 60 * minutes, report).run(shares)


@contextmanager
def recorded(search: Search) -> Iterator[None]:
    """Record whether the sweep is running or was interrupted."""
    recorder = Recorder(search.run)
    recorder.status("RUNNING")
    try:
        yield
    except BaseException:
        recorder.status("KILLED")
        raise


def train_by_ray(address: str, search: Search, command: list[str], workers: Workers) -> None:
    """Train the trials that are left, and the finals, by workers on a Ray cluster, and show their progress here."""
    watched, reported = search, {trial.number for trial in finished(search)}
    with recorded(search), ExitStack() as shown:
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

        def report(trial: FrozenTrial) -> None:
            trials = counted(search.study.get_trials(deepcopy=False))
            console.print(f"{search.name_of(trial)}: {summary(trial, search.sweep)}")
            running = sum(each.state == TrialState.RUNNING for each in trials)
            pruned = sum(each.state == TrialState.PRUNED for each in trials)
            found = best(search.study, search.sweep)
            text = f"best {figures(found[0].values, search.sweep)}" if found else "no complete trial"
            done = sum(each.state.is_finished() for each in trials)
            bar.update(task, completed=done, description=f"{text}, {running} running, {pruned} pruned")

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


class Winner(NamedTuple):
    """The settings that a sweep recommends."""

    name: str
    settings: dict[str, Any]
    figures: str
    run_id: str  # of the trial; empty for the current settings


def check_choice(search: Search, chosen: int | None) -> None:
    """Raise PipelineError if the chosen trial is not complete."""
    if chosen is not None and chosen not in {trial.number for trial in ranked(search.study, search.sweep)}:
        raise PipelineError(f"--choose {chosen}: trial {chosen} is not complete, or repeats another one")


def winner_of(search: Search, finals: list[Result], chosen: int | None) -> Winner:
    """The chosen trial, or else the best finalist, or without finals the best trial by the first objective.

    Raises PipelineError if no trial is complete.
    """
    trials = {trial.number: trial for trial in ranked(search.study, search.sweep)}
    if not trials:
        raise PipelineError(f"no trial is complete ({states(search)})")
    if finals and chosen is None:
        first = finals[0]
        run_id = next((each.user_attrs["run_id"] for each in trials.values() if name_of(each) == first.name), "")
        return Winner(first.name, first.settings, described(first, search.sweep), run_id)
    trial = best(search.study, search.sweep)[0] if chosen is None else trials[chosen]
    attributes = trial.user_attrs
    return Winner(
        name_of(trial), attributes["settings"], figures(trial.values, search.sweep), attributes.get("run_id", "")
    )


def conclude(search: Search, finals: list[Result], chosen: int | None, adopt: bool, recipe: str | None) -> None:
    """Record and print the best trials, and print what to change in params.yaml, or write it there or into a recipe.

    Raises PipelineError if no trial is complete.
    """
    console = Console(markup=False, highlight=False)
    try:
        winner = winner_of(search, finals, chosen)
    except PipelineError:
        Recorder(search.run).status("FAILED")
        raise
    tables = [
        best_table(search, best(search.study, search.sweep), finals),
        *([finals_table(search, finals)] if finals else []),
    ]
    for table in tables:
        console.print(table.on_terminal())
    charts = save_charts(search.study, search.sweep, search.folder, search.about, tables)
    record(search, winner, finals, tables, charts)
    where = f"experiments/{search.run.experiment_id}/runs/{search.run.run_id}"
    trials = sweep_list(search.store, search.settings.config({}).dataset.name)
    print(f"{states(search)}. The sweep is at {page(search.store, where)}")
    print(f"Its trials are at {page(search.store, trials)}")
    print(f"{charts[0].relative_to(search.run.root)} has charts and tables, also without a network")
    if winner.name == CURRENT:
        why = "is better than the current settings" if len(finals) > 1 else "completed its trainings"
        print(f"No other finalist {why}: there is nothing to change")
    else:
        if doubt := next((each for each in finals if each.name == CURRENT and each.p_worse >= ALPHA), None):
            print(f"Chance may explain that {winner.name} is better than the current settings (p {doubt.p_worse:.2g})")
        hand_over(search, winner, adopt, recipe)


def record(search: Search, winner: Winner, finals: list[Result], tables: list[Table], charts: list[Path]) -> None:
    """Record the result of a sweep in its run, with the page and the pictures of its charts."""
    recorder = Recorder(search.run)
    recorder.metrics(figures_of(search, finals), len(search.study.get_trials(deepcopy=False)))
    recorder.tags({"sweep.best": winner.name, "sweep.best_run": winner.run_id, "sweep.trials": states(search)})
    recorder.tags({DESCRIPTION: "\n".join([search.about, "", *(table.in_markdown() for table in tables)])})
    for path in charts:
        recorder.artifact(path, "" if path.suffix == ".html" else "charts")
    recorder.status("FINISHED")
    send(search.run.root)


def hand_over(search: Search, winner: Winner, adopt: bool, recipe: str | None) -> None:
    """Print the change of params.yaml, or write it there or into a recipe."""
    params = search.settings.params(winner.settings)
    if recipe is not None:
        origin = f"{winner.name.capitalize()} of the sweep {search.study.study_name}"
        write_recipe(recipe, params, f"{origin}: {winner.figures} on the held-out images.")
        print(f"{recipe_file(recipe)} has the settings of {winner.name}: set recipe: {recipe} in {paths.PARAMS}")
    changes = edits(params, read_params(paths.PARAMS))
    if not changes:
        print(f"{paths.PARAMS} has the settings of {winner.name}")
        return
    if not adopt and recipe is None:
        print(f"The settings of {winner.name} differ from {paths.PARAMS} as follows; --apply writes them:")
    if recipe is None:
        for key, value in changes.items():
            print(f"  {key}: {value}")
    if adopt:
        apply(params, search.settings.base)
        print(f"{paths.PARAMS} now has the settings of {winner.name}: run `dvc repro`")


def figures_of(search: Search, finals: list[Result]) -> dict[str, float]:
    """The metrics of a sweep: the best of its trials, and mean and deviation of the best finalist."""
    values = best(search.study, search.sweep)[0].values
    found: dict[str, float] = {str(name): value for name, value in zip(search.sweep.objectives, values, strict=True)}
    if finals:
        name = search.sweep.objectives[0]
        found |= {f"finals/{name}_mean": finals[0].mean, f"finals/{name}_std": finals[0].std}
    return found
