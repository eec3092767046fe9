"""Shared code of the plain scripts: load the four files as arrays, and print the results as the last line."""

import gzip
import json
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


def arguments() -> tuple[Path, int]:
    """Command-line arguments: the folder with the four MNIST files, and the number of epochs."""
    return Path(sys.argv[1]), int(sys.argv[2])


def load(folder: Path, split: str) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Load the images (N, 28, 28), from 0 to 1, and the labels (N,) of `train` or `t10k`."""
    images = read(folder / f"{split}-images-idx3-ubyte.gz", 16).reshape(-1, 28, 28)
    return np.divide(images, 255, dtype=np.float32), read(folder / f"{split}-labels-idx1-ubyte.gz", 8)


def read(path: Path, offset: int) -> NDArray[np.uint8]:
    """Read a gzip file without its first `offset` bytes, the header."""
    with gzip.open(path) as file:
        return np.frombuffer(file.read(), np.uint8, offset=offset)


def tell(epoch_seconds: list[float], loss: float, accuracy: float) -> None:
    """Print the results for the benchmark."""
    print(json.dumps({"epoch_seconds": epoch_seconds, "loss": loss, "accuracy": accuracy}))
