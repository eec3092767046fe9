"""Feeding a network from images that lie on its device: what `model.fit` handles per update is their numbers."""

import math
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from pipeline.device import backend_module, on_tensorflow


class ImagePool(keras.layers.Layer):
    """Images that are given out by number: int32 (N,) in, uint8 (N, height, width) out.

    They cross to the device once. As floats in batches they would cross four times as large at every epoch.
    """

    def __init__(self, images: NDArray[np.uint8]) -> None:
        super().__init__(name="image_pool", trainable=False)
        self._images = self.add_weight(
            shape=images.shape,
            dtype="uint8",
            initializer=lambda shape, dtype: keras.ops.convert_to_tensor(images, dtype),
            trainable=False,
            name="images",
        )

    def call(self, numbers: Any) -> Any:
        """The images with these numbers, in this order."""
        return keras.ops.take(self._images, numbers, axis=0)

    def compute_output_spec(self, numbers: Any) -> keras.KerasTensor:
        """The images' size is known, how many are asked for is not."""
        return keras.KerasTensor((*numbers.shape, *self._images.shape[1:]), "uint8")

    def save_own_variables(self, store: Any) -> None:
        """Write nothing: images are no part of a checkpoint."""

    def load_own_variables(self, store: Any) -> None:
        """Read nothing."""


def batches(numbers: NDArray[np.int32], labels: NDArray[np.float32], size: int) -> Any:
    """Numbers and labels, `size` at a time and in this order, as `model.fit` takes them.

    For TensorFlow a dataset without tf.data's tuner: that would wake 10, 20, 40 … 2,560 ms after one another, and at
    the end of an epoch `fit` waits for it to wake once more. There is nothing to tune: a batch is a few kilobytes.
    """
    if not on_tensorflow():
        return ArrayBatches(numbers, labels, size)
    data = backend_module("tensorflow").data
    options = data.Options()
    options.autotune.enabled = False
    return data.Dataset.from_tensor_slices((numbers, labels)).batch(size).with_options(options)


class ArrayBatches(keras.utils.PyDataset):
    """The same for any backend."""

    def __init__(self, numbers: NDArray[np.int32], labels: NDArray[np.float32], size: int) -> None:
        super().__init__()
        self._numbers, self._labels, self._size = numbers, labels, size

    def __len__(self) -> int:
        return math.ceil(len(self._numbers) / self._size)

    def __getitem__(self, index: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        part = slice(index * self._size, (index + 1) * self._size)
        return self._numbers[part], self._labels[part]
