"""Conversion of the 8×8 digits in scikit-learn to four files in MNIST's format."""

import gzip
import importlib.util
import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.core.config import PackagedDataset
from pipeline.core.errors import PipelineError
from pipeline.core.files import sha256

SIDE = 8
WHITE = 16  # gray levels in the package range from 0 to 16


def read_package(dataset: PackagedDataset) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Read images (N, 8, 8) with gray levels from 0 to 255, and labels (N,), in the package's order.

    The file is read directly, because importing scikit-learn's loader takes longer than everything else here.
    Raises PipelineError if the package is missing or its file is not the pinned one.
    """
    file = dataset.files.package
    package = importlib.util.find_spec("sklearn")
    if package is None or package.origin is None:
        raise PipelineError("scikit-learn, which contains the dataset digits, is not installed: run `make repro`")
    path = Path(package.origin).parent / "datasets" / "data" / file.name
    if not path.is_file() or sha256(path) != file.sha256:
        raise PipelineError(
            f"{path} is not the file that conf/dataset/{dataset.name}.yaml pins: install the pinned scikit-learn"
        )
    table = np.loadtxt(path, delimiter=",", dtype=np.int64)
    images = (table[:, :-1] * 255 // WHITE).astype(np.uint8).reshape(-1, SIDE, SIDE)
    return images, table[:, -1].astype(np.uint8)


def idx_bytes(array: NDArray[np.uint8]) -> bytes:
    """Encode an array of bytes in the gzipped IDX format (http://yann.lecun.com/exdb/mnist/, "The IDX file format")."""
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 0x08, array.ndim, *array.shape)
    return gzip.compress(header + array.tobytes(), mtime=0)


def packaged_files(dataset: PackagedDataset) -> dict[str, bytes]:
    """Contents of the four files, by field name of `IdxFiles`."""
    images, labels = read_package(dataset)
    split = len(images) - dataset.test_count
    if split < dataset.classes:
        raise PipelineError(f"dataset.test_count: {dataset.test_count} leaves too few training images: lower it")
    return {
        "train_images": idx_bytes(images[:split]),
        "train_labels": idx_bytes(labels[:split]),
        "test_images": idx_bytes(images[split:]),
        "test_labels": idx_bytes(labels[split:]),
    }
