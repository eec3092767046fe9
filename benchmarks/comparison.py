"""Comparison of the recipes with the plain scripts: a table for docs/results.md, and a plot."""

import itertools
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from benchmarks.recipes import RECIPES, SCRIPTS

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.text import Annotation
    from matplotlib.transforms import Bbox

TITLES = {
    "quick_wider": "`quick` with convolutions of 24, 48, 48 and 48 filters, 11 epochs",
    "script_notebook": "the notebook as a plain Keras script",
    "script_keras_convnet": "Keras's convolutional example",
    "script_torch_convnet": "PyTorch's example",
}

NAME_WIDTH = 28  # characters per line


class Row(NamedTuple):
    """A recipe or a script, with the median, min, max and n of each of its figures, and mean and std if n > 1."""

    title: str
    is_recipe: bool
    figures: dict[str, dict[str, Any]]


def rows(measured: dict[str, Any]) -> list[Row]:
    """Measured recipes and scripts, sorted by their median seconds of fitting."""
    figures = measured["recipes"]["figures"]
    found = [
        Row(
            TITLES.get(job, f"`{job}`"),
            job in RECIPES,
            {name.removeprefix(f"{job}_"): each for name, each in figures.items() if name.startswith(f"{job}_")},
        )
        for job in (*RECIPES, *(f"script_{name}" for name in SCRIPTS))
        if f"{job}_accuracy" in figures
    ]
    return sorted(found, key=lambda row: float(row.figures["fit_seconds"]["median"]))


def table(measured: dict[str, Any]) -> str:
    """Markdown table: accuracy as mean ± std (lowest to highest), seconds and memory as medians."""
    lines = [
        "| | test accuracy, mean ± std | lowest to highest | runs | seconds of fitting | peak memory |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows(measured):
        accuracy, seconds, memory = (row.figures[name] for name in ("accuracy", "fit_seconds", "peak_mib"))
        spread = f" ± {100 * accuracy['std']:.2f}" if "std" in accuracy else ""
        lines.append(
            f"| {row.title} | {100 * accuracy.get('mean', accuracy['median']):.2f}{spread} % | "
            f"{100 * accuracy['min']:.2f} to {100 * accuracy['max']:.2f} | {accuracy['n']} | "
            f"{seconds['median']:.3g} ({seconds['min']:.3g} to {seconds['max']:.3g}) | {memory['median']:,.0f} MiB |"
        )
    return "\n".join(lines) + "\n"


def draw(measured: dict[str, Any], path: Path) -> None:
    """Plot the test error against seconds of fitting, both on logarithmic axes, into an SVG file.

    The same figures give the same bytes.
    """
    import matplotlib as mpl

    if "recipes" in measured:
        with mpl.rc_context({"svg.hashsalt": "accuracy"}):
            picture(measured).savefig(path, metadata={"Date": None})


def picture(measured: dict[str, Any]) -> "Figure":
    """Build that plot without saving it; every name lies within the axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    axes.set(xscale="log", yscale="log", xlabel="seconds of fitting (median)", ylabel="test error, %")
    axes.set(xlim=(0.3, 10_000), ylim=(0.15, 2.5))  # room for names on all sides
    axes.set_title(measured["recipes"]["machine"], fontsize=7, loc="left", color="gray")
    for axis, ticks in ((axes.xaxis, (1, 10, 100, 1000)), (axes.yaxis, (0.2, 0.3, 0.5, 0.7, 1, 1.5, 2))):
        axis.set_ticks(ticks, labels=[f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.grid(visible=True, color="0.9")
    names = []
    for row in rows(measured):
        accuracy, seconds = row.figures["accuracy"], row.figures["fit_seconds"]["median"]
        color = "tab:blue" if row.is_recipe else "tab:gray"
        errors = [100 * (1 - accuracy[key]) for key in ("max", "median", "min")]
        axes.plot([seconds] * 3, errors, "_-", color=color, linewidth=1)
        axes.plot(seconds, errors[1], "o", color=color)
        name = textwrap.fill(row.title.replace("`", ""), NAME_WIDTH)
        names.append(axes.annotate(name, (seconds, errors[1]), (0, 0), textcoords="offset points", color=color))
    figure.draw_without_rendering()  # computes the extent of the axes, which `place` needs
    taken = [line.get_window_extent() for line in axes.lines]
    for text in names:
        taken.append(place(text, axes.get_window_extent(), taken))
    return figure


def place(text: "Annotation", room: "Bbox", taken: list["Bbox"]) -> "Bbox":
    """Move a name to the first free of four positions beside its point, or to the last; return its bounding box."""
    for (side, across), (edge, up) in itertools.product((("right", -8), ("left", 8)), (("top", -4), ("bottom", 6))):
        text.set(ha=side, va=edge, position=(across, up))
        box = text.get_window_extent()
        if room.count_contains(box.corners()) == len(box.corners()) and not box.count_overlaps(taken):
            break
    return box
