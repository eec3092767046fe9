"""What the fuzzers call: each function takes the bytes of one file, and fails unless they are accepted or refused."""

import atexit
import gzip
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipeline.stages.fetch.packaged import idx_bytes
from pipeline.stages.preprocess.idx import read_idx
from tests.fuzzing.inputs import accepted

MEMORY = Path("/dev/shm")  # on Linux: a disk takes milliseconds for each file
FOLDER = Path(tempfile.mkdtemp(prefix="fuzzing-", dir=MEMORY if MEMORY.is_dir() else None))
atexit.register(shutil.rmtree, FOLDER, ignore_errors=True)
IMAGES = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)


class Target(NamedTuple):
    """A parser under test, intact files of its format, and words that have a meaning in it."""

    parse: Callable[[bytes], None]
    intact: list[bytes]
    words: list[bytes]
    modules: list[str] = []  # whose branches guide atheris


def file_with(name: str, content: bytes) -> Path:
    """A file with this content."""
    path = FOLDER / name
    path.write_bytes(content)
    return path


def idx(content: bytes) -> None:
    """A gzipped file: the oracle is NumPy, on what Python's gzip unpacks."""
    path = file_with("images.gz", content)
    found = accepted(lambda: read_idx(path, 3), str(path))
    if found is not None:
        unpacked = gzip.decompress(content)
        sizes = np.frombuffer(unpacked, ">u4", 3, offset=4)
        assert unpacked[:4] == b"\0\0\x08\3"
        np.testing.assert_array_equal(found, np.frombuffer(unpacked, np.uint8, offset=16).reshape(sizes))


def unpacked_idx(content: bytes) -> None:
    """The content of such a file, in which a fuzzer could not change a byte otherwise."""
    idx(gzip.compress(content, 1, mtime=0))


SIZES = [b"\0\0\0\0", b"\0\0\0\1", b"\xff\xff\xff\xff", b"\x80\0\0\0"]
TARGETS = {
    "idx": Target(idx, [idx_bytes(IMAGES)], [*SIZES, gzip.compress(b"")], ["pipeline.stages.preprocess.idx"]),
    "unpacked_idx": Target(
        unpacked_idx, [gzip.decompress(idx_bytes(IMAGES))], SIZES, ["pipeline.stages.preprocess.idx"]
    ),
}
