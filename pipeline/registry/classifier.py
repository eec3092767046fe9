"""Predictor of a served model: raw images in, probabilities out. Stored with the model, it imports no pipeline code."""

import base64
import hashlib
import io
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from mlflow.exceptions import MlflowException
from mlflow.models import Model
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from numpy.typing import NDArray
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # since 1.29 it reports every loaded model to its vendor
import onnxruntime

NETWORK = "model.onnx"
DIGESTS = "sha256"  # metadata key in the MLmodel file: the SHA-256 of each file in the network's folder
BATCH = 1000  # images; larger batches exceed the CPU cache
WHITE = 255
BASE64 = "b64"  # TensorFlow Serving's key for binary values
PNG_START = b"\x89PNG"
MODES = ("1", "L", "RGB")  # pixel formats with at most 8 bits a channel, without transparency or palette
ORIENTATION = 0x0112  # EXIF tag of a picture that is to be shown rotated
LONGEST = 1 << 16  # characters of a picture in base64
MOST = 4000  # encoded pictures in a request: as many images as a body can contain as lists
INTEGERS = (int, np.integer, np.ndarray)  # a decoded picture is an array
LONG_KEY = 40  # characters
LEVELS = 4  # of nested lists to look at: more than in any valid image


class BadImages(MlflowException):
    """The input is not a valid batch of images. The server answers 400 with the message."""

    def __init__(self, message: str) -> None:
        super().__init__(message, error_code=INVALID_PARAMETER_VALUE)

    def __setattr__(self, name: str, value: Any) -> None:
        """Keep the message: MLflow's server would prepend the whole request to it."""
        if name != "message" or not hasattr(self, "message"):
            super().__setattr__(name, value)


class DigitClassifier:
    """A network in ONNX Runtime that checks its input."""

    def __init__(self, path: Path) -> None:
        self._session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        (images,), (probabilities,) = self._session.get_inputs(), self._session.get_outputs()
        self._name = images.name
        self.image_shape = tuple(images.shape[1:])
        self.classes = int(probabilities.shape[1])

    def predict(self, data: Any) -> NDArray[np.float32]:
        """Probabilities (N, classes) of images (N, height, width) with pixels from 0 to 255, light on dark.

        Takes integers, as an array, nested lists or a data frame, in the shapes (N, height, width),
        (N, height, width, 1) and (N, height * width); PNG or JPEG pictures in base64; or any of these in a dictionary
        with the name of the input. Raises BadImages for anything else.
        """
        images = check_images(data, self.image_shape, self._name)
        parts = (images[start : start + BATCH] for start in range(0, len(images), BATCH))
        return np.concatenate([self._session.run(None, {self._name: part})[0] for part in parts])


def check_images(data: Any, shape: tuple[int, ...], name: str = "images") -> NDArray[np.uint8]:
    """The images (N, *shape) as uint8. Raises BadImages with the reason and the position."""
    try:
        images = np.asarray(pixels_of(data, shape, name))
    except ValueError:
        raise BadImages(
            f"the rows or images differ in length: send images of shape (N, {', '.join(map(str, shape))})"
        ) from None
    if images.shape[1:] not in shapes(shape) or not images.size:
        raise BadImages(wrong_shape(shape, images.shape))
    images = images.reshape(-1, *shape)
    if images.dtype.kind not in "iu":
        raise BadImages(not_integers(images.dtype.name))
    if images.dtype == np.uint8:
        return images
    wrong = np.argwhere((images < 0) | (images > WHITE))
    if len(wrong):
        image, row, column = wrong[0]
        raise BadImages(
            f"pixels must be integers from 0 to {WHITE}, but image {image} has {images[tuple(wrong[0])]} "
            f"in row {row}, column {column}"
        )
    return images.astype(np.uint8)


def pixels_of(data: Any, shape: tuple[int, ...], name: str) -> Any:
    """The pixels in `data`, which can be named, a data frame, or a list that contains encoded pictures.

    Raises BadImages for other values than integers in a list: NumPy would take true for 1, or all for strings.
    """
    data = data[name] if is_named(data, name) else data
    if isinstance(data, Mapping):
        raise BadImages(f"expected the input {name!r}, got {', '.join(map(shortened, data)) or 'no input'}")
    if hasattr(data, "to_numpy"):
        return data.to_numpy()
    if not isinstance(data, list | tuple):
        return data
    items = [item[name] if is_named(item, name) else item for item in data]
    encoded = [isinstance(item, str | Mapping) for item in items]
    if sum(encoded) > MOST:
        raise BadImages(f"a request can contain at most {MOST:,} pictures, got {sum(encoded):,}")
    items = [decode_picture(item, number, shape) if encoded[number] else item for number, item in enumerate(items)]
    found: set[type] = set()
    for item in items:
        nested = nesting(item)
        if nested not in shapes(shape):
            raise BadImages(wrong_shape(shape, (len(items), *nested)))
        found |= kinds(item, nested)
    wrong = sorted({kind.__name__ for kind in found if kind is bool or not issubclass(kind, INTEGERS)})
    if wrong:
        raise BadImages(not_integers(", ".join(wrong)))
    return np.stack([np.asarray(item) for item in items]) if items else items


