"""Statistics of the data: counts, gray levels, duplicates."""

from collections import Counter

import numpy as np

from pipeline.core.dataset import Split
from pipeline.core.records import Duplicates, SplitStatistics

GREY_LEVELS = 256


def describe_split(split: Split, classes: int) -> SplitStatistics:
    """Compute the statistics of one split."""
    # In parts, because bincount converts its input to eight bytes per pixel.
    parts = np.array_split(split.images.reshape(-1), len(split.images) // 500 + 1)
    counts = np.sum([np.bincount(part, minlength=GREY_LEVELS) for part in parts], axis=0)
    levels = np.arange(GREY_LEVELS) / (GREY_LEVELS - 1)
    total = max(counts.sum(), 1)
    mean = float(counts @ levels / total)
    variance = float(counts @ (levels - mean) ** 2 / total)
    per_class = np.bincount(split.labels, minlength=classes)
    return SplitStatistics(
        images=len(split.images), mean=round(mean, 6), std=round(variance**0.5, 6), per_class=per_class.tolist()
    )


def count_duplicates(train: Split, test: Split) -> Duplicates:
    """Count exact duplicates."""
    seen_train, seen_test = (Counter(image.tobytes() for image in split.images) for split in (train, test))
    return Duplicates(
        within_train=len(train.images) - len(seen_train),
        within_test=len(test.images) - len(seen_test),
        test_in_train=sum(count for image, count in seen_test.items() if image in seen_train),
    )
