"""Batch normalisation by what a trained network will read, not by what it was trained on."""

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
    arXiv:2105.07576, section 3). The first 10,000 of the images (N, height, width) are used, which are in no order.
    """
    for member in members_of(network):
        for layer in member.layers:
            if isinstance(layer, keras.layers.BatchNormalization):
                before = keras.Model(member.input, layer.input)
                inputs = before.predict(images[:IMAGES], batch_size=BATCH, verbose=0)
                axes = tuple(axis for axis in range(inputs.ndim) if axis != layer.axis % inputs.ndim)
                layer.moving_mean.assign(inputs.mean(axes, dtype=np.float64))
                layer.moving_variance.assign(inputs.var(axes, dtype=np.float64))