def shapes(shape: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    """The shapes in which an image can be sent."""
    return shape, (*shape, 1), (math.prod(shape),)


def nesting(item: Any, levels: int = LEVELS) -> tuple[int, ...]:
    """The shape of nested lists, judged by the first of each, down to a few levels.

    NumPy looks at all of them, and takes a hundred times the memory of a request that contains many short lists.
    """
    if isinstance(item, list | tuple):
        return (len(item), *(nesting(item[0], levels - 1) if item and levels else ()))
    return np.shape(item)


def wrong_shape(shape: tuple[int, ...], found: tuple[int, ...]) -> str:
    """The message for images of another shape."""
    return f"expected images of shape (N, {', '.join(map(str, shape))}), got shape {found}"


def is_named(data: Any, name: str) -> bool:
    """Whether `data` is a dictionary with the name of the input as its only key."""
    return isinstance(data, Mapping) and list(data) == [name]


def kinds(values: Any, shape: tuple[int, ...]) -> set[type]:
    """The types of the values in nested lists of a shape. Raises ValueError if a list has another length."""
    if not isinstance(values, list | tuple):
        return {type(values)}
    if len(values) != shape[0]:
        raise ValueError
    if len(shape) == 1:
        return set(map(type, values))
    found: set[type] = set()
    for inner in values:
        found |= kinds(inner, shape[1:])
    return found


def decode_picture(item: Any, number: int, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """The pixels (height, width) of a PNG or JPEG picture in base64, as a string or as {"b64": string}.

    Raises BadImages if it cannot be decoded, or has another size: how to scale it would be a guess.
    """
    text: Any = item.get(BASE64) if isinstance(item, Mapping) and list(item) == [BASE64] else item
    try:
        if len(text) > LONGEST:
            raise ValueError
        content = base64.b64decode(text, validate=True)
        # These read the header only. Image.open also prints a warning for a large picture.
        picture = (PngImageFile if content.startswith(PNG_START) else JpegImageFile)(io.BytesIO(content))
        size, mode, turned = (picture.height, picture.width), picture.mode, False
        if size == shape and mode in MODES and "transparency" not in picture.info:
            turned = picture.getexif().get(ORIENTATION, 1) != 1  # this decodes a PNG, so it comes after the size
            if not turned:
                return np.asarray(picture.convert("L"))
    except Exception:  # Pillow raises almost anything on damaged files
        raise BadImages(f"image {number} is not a PNG or JPEG picture in base64 of at most {LONGEST:,} bytes") from None
    if size != shape:
        found, wanted = (f"{width}×{height}" for height, width in (size, shape))
        raise BadImages(f"image {number} has {found} pixels, expected {wanted}")
    if turned:
        raise BadImages(f"image {number} has an EXIF orientation: rotate its pixels instead")
    raise BadImages(f"image {number} has a palette, transparency or 16 bits (mode {mode}): send 8-bit gray levels")


def not_integers(found: str) -> str:
    """The message for pixels of another type."""
    return f"pixels must be integers from 0 to {WHITE}, got {found}: send the image's unscaled bytes"


def shortened(key: Any) -> str:
    """A key of a request, for a message."""
    return repr(key) if len(repr(key)) < LONG_KEY else f"{repr(key)[:LONG_KEY]}…"


def _load_pyfunc(folder: str) -> DigitClassifier:
    """Load the model; MLflow calls this. Raises MlflowException if a file is not the one that was logged."""
    path = Path(folder)
    for name, digest in Model.load(path.parent.parent).metadata[DIGESTS].items():
        found = hashlib.sha256((path / name).read_bytes()).hexdigest()
        if found != digest:
            raise MlflowException(
                f"{path / name} is not the file that was logged: its SHA-256 is {found}, expected {digest}. "
                "The model is not loaded. `make promote` registers it again"
            )
    return DigitClassifier(path / NETWORK)
