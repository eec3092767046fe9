"""Charts of a sweep, which Optuna draws: as images, and interactive ones in one HTML page."""

import importlib
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from pipeline.core.files import replacing, write_text
from pipeline.core.pictures import DOTS_PER_INCH
from pipeline.sweep.space import Sweep
from pipeline.sweep.summary import Table

PAGE = "sweep.html"
FRONT = 3  # objectives of which Optuna can draw a Pareto front
ENOUGH = 5  # complete trials with a setting, without which its importance would be a matter of luck
LEGEND = 10  # entries, beyond which a legend would cover the chart
SMALL, TILTED = 8, 30  # points and degrees, for the labels of many settings side by side
WIDTH, HEIGHT, PER_KEY = 9.0, 5.0, 2.2  # inches


class Chart(NamedTuple):
    """A function of optuna.visualization, and of optuna.visualization.matplotlib, with its arguments."""

    name: str
    function: str
    about: str
    width: float  # inches
    arguments: dict[str, Any]


def charts(study: Study, sweep: Sweep) -> Iterator[Chart]:
    """The charts that the trials allow."""
    several = len(sweep.objectives) > 1
    if several and len(sweep.objectives) <= FRONT:
        about = "Trials of which no other is better in every objective, and the others."
        yield Chart("pareto", "plot_pareto_front", about, WIDTH, {"target_names": list(sweep.objectives)})
    for number, name in enumerate(sweep.objectives):
        target = {"target": value_of(number)} if several else {}
        for chart in charts_of(name, study, sweep):
            ending = f"_{name}" if several else ""
            arguments = chart.arguments | {"target_name": name} | target
            yield chart._replace(name=f"{chart.name}{ending}", arguments=arguments)
    if not several:
        about = "Accuracy, or for the objective val_loss the error rate, of each trial after each epoch."
        yield Chart("epochs", "plot_intermediate_values", about, WIDTH, {})


def charts_of(objective: str, study: Study, sweep: Sweep) -> Iterator[Chart]:
    """The charts of one objective."""
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    known = [key for key in sweep.space if sum(key in trial.params for trial in complete) >= ENOUGH]
    always = [key for key, values in sweep.space.items() if not values.when]
    wide = max(WIDTH, PER_KEY * len(sweep.space))
    yield Chart("history", "plot_optimization_history", f"{objective} of each trial.", WIDTH, {})
    yield Chart("slice", "plot_slice", f"{objective} by each setting.", wide, {})
    about = f"The settings that exist in all trials, and {objective}."
    yield Chart("parallel_coordinates", "plot_parallel_coordinate", about, wide, {"params": always})
    if known:
        about = f"How much each setting decides whether {objective} is among the best (PED-ANOVA)."
        yield Chart("importances", "plot_param_importances", about, WIDTH, {"params": known})


def value_of(number: int) -> Callable[[FrozenTrial], float]:
    """The function that returns one objective of a trial."""
    return lambda trial: float(trial.values[number])


def draw(chart: Chart, study: Study) -> Figure:
    """A chart as a matplotlib figure, without pyplot's reference to it."""
    mpl.use("agg")  # charts are files, also where there is a display
    from matplotlib import pyplot

    module = importlib.import_module("optuna.visualization.matplotlib")
    axes = getattr(module, chart.function)(study, **chart.arguments)
    figure: Figure = np.ravel(axes)[0].figure
    pyplot.close(figure)
    figure.set_size_inches(chart.width, HEIGHT)
    for each in figure.axes:
        each.xaxis.label.set_fontsize(SMALL)
        each.tick_params(axis="x", which="both", labelsize=SMALL, labelrotation=TILTED)
        legend = each.get_legend()
        if legend and len(legend.get_texts()) > LEGEND:
            legend.remove()
    return figure


def save_charts(study: Study, sweep: Sweep, folder: Path, title: str, tables: list[Table]) -> list[Path]:
    """Write each chart as an image, and all of them with the tables as one page. Returns the files, the page first."""
    drawn = list(charts(study, sweep))
    page = folder / PAGE
    pictures = [folder / f"{chart.name}.png" for chart in drawn]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about experimental functions, settings with few trials, and missing letters
        write_text(page, render(drawn, study, title, tables))
        for path, chart in zip(pictures, drawn, strict=True):
            with replacing(path) as temporary:
                draw(chart, study).savefig(temporary, dpi=DOTS_PER_INCH, bbox_inches="tight")
    return [page, *pictures]


def render(drawn: list[Chart], study: Study, title: str, tables: list[Table]) -> str:
    """The page, which contains plotly's code, so that it needs no network."""
    from plotly.offline import get_plotlyjs

    module = importlib.import_module("optuna.visualization")
    shown = []
    for chart in drawn:
        figure = getattr(module, chart.function)(study, **chart.arguments)
        figure.update_layout(title=None, margin={"t": 20})
        shown.append((chart.about, figure.to_html(full_html=False, include_plotlyjs=False)))
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
    template = environment.get_template("page.html.j2")
    return template.render(title=title, charts=shown, tables=tables, plotly=get_plotlyjs())
