"""A small convolutional network with batch normalisation."""

import keras

SIZES = {0: 5}  # of the kernel, by the convolution's index
STRIDES = {0: 2, 1: 2}


def convolutional_layers(filters: list[int], units: int, dropout: float) -> list[keras.Layer]:
    """Convolutions, the first of 5×5 pixels and the others of 3×3, then one dense layer; each normalised, then ReLU.

    The first two halve the image. `dropout` is the rate before and after the dense layer.
    """
    layers = keras.layers
    row = []
    for index, width in enumerate(filters):
        size, stride = SIZES.get(index, 3), STRIDES.get(index, 1)
        convolution = layers.Conv2D(width, size, strides=stride, padding="same", use_bias=False)
        row += [convolution, layers.BatchNormalization(momentum=0.9), layers.ReLU()]
    dense = layers.Dense(units, use_bias=False)
    row += [layers.Flatten(), layers.Dropout(dropout), dense, layers.BatchNormalization(momentum=0.9), layers.ReLU()]
    return [*row, layers.Dropout(dropout)]
