"""Run a sweep from its file to the winner."""

import logging
import threading
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from pipeline.core import paths
from pipeline.core.errors import PipelineError
from pipeline.stages.compose.composition import read_params
from pipeline.sweep.search import Crew, Report, Search
from pipeline.sweep.settings import Settings, prepare_images
from pipeline.sweep.space import MAXIMIZED, Sweep, read_sweep
from pipeline.sweep.study import REASON, best, counted, figures, open_study
from pipeline.sweep.winner import apply, check_recipe, edits, recipe_file, write_recipe
from pipeline.tracking.outbox import say, send_unsent
from pipeline.tracking.provenance import find_provenance
from pipeline.tracking.recorder import Recorder
from pipeline.tracking.store import open_store, page
from pipeline.tracking.sweeps import open_sweep

FOLDER = ".sweeps"  # in the project: the study and the images of each sweep
TEN = 10  # trials in the closing table


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
    settings = Settings(name, sweep)
    settings.check()
    root, config = paths.project_root(), settings.config({})
    folder = root / FOLDER / study_name
    prepare_images(config, folder)
    study = open_study(study_name, sweep, folder)
    store, provenance = open_store(root), find_provenance()
    send(root)
    run = open_sweep(store, study_name, config.dataset.name, root, provenance, f"A sweep of sweeps/{name}.yaml.")
    return Search(sweep, settings, study, folder, store, run, provenance, threading.Lock(), threading.Event())


def run(search: Search, jobs: int) -> None:
    """Train the trials that are left, `jobs` side by side."""
    recorder, minutes = Recorder(search.run), search.sweep.minutes
    recorder.status("RUNNING")
    try:
        with progress(search) as report:
            Crew(search, None if minutes is None else time.monotonic() + 60 * minutes, report).run(jobs)
    except BaseException:
        recorder.status("KILLED")
        raise


@contextmanager
def progress(search: Search) -> Iterator[Report]:
    """Show a progress bar with the best so far, and a line for each trial that ends."""
    console = Console(markup=False, highlight=False)
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(TextColumn("{task.description}"), *columns, console=console) as bar:
        task = bar.add_task("sweep", total=search.sweep.trials)

        def report(trial: FrozenTrial) -> None:
            trials = counted(search.study.get_trials(deepcopy=False))
            console.print(f"trial {trial.number}: {summary(trial, search.sweep)}")
            running = sum(each.state == TrialState.RUNNING for each in trials)
            found = best(search.study)
            text = f"best {figures(found[0].values, search.sweep)}" if found else "no complete trial"
            done = sum(each.state.is_finished() for each in trials)
            bar.update(task, completed=done, description=f"{text}, {running} running")

        yield report


def send(root: Path) -> None:
    """Send what earlier commands could not record, and print a line for each failure."""
    for problem in send_unsent(root)[1]:
        say(problem)


def summary(trial: FrozenTrial, sweep: Sweep) -> str:
    """How a trial ended, in one line."""
    settings = ", ".join(f"{key}={shortened(value)}" for key, value in trial.user_attrs.get("settings", {}).items())
    if trial.state == TrialState.COMPLETE:
        same = trial.user_attrs.get("same_as")
        return f"{figures(trial.values, sweep)}{f' (as trial {same})' if same is not None else ''}, with {settings}"
    if trial.state == TrialState.PRUNED:
        return f"stopped after epoch {trial.last_step}, with {settings}"
    return f"failed ({trial.user_attrs.get(REASON, 'its process died')}), with {settings}"


def shortened(value: Any) -> str:
    """A value with four significant digits."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def conclude(search: Search, adopt: bool, recipe: str | None) -> None:
    """Record and print the best trials. Print the change of params.yaml, or write it, or write a recipe.

    Raises PipelineError if no trial is complete.
    """
    recorder, sweep = Recorder(search.run), search.sweep
    trials, found = counted(search.study.get_trials(deepcopy=False)), best(search.study)
    counts = Counter(trial.state.name.lower() for trial in trials)
    states = ", ".join(f"{count} {state}" for state, count in counts.items())
    if not found:
        recorder.status("FAILED")
        raise PipelineError(f"no trial is complete ({states}): the lines above tell why")
    winner = found[0]
    recorder.metrics(dict(zip(sweep.objectives, winner.values, strict=True)), len(trials))
    recorder.tags({"sweep.best": winner.user_attrs.get("run_id", ""), "sweep.trials": states})
    recorder.status("FINISHED")
    send(search.run.root)
    console = Console(markup=False, highlight=False)
    console.print(table_of(search, found))
    where = f"experiments/{search.run.experiment_id}/runs/{search.run.run_id}"
    print(f"{states}. The runs are at {page(search.store, where)}")
    params = search.settings.params(winner.user_attrs["settings"])
    if recipe is not None:
        origin = f"Trial {winner.number} of {len(trials)} of the sweep {search.study.study_name}"
        write_recipe(recipe, params, f"{origin}: {figures(winner.values, sweep)} on the held-out images.")
        print(
            f"{recipe_file(recipe)} has the settings of trial {winner.number}: set recipe: {recipe} in {paths.PARAMS}"
        )
    if adopt:
        apply(params)
        print(f"{paths.PARAMS} has the settings of trial {winner.number}: run `dvc repro`")
    if not adopt and recipe is None:
        print(f"The best settings differ from {paths.PARAMS} as follows; --apply writes them:")
        for key, value in edits(params, read_params(paths.PARAMS)).items():
            print(f"  {key}: {value}")


def table_of(search: Search, front: list[FrozenTrial]) -> Table:
    """The ten best trials, or the Pareto front if there are several objectives."""
    rows, sweep = front, search.sweep
    if len(sweep.objectives) == 1:
        complete = [trial for trial in search.study.get_trials(deepcopy=False) if trial.state == TrialState.COMPLETE]
        sign = -1 if sweep.objectives[0] in MAXIMIZED else 1
        rows = sorted(complete, key=lambda trial: sign * trial.values[0])[:TEN]
    table = Table("trial", *sweep.objectives, "settings", title="best trials on the held-out images")
    for trial in rows:
        settings = ", ".join(f"{key}={shortened(value)}" for key, value in trial.user_attrs["settings"].items())
        table.add_row(str(trial.number), *(f"{value:.6g}" for value in trial.values), settings)
    return table
