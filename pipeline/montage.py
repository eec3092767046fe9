"""Many images as one."""

import numpy as np
from numpy.typing import NDArray


def montage(images: NDArray[np.uint8], rows: int, columns: int, fill: int = 0) -> NDArray[np.uint8]:
    """Images (N, height, width) row by row in one image; where there are too few, it is filled with a grey level."""
    grid = np.full((rows * columns, *images.shape[1:]), fill, np.uint8)
    grid[: len(images)] = images
    _, height, width = images.shape
    return grid.reshape(rows, columns, height, width).transpose(0, 2, 1, 3).reshape(rows * height, columns * width)
