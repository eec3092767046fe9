"""The end of a sweep: record and print its winner, and how to adopt it."""

from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from pipeline.core import paths
from pipeline.core.errors import PipelineError
from pipeline.stages.compose.composition import read_params
from pipeline.sweep.charts import save_charts
from pipeline.sweep.command import send
from pipeline.sweep.finals import CURRENT, Result
from pipeline.sweep.search import Search, name_of
from pipeline.sweep.study import best, figures, ranked
from pipeline.sweep.summary import ALPHA, Table, best_table, described, finals_table, states
from pipeline.sweep.winner import apply, edits, recipe_file, write_recipe
from pipeline.tracking.recorder import Recorder
from pipeline.tracking.runs import DESCRIPTION
from pipeline.tracking.store import page
from pipeline.tracking.sweeps import sweep_list


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
    tables = [best_table(search, finals), *([finals_table(search, finals)] if finals else [])]
    for table in tables:
        console.print(table.on_terminal())
    charts = save_charts(search.study, search.sweep, search.folder, search.about, tables)
    record(search, winner, finals, tables, charts)
    where = f"experiments/{search.run.experiment_id}/runs/{search.run.run_id}"
    trials = sweep_list(search.store, search.settings.current.dataset.name)
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
