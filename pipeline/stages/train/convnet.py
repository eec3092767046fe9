"""A small convolutional network with batch normalization."""

import keras

from pipeline.stages.train.components import builder

HALVING = 2  # the first convolutions, which halve the image


@builder
def convolutional_layers(filters: list[int], kernels: list[int], units: int, dropout: float) -> list[keras.Layer]:
    """Convolutions, then a dense layer of `units`, each followed by batch normalization and ReLU.

    `filters` and `kernels` list the number of filters and the kernel size of each convolution. The first two
    convolutions halve the image. `dropout` is the dropout rate before and after the dense layer. With 0 units, the mean
    of each filter's output over the image replaces the dense layer, which has most of the parameters.
    Raises ValueError if `filters` and `kernels` are not lists of the same length.
    """
    if not isinstance(filters, list) or not isinstance(kernels, list) or len(filters) != len(kernels):
        raise ValueError(f"convolutions and kernels must be lists of the same length, not {filters} and {kernels}")
    layers = keras.layers
    row = []
    for index, (width, side) in enumerate(zip(filters, kernels, strict=True)):
        stride = 2 if index < HALVING else 1
        convolution = layers.Conv2D(width, side, strides=stride, padding="same", use_bias=False)
        row += [convolution, layers.BatchNormalization(momentum=0.9), layers.ReLU()]
    if units == 0:
        return [*row, layers.GlobalAveragePooling2D(), layers.Dropout(dropout)]
    dense = layers.Dense(units, use_bias=False)
    row += [layers.Flatten(), layers.Dropout(dropout), dense, layers.BatchNormalization(momentum=0.9), layers.ReLU()]
    return [*row, layers.Dropout(dropout)]
