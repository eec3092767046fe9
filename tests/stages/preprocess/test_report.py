import numpy as np

from pipeline.core.dataset import Split
from pipeline.stages.preprocess.report import count_duplicates, describe_split

A, B, C = (np.full((2, 2), level, np.uint8) for level in (0, 51, 255))


def split(*images: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> Split:
    return Split(np.stack(images), np.arange(len(images), dtype=np.uint8) % 3)


def test_statistics_of_four_images() -> None:
    report = describe_split(split(A, A, B, C), classes=4)
    assert report.model_dump() == {"images": 4, "mean": 0.3, "std": 0.412311, "per_class": [2, 1, 1, 0]}


def test_statistics_equal_those_of_numpy() -> None:
    images = np.random.default_rng(0).integers(0, 256, (1203, 5, 7)).astype(np.uint8)
    report = describe_split(Split(images, np.zeros(1203, np.uint8)), classes=1)
    assert (report.mean, report.std) == (round((images / 255).mean(), 6), round((images / 255).std(), 6))


def test_an_empty_split_has_statistics() -> None:
    empty = Split(np.zeros((0, 2, 2), np.uint8), np.zeros(0, np.uint8))
    assert describe_split(empty, classes=2).model_dump() == {"images": 0, "mean": 0.0, "std": 0.0, "per_class": [0, 0]}


def test_duplicates_are_counted() -> None:
    duplicates = count_duplicates(split(A, A, A, B), split(B, B, A, C))
    assert duplicates.model_dump() == {"within_train": 2, "within_test": 1, "test_in_train": 3}
