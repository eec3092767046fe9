"""What the plain scripts share: the four files as arrays, and a last line that tells the outcome."""

import gzip
import json
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


def arguments() -> tuple[Path, int]:
    """The folder with the four MNIST files, and the number of epochs."""
    return Path(sys.argv[1]), int(sys.argv[2])


def load(folder: Path, split: str) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Images (N, 28, 28) from 0 to 1 and labels (N,) of `train` or `t10k`."""
    images = read(folder / f"{split}-images-idx3-ubyte.gz", 16).reshape(-1, 28, 28)
    return np.divide(images, 255, dtype=np.float32), read(folder / f"{split}-labels-idx1-ubyte.gz", 8)


def read(path: Path, offset: int) -> NDArray[np.uint8]:
    """The bytes behind a header of so many."""
    with gzip.open(path) as file:
        return np.frombuffer(file.read(), np.uint8, offset=offset)


def tell(epoch_seconds: list[float], loss: float, accuracy: float) -> None:
    """Print the outcome for the benchmark."""
    print(json.dumps({"epoch_seconds": epoch_seconds, "loss": loss, "accuracy": accuracy}))
