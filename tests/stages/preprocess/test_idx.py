import gzip
import struct
from pathlib import Path

import numpy as np
import pytest

from pipeline.core.errors import PipelineError
from pipeline.stages.fetch.packaged import idx_bytes
from pipeline.stages.preprocess.idx import read_idx, read_pair

IMAGES = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
LABELS = np.array([9, 0], np.uint8)


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def packed(content: bytes) -> bytes:
    """Compress without a time stamp, which would change the parametrized test names in each process."""
    return gzip.compress(content, mtime=0)


def header(*sizes: int, kind: int = 0x08) -> bytes:
    return struct.pack(f">BBBB{len(sizes)}I", 0, 0, kind, len(sizes), *sizes)


def test_images_and_labels_are_read(tmp_path: Path) -> None:
    images, labels = read_pair(
        write(tmp_path / "images.gz", idx_bytes(IMAGES)), write(tmp_path / "labels.gz", idx_bytes(LABELS)), 10
    )
    np.testing.assert_array_equal(images, IMAGES)
    np.testing.assert_array_equal(labels, LABELS)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (packed(header(2, 3, 4, kind=0x0D) + IMAGES.tobytes()), "magic number 00000d03 instead of 00000803"),
        (packed(header(2, 12) + IMAGES.tobytes()), "magic number 00000802 instead of 00000803"),
        (packed(b""), "magic number  instead of 00000803"),
        (packed(header(2, 3, 4)[:10]), "ends inside its header"),
        (packed(header(2, 3, 4) + IMAGES.tobytes()[:-1]), "declares 2×3×4 = 24 bytes, but it contains 23"),
        (packed(header(2, 3, 4) + IMAGES.tobytes() + b"x"), "declares 2×3×4 = 24 bytes, but it contains more"),
        (packed(header(0, 3, 4)), "declares 0×3×4 = 0 bytes"),
        (packed(header(2**31, 2**31, 2**31) + b"x"), "it contains less"),
        (packed(header(2, 3, 4) + IMAGES.tobytes())[:-12], "not an intact gzip file"),
        (b"<!DOCTYPE html><html></html>", "not an intact gzip file"),
    ],
)
def test_the_error_for_a_damaged_file_has_path_reason_and_remedy(tmp_path: Path, content: bytes, message: str) -> None:
    path = write(tmp_path / "images.gz", content)
    with pytest.raises(PipelineError) as error:
        read_idx(path, 3)
    assert str(path) in str(error.value)
    assert message in str(error.value)
    assert "run `dvc repro`" in str(error.value)


@pytest.mark.parametrize("position", [12, -6])
def test_a_flipped_byte_is_detected(tmp_path: Path, position: int) -> None:
    content = bytearray(idx_bytes(np.random.default_rng(0).integers(0, 255, (50, 8, 8), np.uint8)))
    content[position] ^= 0xFF
    with pytest.raises(PipelineError, match=r"images\.gz"):
        read_idx(write(tmp_path / "images.gz", bytes(content)), 3)


def test_a_missing_file_is_reported(tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match=r"images\.gz is missing: run `dvc repro` to fetch it"):
        read_idx(tmp_path / "images.gz", 3)


def test_a_missing_label_is_detected(tmp_path: Path) -> None:
    images = write(tmp_path / "images.gz", idx_bytes(IMAGES))
    labels = write(tmp_path / "labels.gz", idx_bytes(LABELS[:1]))
    with pytest.raises(PipelineError, match=r"has 2 images, but .*labels\.gz has 1 labels"):
        read_pair(images, labels, 10)


def test_a_label_out_of_range_is_detected(tmp_path: Path) -> None:
    images = write(tmp_path / "images.gz", idx_bytes(IMAGES))
    labels = write(tmp_path / "labels.gz", idx_bytes(np.array([3, 10], np.uint8)))
    with pytest.raises(PipelineError, match=r"label 10 at index 1 is outside 0…9"):
        read_pair(images, labels, 10)
