"""What the stages' pictures have in common."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure, FigureBase
from numpy.typing import NDArray

from pipeline.files import replacing

DOTS_PER_INCH = 120


def save_picture(path: Path, figure: Figure) -> None:
    """Write a figure as PNG, whole or not at all; the same figure gives the same bytes."""
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=DOTS_PER_INCH, metadata={"Software": None})


def draw_grid(
    figure: FigureBase, images: NDArray[np.uint8], titles: list[str], shape: tuple[int, int], heading: str
) -> None:
    """Draw images (N, height, width), each under its title, as long as a grid of `shape` (rows, columns) has room."""
    for number, axes in enumerate(figure.subplots(*shape).flat):
        axes.axis("off")
        if number < len(images):
            axes.imshow(images[number], cmap="gray")
            axes.set_title(titles[number], fontsize=8)
    figure.suptitle(heading)


def montage(images: NDArray[np.uint8], columns: int) -> NDArray[np.uint8]:
    """Images (N, height, width) row by row in one image with so many columns, a pixel apart; missing ones are black."""
    rows = -(-len(images) // columns)
    grid = np.zeros((rows * columns, images.shape[1] + 1, images.shape[2] + 1), np.uint8)
    grid[: len(images), 1:, 1:] = images
    grid = grid.reshape(rows, columns, *grid.shape[1:])
    return grid.transpose(0, 2, 1, 3).reshape(rows * grid.shape[2], -1)
