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
    values: list[float]  # its objectives in the search, or for the current settings their mean in the finals


def winner_of(search: Search, finals: list[Result], chosen: int | None) -> Winner:
    """The chosen trial, or else the best finalist, or without finals the best trial by the first objective.

    Raises PipelineError if no trial is complete.
    """
    trials = {trial.number: trial for trial in ranked(search.study, search.sweep)}
    if not trials:
        raise PipelineError(f"no trial is complete ({states(search)})")
    results = {result.name: result for result in finals}
    if finals and chosen is None and finals[0].name == CURRENT:
        return Winner(CURRENT, {}, described(finals[0], search.sweep), "", [finals[0].mean])
    by_name = {name_of(trial): trial for trial in trials.values()}
    if chosen is None:
        trial = by_name[finals[0].name] if finals else best(search.study, search.sweep)[0]
    else:
        trial = trials[chosen]
    name, attributes = name_of(trial), trial.user_attrs
    known = described(results[name], search.sweep) if name in results else figures(trial.values, search.sweep)
    return Winner(name, attributes["settings"], known, attributes.get("run_id", ""), trial.values)


def conclude(search: Search, finals: list[Result], chosen: int | None) -> Winner:
    """Record and print the best trials, and return the settings that the sweep recommends.

    Raises PipelineError if no trial is complete.
    """
    console = Console(markup=False, highlight=False)
    winner = winner_of(search, finals, chosen)
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
    if remark := remark_on(winner, finals):
        print(remark)
    return winner


def remark_on(winner: Winner, finals: list[Result]) -> str:
    """What the finals say about the winner, compared with the current settings and with a better finalist."""
    results = {each.name: each for each in finals}
    if winner.name == CURRENT:
        why = "is better than the current settings" if len(finals) > 1 else "completed its trainings"
        return f"No other finalist {why}: there is nothing to change"
    current, own = results.get(CURRENT), results.get(winner.name)
    if own and own is not finals[0] and own.p_worse < ALPHA:
        return f"{winner.name.capitalize()} is worse than {finals[0].name} (p {own.p_worse:.2g})"
    if own and own is finals[0] and current and current.p_worse >= ALPHA:
        return f"Chance may explain that {winner.name} is better than the current settings (p {current.p_worse:.2g})"
    return ""


def record(search: Search, winner: Winner, finals: list[Result], tables: list[Table], charts: list[Path]) -> None:
    """Record the result of a sweep in its run, with the page and the pictures of its charts."""
    recorder = Recorder(search.run)
    recorder.metrics(figures_of(search, winner, finals), len(search.study.get_trials(deepcopy=False)))
    recorder.tags({"sweep.best": winner.name, "sweep.best_run": winner.run_id, "sweep.trials": states(search)})
    recorder.tags({DESCRIPTION: "\n".join([search.about, "", *(table.in_markdown() for table in tables)])})
    for path in charts:
        recorder.artifact(path, "" if path.suffix == ".html" else "charts")
    recorder.status("FINISHED")
    send(search.run.root)


def hand_over(search: Search, winner: Winner, adopt: bool, recipe: str | None) -> None:
    """Print the change of params.yaml, or write it there or into a recipe. The current settings need none."""
    if winner.name == CURRENT:
        return
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


def figures_of(search: Search, winner: Winner, finals: list[Result]) -> dict[str, float]:
    """The metrics of a sweep: the winner's objectives, and mean and deviation of the best finalist."""
    names = list(map(str, search.sweep.objectives))
    found = dict(zip(names, winner.values, strict=True))
    if finals:
        found |= {f"finals/{names[0]}_mean": finals[0].mean, f"finals/{names[0]}_std": finals[0].std}
    return found
