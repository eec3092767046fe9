"""Recalibration of batch normalization on images without augmentation, as in inference."""

from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from pipeline.stages.train.network import members_of

IMAGES = 10_000
BATCH = 1000


def recalibrate(network: keras.Model, images: NDArray[np.uint8]) -> None:
    """Set the mean and variance of every batch normalization in `network` to those of its input on these images.

    In training, they are running averages over augmented hard examples with dropout, from weights that still change.
    Layers are recalibrated in order, as the statistics of one change the input of the next (Wu and Johnson 2021,
    arXiv:2105.07576, section 3). Of the images (N, height, width), 10,000 evenly spaced ones are used. A batch
    normalization inside a nested layer is not changed.
    """
    chosen = images[np.linspace(0, len(images) - 1, min(IMAGES, len(images))).round().astype(int)]
    for member in members_of(network):
        for layer in member.layers:
            if isinstance(layer, keras.layers.BatchNormalization):
                mean, variance = moments(keras.Model(member.input, layer.input), chosen, layer.axis)
                layer.moving_mean.assign(mean)
                layer.moving_variance.assign(variance)


def moments(part: keras.Model, images: NDArray[np.uint8], axis: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Mean and variance of the output of a part of a network over all axes but one, computed batch by batch."""
    sums = []
    for start in range(0, len(images), BATCH):
        values = np.moveaxis(np.asarray(part.predict_on_batch(images[start : start + BATCH]), np.float64), axis, -1)
        flat = values.reshape(-1, values.shape[-1])
        sums.append((len(flat), flat.sum(axis=0), np.square(flat).sum(axis=0)))
    count, total, squares = (sum(column) for column in zip(*sums, strict=True))
    mean = total / count
    return mean, squares / count - np.square(mean)
