"""Holding out part of the training images."""

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import train_test_split

from pipeline.errors import PipelineError


def hold_out(labels: NDArray[np.uint8], fraction: float, seed: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """The indices, each in ascending order, of the images to train on and of those held out.

    The held-out part has round-up(`fraction` × N) images, in each class as large a share as in the whole.
    Raises PipelineError if so small a part cannot have every class.
    """
    everything = np.arange(len(labels))
    if not fraction:
        return everything, everything[:0]
    try:
        train, held_out = train_test_split(everything, test_size=fraction, stratify=labels, random_state=seed)
    except ValueError as error:
        raise PipelineError(
            f"training.validation_fraction: {fraction} of {len(labels):,} images cannot be held out ({error})"
        ) from None
    return np.sort(train), np.sort(held_out)
