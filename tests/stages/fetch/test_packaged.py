import gzip
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from pipeline.core.config import PackagedDataset, PackagedFiles, RemoteFile
from pipeline.core.errors import PipelineError
from pipeline.stages.fetch.packaged import idx_bytes, packaged_files, read_package
from pipeline.stages.preprocess.idx import read_idx
from tests.conftest import configured


@pytest.fixture
def digits(tmp_path: Path) -> PackagedDataset:
    dataset = configured(tmp_path, dataset="digits").dataset
    assert isinstance(dataset, PackagedDataset)
    return dataset


def test_digits_equal_those_of_scikit_learn(digits: PackagedDataset) -> None:
    images, labels = read_package(digits)
    expected = load_digits()
    np.testing.assert_array_equal(images, (expected.images * 255 // 16).astype(np.uint8))
    np.testing.assert_array_equal(labels, expected.target)
    assert (images.min(), images.max()) == (0, 255)


def test_idx_encoding_of_an_array() -> None:
    array = np.array([[1, 2, 3], [4, 5, 6]], np.uint8)
    assert gzip.decompress(idx_bytes(array)) == bytes.fromhex("0000 0802 00000002 00000003 010203040506")


def test_digits_are_split_into_four_files(digits: PackagedDataset, tmp_path: Path) -> None:
    images, labels = read_package(digits)
    for role, content in packaged_files(digits).items():
        (tmp_path / role).write_bytes(content)
    np.testing.assert_array_equal(read_idx(tmp_path / "test_images", 3), images[-500:])
    np.testing.assert_array_equal(read_idx(tmp_path / "train_labels", 1), labels[:-500])


def test_a_package_with_another_hash_is_rejected(digits: PackagedDataset) -> None:
    other = digits.model_copy(
        update={"files": PackagedFiles(package=RemoteFile(name="digits.csv.gz", sha256="0" * 64))}
    )
    with pytest.raises(PipelineError, match=r"not the file that conf/dataset/digits\.yaml pins"):
        packaged_files(other)


def test_too_many_test_images_are_rejected(digits: PackagedDataset) -> None:
    with pytest.raises(PipelineError, match=r"dataset\.test_count: 1797 leaves too few training images"):
        packaged_files(digits.model_copy(update={"test_count": 1797}))
