"""Input from images that stay on the network's device: each update receives only their indices."""

from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray


class ImagePool(keras.layers.Layer):
    """Look up images by index: int32 (N,) in, uint8 (N, height, width) out.

    The images are copied to the device once. As batches of floats, they would be copied in every epoch, at four times
    the size.
    """

    def __init__(self, images: NDArray[np.uint8]) -> None:
        super().__init__(name="image_pool", trainable=False)
        self._images = self.add_weight(
            shape=images.shape, dtype="uint8", initializer="zeros", trainable=False, name="images"
        )
        self._images.assign(images)  # an initializer would become part of JAX's compiled code on several devices

    def call(self, numbers: Any) -> Any:
        """Images with these indices, in this order."""
        return keras.ops.take(self._images, numbers, axis=0)

    def compute_output_spec(self, numbers: Any) -> keras.KerasTensor:
        """The image size is known, the number of images is not."""
        return keras.KerasTensor((*numbers.shape, *self._images.shape[1:]), "uint8")
