"""Stratified split of the training images into a training set and a validation set."""

import math

import numpy as np
from numpy.typing import NDArray

from pipeline.core.errors import PipelineError

Indices = NDArray[np.intp]


def hold_out(labels: NDArray[np.uint8], fraction: float, seed: int) -> tuple[Indices, Indices]:
    """Return the indices of the images to train on and of the held-out images, each in ascending order.

    The held-out set has ⌈`fraction` × N⌉ images, stratified by class. The split is identical to that of scikit-learn's
    `train_test_split(…, stratify=labels, random_state=seed)`, whose import takes longer than the rest of preprocess.
    Raises PipelineError if one of the two sets is too small to contain every class.
    """
    if not fraction:
        return np.arange(len(labels)), np.arange(0)
    classes, counts = np.unique(labels, return_counts=True)
    held = math.ceil(fraction * len(labels))
    if min(held, len(labels) - held) < len(classes) or counts.min() == 1:
        raise PipelineError(
            f"training.validation_fraction: {fraction} of {len(labels):,} images cannot be held out: "
            f"sets of {held:,} and {len(labels) - held:,} images cannot both contain all {len(classes)} classes"
        )
    random = np.random.RandomState(seed)
    kept_counts = apportion(counts, len(labels) - held, random)
    held_counts = apportion(counts - kept_counts, held, random)
    parts = []
    for label, kept, out in zip(classes, kept_counts, held_counts, strict=True):
        shuffled = random.permutation(np.flatnonzero(labels == label))
        parts.append((shuffled[:kept], shuffled[kept : kept + out]))
    train, validation = (np.sort(np.concatenate(part)) for part in zip(*parts, strict=True))
    return train, validation


def apportion(counts: NDArray[np.intp], seats: int, random: np.random.RandomState) -> NDArray[np.intp]:
    """Divide `seats` in proportion to `counts` by the largest remainder method; ties are broken at random."""
    shares = counts / counts.sum() * seats
    given = np.floor(shares)
    remainders = shares - given
    for remainder in np.unique(remainders)[::-1]:
        left = int(seats - given.sum())
        if not left:
            break
        tied = np.flatnonzero(remainders == remainder)
        given[random.choice(tied, min(left, len(tied)), replace=False)] += 1
    return given.astype(np.intp)
