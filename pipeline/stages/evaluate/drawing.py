"""Plots of a training and its evaluation.

Margins are fixed: computing them (`layout="constrained"`) takes longer than drawing.
"""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from pipeline.core.pictures import draw_grid
from pipeline.stages.evaluate.scoring import BINS, Mistake, Reliability

ROWS, COLUMNS = 4, 8  # of the most confident errors
BLUE, ORANGE = "#2563eb", "#ea580c"

History = dict[str, list[float]]


def draw_curves(history: History, validated_on: str) -> Figure:
    """Plot loss and accuracy per epoch on the training and validation images; `validated_on` labels the latter."""
    figure = Figure(figsize=(9, 3.6))
    margins = {"left": 0.06, "right": 0.99, "bottom": 0.14, "top": 0.91, "wspace": 0.16}
    for axes, name in zip(figure.subplots(1, 2, gridspec_kw=margins), ("loss", "accuracy"), strict=True):
        _curve(axes, history, name, validated_on)
    return figure


def draw_curve(history: History, name: str, validated_on: str) -> Figure:
    """Plot the loss or the accuracy alone."""
    figure = Figure(figsize=(4.8, 3.4))
    figure.subplots_adjust(left=0.13, right=0.98, bottom=0.15, top=0.91)
    _curve(figure.add_subplot(), history, name, validated_on)
    return figure


def _curve(axes: Axes, history: History, name: str, validated_on: str) -> None:
    # Arrays, because Matplotlib asks TensorFlow whether anything else is a tensor, which takes half a second.
    columns = {key: np.array(values) for key, values in history.items()}
    axes.plot(columns["epoch"], columns[name], color=BLUE, marker=".", label="training")
    if f"val_{name}" in columns:
        axes.plot(columns["epoch"], columns[f"val_{name}"], color=ORANGE, marker=".", label=validated_on)
    axes.set(xlabel="epoch", title=name)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.ticklabel_format(axis="y", scilimits=(-2, 4))  # tick labels of a small loss fit the margin
    axes.grid(alpha=0.3)
    axes.legend()


def draw_confusion(matrix: NDArray[np.int64]) -> Figure:
    """Plot the confusion matrix, with errors colored by their share of the class so that rare ones are visible."""
    figure = Figure(figsize=(6, 5.9))
    figure.subplots_adjust(left=0.1, right=0.98, bottom=0.09, top=0.94)
    axes = figure.add_subplot()
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    mistakes = np.where(np.eye(len(matrix), dtype=bool), np.nan, shares)
    most = max(float(np.nanmax(mistakes)), 1e-9)
    axes.imshow(mistakes, cmap="Oranges", vmin=0, vmax=most)
    for label, row in enumerate(matrix):
        for prediction, count in enumerate(row):
            color = BLUE if label == prediction else "white" if shares[label, prediction] > 0.6 * most else "black"
            axes.text(
                prediction, label, str(count) if count else "·", ha="center", va="center", color=color, fontsize=9
            )
    axes.set(xlabel="predicted class", ylabel="true class", xticks=range(len(matrix)), yticks=range(len(matrix)))
    axes.set_title(f"{int(matrix.sum() - matrix.trace())} of {int(matrix.sum()):,} images misclassified")
    return figure


def draw_mistakes(images: NDArray[np.uint8], wrong: list[Mistake]) -> Figure:
    """Draw the most confident errors, each under its true class, predicted class and probability."""
    worst = sorted(wrong, key=lambda mistake: -mistake.probability)[: ROWS * COLUMNS]
    titles = [f"{mistake.label} → {mistake.prediction}\n{mistake.probability:.2%}" for mistake in worst]
    figure = Figure(figsize=(COLUMNS * 1.15, ROWS * 1.5))
    heading = "Most confident errors (true → predicted class)" if worst else "No errors"
    draw_grid(figure, images[[mistake.index for mistake in worst]], titles, (ROWS, COLUMNS), heading)
    return figure


def draw_reliability(bins: Reliability, error: float) -> Figure:
    """Plot accuracy against confidence, and the number of images per bin."""
    figure = Figure(figsize=(5, 5.6))
    figure.subplots_adjust(left=0.14, right=0.97, bottom=0.09, top=0.94, hspace=0.08)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    centers = (np.arange(BINS) + 0.5) / BINS
    upper.bar(centers, np.nan_to_num(bins.accuracy), 0.9 / BINS, color=BLUE, alpha=0.7, label="accuracy")
    upper.axline((0, 0), slope=1, color="black", linewidth=1, linestyle="--", label="perfect calibration")
    upper.plot(bins.confidence, bins.accuracy, ".", color=ORANGE, label="mean confidence")
    upper.set(ylabel="accuracy", ylim=(0, 1.02), title=f"expected calibration error {error:.4f} ({BINS} bins)")
    upper.legend()
    _counts(lower, centers, bins.images)
    return figure


def _counts(axes: Axes, centers: NDArray[np.float64], count: NDArray[np.int64]) -> None:
    axes.bar(centers, count, 0.9 / BINS, color="gray")
    axes.set(xlabel="confidence", ylabel="images", yscale="symlog", xlim=(0, 1))
