"""Strict reader of IDX, the format of MNIST's files."""

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.core.errors import PipelineError

UNSIGNED_BYTE = 0x08
DENSEST = 1032  # bytes that deflate packs into one at most (https://zlib.net/zlib_tech.html)


def read_idx(path: Path, dimensions: int) -> NDArray[np.uint8]:
    """Read the array in a gzipped IDX file of unsigned bytes with the given number of dimensions.

    The format: two zero bytes, the type, the number of dimensions, each size as a big-endian 32-bit integer,
    then the data (http://yann.lecun.com/exdb/mnist/).
    Unpacks no more than the header declares, and nothing if the file is too short for that.
    Raises PipelineError if the magic number, a size or the length is wrong.
    """
    try:
        with gzip.open(path) as file:
            shape = read_header(file, dimensions)
            promised, most = math.prod(shape), path.stat().st_size * DENSEST
            data = file.read(promised + 1) if 0 < promised <= most else b""
    except FileNotFoundError:
        raise PipelineError(f"{path} is missing: run `dvc repro` to fetch it") from None
    except ValueError as error:
        raise PipelineError(f"{path}: {error}. {_remedy(path)}") from None
    except (OSError, EOFError, zlib.error) as error:
        raise PipelineError(f"{path}: not an intact gzip file ({error}). {_remedy(path)}") from None
    if promised == 0 or promised != len(data):
        held = "more" if len(data) > promised else f"{len(data):,}" if promised <= most else "less"
        raise PipelineError(
            f"{path}: its header declares {'×'.join(map(str, shape))} = {promised:,} bytes, but it contains {held}. "
            f"{_remedy(path)}"
        )
    return np.frombuffer(data, np.uint8).reshape(shape)


def read_header(file: gzip.GzipFile, dimensions: int) -> tuple[int, ...]:
    """Read the header and return the shape. Raises ValueError if it is not that of so many dimensions."""
    expected, sizes = bytes((0, 0, UNSIGNED_BYTE, dimensions)), f">{dimensions}I"
    magic = file.read(len(expected))
    if magic != expected:
        raise ValueError(f"magic number {magic.hex()} instead of {expected.hex()}")
    content = file.read(struct.calcsize(sizes))
    if len(content) < struct.calcsize(sizes):
        raise ValueError("ends inside its header")
    return struct.unpack(sizes, content)


def read_pair(images_path: Path, labels_path: Path, classes: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Read images (N, height, width) and their labels (N,), each less than `classes`.

    Raises PipelineError if a file is damaged, if the files differ in length, or if a label is out of range.
    """
    images, labels = read_idx(images_path, 3), read_idx(labels_path, 1)
    if len(images) != len(labels):
        raise PipelineError(
            f"{images_path} has {len(images):,} images, but "
            f"{labels_path} has {len(labels):,} labels. {_remedy(labels_path)}"
        )
    if labels.max() >= classes:
        index = int(np.argmax(labels >= classes))
        raise PipelineError(
            f"{labels_path}: label {labels[index]} at index {index} is outside 0…{classes - 1}. {_remedy(labels_path)}"
        )
    return images, labels


def _remedy(path: Path) -> str:
    return f"Remove {path} and run `dvc repro` to fetch it again"
