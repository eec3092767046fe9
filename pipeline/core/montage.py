"""Arrangement of many images in one."""

import numpy as np
from numpy.typing import NDArray


def montage(images: NDArray[np.uint8], rows: int, columns: int, fill: int = 0) -> NDArray[np.uint8]:
    """Arrange images (N, height, width) in one image, row by row; empty cells have the gray level `fill`."""
    grid = np.full((rows * columns, *images.shape[1:]), fill, np.uint8)
    grid[: len(images)] = images
    _, height, width = images.shape
    return grid.reshape(rows, columns, height, width).transpose(0, 2, 1, 3).reshape(rows * height, columns * width)
