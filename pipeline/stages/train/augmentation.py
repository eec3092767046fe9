"""Random augmentation of training images."""

import math
from typing import Any

import keras

from pipeline.core.backends import load_backend
from pipeline.core.errors import PipelineError
from pipeline.stages.train.archive import is_keras
from pipeline.stages.train.components import explained

BYTE, FLOAT = "uint8", "float32"
WHITE = 255
WITHOUT_CHANNEL = 3  # dimensions of a batch
NOISE = "keras.src.layers.regularization."  # Keras's package of noise layers
# Keras layers that change each image independently of the others in its batch.
ALLOWED = {
    *("RandomBrightness", "RandomContrast", "RandomElasticTransform", "RandomErasing", "RandomFlip", "RandomInvert"),
    *("RandomGaussianBlur", "RandomPerspective", "RandomPosterization", "RandomRotation", "RandomSharpness"),
    *("RandomShear", "RandomTranslation", "RandomZoom"),
    *("AlphaDropout", "Dropout", "GaussianDropout", "GaussianNoise", "SpatialDropout2D"),
    *("AutoContrast", "CenterCrop", "Cropping2D", "Equalization", "Identity", "Rescaling", "Resizing", "Solarization"),
    "ZeroPadding2D",
}
COLORED = "it needs color images, but these are grayscale"
REFUSED = {  # Keras layers, with the reason
    **dict.fromkeys(("MixUp", "CutMix"), "it mixes images, but labels are not mixed"),
    **dict.fromkeys(("RandomHue", "RandomSaturation", "RandomColorJitter", "RandomGrayscale"), COLORED),
    **dict.fromkeys(("RandomColorDegeneration", "RandAugment", "AugMix"), COLORED),
    "RandomCrop": "it crops all images of a batch at the same place; use RandomTranslation or RandomShift",
    **dict.fromkeys(("Sequential", "Functional", "Pipeline"), "list its layers one by one"),
}


class Augmentation(keras.layers.Layer):
    """Apply layers in sequence to training images, bytes (N, height, width); other images pass unchanged.

    Keras layers receive float32 images (N, height, width, 1) in 0…255, and noise layers in 0…1, regardless of the
    network's precision. Their output reaches the network without rounding. This pipeline's own layers receive bytes
    (N, height, width), and their output is rounded to bytes.
    """

    def __init__(self, row: list[keras.layers.Layer]) -> None:
        super().__init__(dtype=FLOAT, name="augmentation")
        self.row = row
        self.supports_jit = all(part.supports_jit for layer in row for part in layer._flatten_layers())

    def build(self, shape: tuple[int | None, ...]) -> None:
        """Build each layer for the output of the one before it."""
        images = keras.KerasTensor(shape, BYTE)
        for layer in self.row:
            images = apply(layer, images)

    def call(self, images: Any, training: bool = False) -> Any:
        """Augment the images while training; return them unchanged otherwise."""
        if not training:
            return keras.ops.cast(images, self._dtype())
        changed = images
        for layer in self.row:
            changed = apply(layer, changed)
        return without_channel(changed)

    def compute_output_spec(self, images: Any, training: bool = False) -> keras.KerasTensor:
        """Keep the shape of the input."""
        return keras.KerasTensor(images.shape, self._dtype())

    def _dtype(self) -> str:
        return FLOAT if is_keras(self.row[-1]) else BYTE


def check_augmentation(row: list[keras.layers.Layer], shape: tuple[int, ...]) -> None:
    """Raise PipelineError, naming the key, if a layer cannot augment grayscale images of this shape."""
    size, images = "×".join(map(str, shape)), keras.KerasTensor((None, *shape), BYTE)
    for index, layer in enumerate(row):
        key = f"training.augmentation.{index}: {type(layer).__name__}"
        if is_keras(layer) and type(layer).__name__ not in ALLOWED:
            why = REFUSED.get(type(layer).__name__, "it is not one of Keras's augmentation layers")
            raise PipelineError(f"{key} cannot be used: {why}")
        with explained(f"{key} does not accept grayscale images of {size}"):
            images = apply(layer, images)
        if layer.weights:
            raise PipelineError(f"{key} has weights: move it to model.layers")
    made = "×".join(map(str, without_channel(images).shape[1:]))
    if made != size:
        raise PipelineError(
            f"training.augmentation: turns images of {size} into {made}, but the network expects {size}"
        )


def apply(layer: keras.layers.Layer, images: Any) -> Any:
    """Apply one layer to training images, in the layer's own format."""
    if not is_keras(layer):
        return as_bytes(layer(as_bytes(images), training=True))
    unit = WHITE if type(layer).__module__.startswith(NOISE) else 1
    return layer(as_floats(images) / unit, training=True) * unit


