"""Drawing functions that the stages share."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure, FigureBase
from numpy.typing import NDArray

from pipeline.core.files import replacing
from pipeline.core.montage import montage

DOTS_PER_INCH = 120
TITLE = 0.45  # height of a two-line title, relative to that of its image
GAP = 0.12  # between images, relative to their width
LIGHT = 255


def save_picture(path: Path, figure: Figure) -> None:
    """Write a figure as PNG atomically; equal figures give equal bytes."""
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=DOTS_PER_INCH, metadata={"Software": None})


def draw_grid(
    figure: FigureBase, images: NDArray[np.uint8], titles: list[str], shape: tuple[int, int], heading: str
) -> None:
    """Draw images (N, height, width), each under its title, in a grid of `shape` (rows, columns) until it is full.

    All images share one pair of axes, because axes for each would take seconds.
    """
    rows, columns = shape
    _, height, width = images.shape
    above, beside = -(-height * TITLE // 1), -(-width * GAP // 1)
    shown = images[: rows * columns]
    padded = np.pad(shown, ((0, 0), (int(above), 0), (0, int(beside))), constant_values=LIGHT)
    axes = figure.add_axes((0.02, 0.01, 0.96, 0.91))
    axes.axis("off")
    axes.imshow(montage(padded, rows, columns, LIGHT), cmap="gray", vmin=0, vmax=LIGHT)
    for number, title in enumerate(titles[: len(shown)]):
        row, column = divmod(number, columns)
        middle, bottom = column * (width + beside) + width / 2, row * (height + above) + above - 1
        axes.text(middle - 0.5, bottom, title, ha="center", va="bottom", fontsize=8)
    figure.suptitle(heading)
