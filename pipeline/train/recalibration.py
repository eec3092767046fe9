"""Batch normalisation by what a trained network will read, not by what it was trained on."""

from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from pipeline.train.network import members_of

IMAGES = 10_000
BATCH = 1000


def recalibrate(network: keras.Model, images: NDArray[np.uint8]) -> None:
    """Give every batch normalisation in `network` the mean and variance that its input has on these images.

    While training they are running averages over augmented, hard images with dropout, from weights that still
    changed. Layer by layer, as the statistics of one change what the next one gets (Wu and Johnson 2021,
    arXiv:2105.07576, section 3). Of the images (N, height, width), 10,000 from first to last are used. A normalisation
    inside a layer of layers stays as it is.
    """
    chosen = images[np.linspace(0, len(images) - 1, min(IMAGES, len(images))).round().astype(int)]
    for member in members_of(network):
        for layer in member.layers:
            if isinstance(layer, keras.layers.BatchNormalization):
                mean, variance = moments(keras.Model(member.input, layer.input), chosen, layer.axis)
                layer.moving_mean.assign(mean)
                layer.moving_variance.assign(variance)


def moments(part: keras.Model, images: NDArray[np.uint8], axis: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Mean and variance over all axes but one of what a part of a network makes of images, batch by batch."""
    sums = []
    for start in range(0, len(images), BATCH):
        values = np.moveaxis(np.asarray(part.predict_on_batch(images[start : start + BATCH]), np.float64), axis, -1)
        flat = values.reshape(-1, values.shape[-1])
        sums.append((len(flat), flat.sum(axis=0), np.square(flat).sum(axis=0)))
    count, total, squares = (sum(column) for column in zip(*sums, strict=True))
    mean = total / count
    return mean, squares / count - np.square(mean)
