"""A small convolutional network with batch normalisation."""

import keras

from pipeline.train.components import builder

HALVING = 2  # convolutions that halve the image, the first ones


@builder
def convolutional_layers(filters: list[int], kernels: list[int], units: int, dropout: float) -> list[keras.Layer]:
    """Convolutions with so many filters and kernels of that side each, then a dense layer; all normalised, then ReLU.

    The first two halve the image. `dropout` is the rate before and after the dense layer.
    Raises ValueError if there are not as many kernels as convolutions.
    """
    if not isinstance(filters, list) or not isinstance(kernels, list) or len(filters) != len(kernels):
        raise ValueError(f"convolutions and kernels must be lists of one length, not {filters} and {kernels}")
    layers = keras.layers
    row = []
    for index, (width, side) in enumerate(zip(filters, kernels, strict=True)):
        stride = 2 if index < HALVING else 1
        convolution = layers.Conv2D(width, side, strides=stride, padding="same", use_bias=False)
        row += [convolution, layers.BatchNormalization(momentum=0.9), layers.ReLU()]
    dense = layers.Dense(units, use_bias=False)
    row += [layers.Flatten(), layers.Dropout(dropout), dense, layers.BatchNormalization(momentum=0.9), layers.ReLU()]
    return [*row, layers.Dropout(dropout)]
