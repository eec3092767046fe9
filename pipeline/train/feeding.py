"""Feeding a network from images that lie on its device: what is handled per update is their numbers."""

from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray


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
