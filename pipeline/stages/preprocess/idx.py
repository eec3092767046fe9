"""Strict reader of IDX, the format of MNIST's files."""

import gzip
import struct
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.core.errors import PipelineError

UNSIGNED_BYTE = 0x08


def read_idx(path: Path, dimensions: int) -> NDArray[np.uint8]:
    """Read the array in a gzipped IDX file of unsigned bytes with the given number of dimensions.

    The format: two zero bytes, the type, the number of dimensions, each size as a big-endian 32-bit integer,
    then the data (http://yann.lecun.com/exdb/mnist/).
    Raises PipelineError if the magic number, a size or the length is wrong.
    """
    content = _unzip(path)
    expected = bytes((0, 0, UNSIGNED_BYTE, dimensions))
    if content[:4] != expected:
        raise PipelineError(f"{path}: magic number {content[:4].hex()} instead of {expected.hex()}. {_remedy(path)}")
    start = 4 + 4 * dimensions
    if len(content) < start:
        raise PipelineError(f"{path}: ends inside its header. {_remedy(path)}")
    shape = struct.unpack(f">{dimensions}I", content[4:start])
    promised, held = int(np.prod(shape, dtype=object)), len(content) - start
    if promised == 0 or promised != held:
        raise PipelineError(
            f"{path}: its header declares {'×'.join(map(str, shape))} = {promised:,} bytes, but it contains {held:,}. "
            f"{_remedy(path)}"
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


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


def _unzip(path: Path) -> bytes:
    try:
        return gzip.decompress(path.read_bytes())
    except FileNotFoundError:
        raise PipelineError(f"{path} is missing: run `dvc repro` to fetch it") from None
    except (OSError, EOFError, zlib.error) as error:
        raise PipelineError(f"{path}: not an intact gzip file ({error}). {_remedy(path)}") from None


def _remedy(path: Path) -> str:
    return f"Remove {path} and run `dvc repro` to fetch it again"
