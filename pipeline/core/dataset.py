"""The file format in which preprocess passes images and labels to train and evaluate."""

import math
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.core.errors import PipelineError, first_line
from pipeline.core.files import replacing, zip_entry

DIMENSIONS = 3  # of a split's images


class Split(NamedTuple):
    """Images (N, height, width) with gray levels from 0 to 255, and their labels (N,)."""

    images: NDArray[np.uint8]
    labels: NDArray[np.uint8]

    def first(self, count: int) -> "Split":
        """The first `count` images and their labels."""
        return Split(self.images[:count], self.labels[:count])


def save_split(path: Path, split: Split) -> None:
    """Write a split as an uncompressed .npz file, which loads and hashes at disk speed.

    The arrays are bytes, a quarter of the size of float32. Unlike with `np.savez`, the file does not depend on the
    version of Python.
    """
    with replacing(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for name, array in split._asdict().items():
            with archive.open(zip_entry(f"{name}.npy"), "w") as file:
                np.save(file, array, allow_pickle=False)


def load_split(path: Path) -> Split:
    """Read a split, with as much memory as the file is long. Raises PipelineError if it is missing or damaged."""
    try:
        with zipfile.ZipFile(path) as archive:
            split = Split(*(read_array(archive, f"{name}.npy") for name in Split._fields))
        if (split.images.ndim, split.labels.ndim) != (DIMENSIONS, 1) or len(split.images) != len(split.labels):
            raise ValueError(f"images of shape {split.images.shape}, labels of shape {split.labels.shape}")
    except FileNotFoundError:
        raise PipelineError(f"{path} is missing: run `dvc repro`") from None
    except Exception as error:  # zipfile and NumPy raise many kinds for damaged bytes
        raise PipelineError(f"{path} cannot be read ({first_line(error)}): remove it and run `dvc repro`") from None
    return split


def read_array(archive: zipfile.ZipFile, name: str) -> NDArray[np.uint8]:
    """Read an array that `save_split` wrote.

    Raises ValueError for anything else: NumPy would allocate as much memory as the header declares.
    """
    entry = archive.getinfo(name)
    with archive.open(entry) as file:
        if entry.compress_type != zipfile.ZIP_STORED or np.lib.format.read_magic(file) != (1, 0):
            raise ValueError(f"{name} has another format")
        shape, by_column, dtype = np.lib.format.read_array_header_1_0(file)
        if dtype != np.uint8 or by_column or math.prod(shape) != entry.file_size - file.tell():
            raise ValueError(f"the header of {name} does not match its content")
    with archive.open(entry) as file:
        array: NDArray[np.uint8] = np.lib.format.read_array(file, allow_pickle=False)
    return array