def as_floats(images: Any) -> Any:
    """Convert images to the format of Keras layers: float32 (N, height, width, 1)."""
    with_channel = keras.ops.expand_dims(images, -1) if len(images.shape) == WITHOUT_CHANNEL else images
    return keras.ops.cast(with_channel, FLOAT)


def as_bytes(images: Any) -> Any:
    """Clip and round images to bytes (N, height, width)."""
    plain = without_channel(images)
    if keras.backend.standardize_dtype(plain.dtype) == BYTE:
        return plain
    return keras.ops.cast(keras.ops.round(keras.ops.clip(plain, 0, WHITE)), BYTE)


def without_channel(images: Any) -> Any:
    """Remove the channel axis, if there is one: (N, height, width)."""
    return images if len(images.shape) == WITHOUT_CHANNEL else keras.ops.squeeze(images, -1)


class RandomAffine(keras.layers.Layer):
    """Rotate, scale, shear and shift each image by its own random amounts, in one resampling; only while training.

    Takes and returns bytes (N, height, width). Each amount is uniform: rotations of ± `rotation` degrees, factors of
    1 ± `scale` for each axis, shears of ± `shear`, shifts of ± `shift` pixels along each axis. Pixels from beyond the
    edge are black.
    """

    def __init__(
        self, rotation: float = 0.0, scale: float = 0.0, shear: float = 0.0, shift: float = 0.0, **arguments: Any
    ) -> None:
        super().__init__(**arguments)
        self.supports_jit = keras.backend.backend() != "tensorflow"  # whose XLA lacks affine_transform
        if min(rotation, scale, shear, shift) < 0 or scale >= 1:
            raise ValueError("rotation, scale, shear and shift must not be negative, and scale must be below 1")
        self._amounts = [math.radians(rotation), scale, scale, shear, shift, shift]
        self._seeds = keras.random.SeedGenerator()

    def call(self, images: Any, training: bool = False) -> Any:
        """Transform the images while training; return them unchanged otherwise."""
        if not training:
            return images
        count, height, width = keras.ops.shape(images)
        draws = keras.random.uniform((count, len(self._amounts)), -1, 1, dtype="float32", seed=self._seeds)
        angle, *others = keras.ops.unstack(draws * keras.ops.array(self._amounts, "float32"), axis=1)
        scale_x, scale_y, shear, shift_x, shift_y = others
        maps = inverse_maps(angle, 1 + scale_x, 1 + scale_y, shear, shift_x, shift_y, height, width)
        moved = load_backend().resample(keras.ops.cast(images, "float32"), maps)
        return keras.ops.cast(keras.ops.round(moved), "uint8")


def inverse_maps(
    angle: Any, scale_x: Any, scale_y: Any, shear: Any, shift_x: Any, shift_y: Any, height: int, width: int
) -> Any:
    """Affine maps (N, 8), one per image, from each output pixel to the input pixel that it comes from.

    The pixel in column x and row y comes from column a·x + b·y + c and row d·x + e·y + f. A map is a, b, c, d, e, f,
    0, 0, as `keras.ops.image.affine_transform` expects. From output to input, about the image's center, it scales,
    shears along the rows, rotates by `angle` (radians) and shifts (pixels).
    """
    ops = keras.ops
    cosine, sine = ops.cos(angle), ops.sin(angle)
    a, d = cosine * scale_x, sine * scale_x
    b, e = (shear * cosine - sine) * scale_y, (shear * sine + cosine) * scale_y
    center_x, center_y = (width - 1) / 2, (height - 1) / 2
    c = center_x + shift_x - a * center_x - b * center_y
    f = center_y + shift_y - d * center_x - e * center_y
    return ops.stack([a, b, c, d, e, f, ops.zeros_like(a), ops.zeros_like(a)], axis=1)


class RandomShift(keras.layers.Layer):
    """Shift each image by its own random amounts, up to `pixels` whole pixels along each axis; only while training.

    Takes and returns bytes (N, height, width). Pixels from beyond the edge are black. Cheaper than `RandomAffine`, and
    XLA can compile it.
    """

    def __init__(self, pixels: int, **arguments: Any) -> None:
        super().__init__(**arguments)
        if not isinstance(pixels, int) or pixels < 1:
            raise ValueError("pixels must be a whole number above 0")
        self._pixels = pixels
        self._seeds = keras.random.SeedGenerator()

    def call(self, images: Any, training: bool = False) -> Any:
        """Shift the images while training; return them unchanged otherwise."""
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
    """Take each image from one of several tensors of the same shape (N, …), by its entry in `indices` (N,).

    Copying whole images is several times faster than selecting or gathering byte by byte.
    """
    count = keras.ops.shape(indices)[0]
    numbers = indices * count + keras.ops.arange(count, dtype="int32")
    return keras.ops.take(keras.ops.concatenate(options), numbers, axis=0)
