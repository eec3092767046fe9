"""Training images that are never twice the same."""

import math
from typing import Any

import keras


class RandomAffine(keras.layers.Layer):
    """Turn, scale, shear and shift each image by random amounts of its own, in one resampling; only while training.

    Bytes (N, height, width) in and out. Each amount is uniform: up to `rotation` degrees either way, factors of
    1 ± `scale` for each axis, shears of ± `shear`, shifts of ± `shift` pixels along each axis. What comes from beyond
    the edge is black.
    """

    def __init__(
        self, rotation: float = 0.0, scale: float = 0.0, shear: float = 0.0, shift: float = 0.0, **arguments: Any
    ) -> None:
        super().__init__(**arguments)
        if min(rotation, scale, shear, shift) < 0 or scale >= 1:
            raise ValueError("rotation, scale, shear and shift must not be negative, and scale must be below 1")
        self._amounts = [math.radians(rotation), scale, scale, shear, shift, shift]
        self._seeds = keras.random.SeedGenerator()

    def call(self, images: Any, training: bool = False) -> Any:
        """The images as they are, or changed ones while training."""
        if not training:
            return images
        count, height, width = keras.ops.shape(images)
        draws = keras.random.uniform((count, len(self._amounts)), -1, 1, dtype="float32", seed=self._seeds)
        angle, *others = keras.ops.unstack(draws * keras.ops.array(self._amounts, "float32"), axis=1)
        scale_x, scale_y, shear, shift_x, shift_y = others
        moved = keras.ops.image.affine_transform(
            keras.ops.expand_dims(keras.ops.cast(images, "float32"), -1),
            inverse_maps(angle, 1 + scale_x, 1 + scale_y, shear, shift_x, shift_y, height, width),
            data_format="channels_last",
        )
        return keras.ops.cast(keras.ops.round(keras.ops.squeeze(moved, -1)), "uint8")


def inverse_maps(
    angle: Any, scale_x: Any, scale_y: Any, shear: Any, shift_x: Any, shift_y: Any, height: int, width: int
) -> Any:
    """For each of N images the eight numbers (N, 8) that say where each pixel of the outcome comes from.

    The pixel in column x and row y comes from column a·x + b·y + c and row d·x + e·y + f: the row is a, b, c, d, e, f,
    0, 0, as `keras.ops.image.affine_transform` asks. About the image's centre, from the outcome back: scaled, sheared
    along the rows, turned by `angle` (radians), shifted (pixels).
    """
    ops = keras.ops
    cosine, sine = ops.cos(angle), ops.sin(angle)
    a, d = cosine * scale_x, sine * scale_x
    b, e = (shear * cosine - sine) * scale_y, (shear * sine + cosine) * scale_y
    centre_x, centre_y = (width - 1) / 2, (height - 1) / 2
    c = centre_x + shift_x - a * centre_x - b * centre_y
    f = centre_y + shift_y - d * centre_x - e * centre_y
    return ops.stack([a, b, c, d, e, f, ops.zeros_like(a), ops.zeros_like(a)], axis=1)


class RandomShift(keras.layers.Layer):
    """Shift each image by up to `pixels` whole pixels along each axis, by amounts of its own; only while training.

    Bytes (N, height, width) in and out; what comes from beyond the edge is black. Cheaper than `RandomAffine`, and XLA
    can compile it.
    """

    def __init__(self, pixels: int, **arguments: Any) -> None:
        super().__init__(**arguments)
        if not isinstance(pixels, int) or pixels < 1:
            raise ValueError("pixels must be a whole number above 0")
        self._pixels = pixels
        self._seeds = keras.random.SeedGenerator()

    def call(self, images: Any, training: bool = False) -> Any:
        """The images as they are, or shifted ones while training."""
        if not training:
            return images
        ops = keras.ops
        count, height, width = ops.shape(images)
        ends = (self._pixels, self._pixels)
        padded = ops.pad(images, ((0, 0), ends, ends))
        starts = keras.random.randint((2, count), 0, 2 * self._pixels + 1, seed=self._seeds)
        rows = [padded[:, start : start + height] for start in range(2 * self._pixels + 1)]
        shifted = choose(starts[0], rows)
        return choose(starts[1], [shifted[:, :, start : start + width] for start in range(len(rows))])


def choose(indices: Any, options: list[Any]) -> Any:
    """Of several tensors of one shape (N, …) the one that `indices` (N,) name, image by image.

    Whole images are copied, which is several times quicker than to select or to gather byte by byte.
    """
    count = keras.ops.shape(indices)[0]
    numbers = indices * count + keras.ops.arange(count, dtype="int32")
    return keras.ops.take(keras.ops.concatenate(options), numbers, axis=0)
