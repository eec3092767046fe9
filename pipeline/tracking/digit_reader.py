"""Predictor of a served model: raw images in, probabilities out. Stored with the model, it imports no pipeline code."""

import base64
import binascii
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
from PIL import Image, UnidentifiedImageError

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # since 1.29 it reports every loaded model to its vendor
import onnxruntime

NETWORK = "model.onnx"
DIGESTS = "sha256"  # metadata key in the MLmodel file: the SHA-256 of each file in the network's folder
BATCH = 1000  # images; larger batches exceed the CPU cache
WHITE = 255
BASE64 = "b64"  # TensorFlow Serving's key for binary values
PICTURES = ("PNG", "JPEG")
MODES = ("1", "L", "P", "RGB")  # pixel formats with at most 8 bits a channel and without transparency


class BadImages(MlflowException):
    """The input is not a valid batch of images. The server answers 400 with the message."""

    def __init__(self, message: str) -> None:
        super().__init__(message, error_code=INVALID_PARAMETER_VALUE)

    def __setattr__(self, name: str, value: Any) -> None:
        """Keep the message: MLflow's server would prepend the whole request to it."""
        if name != "message" or not hasattr(self, "message"):
            super().__setattr__(name, value)


class DigitReader:
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
    wanted = f"(N, {', '.join(map(str, shape))})"
    try:
        images = np.asarray(values_of(data, shape, name))
    except ValueError:
        raise BadImages(f"the rows or images differ in length: send images of shape {wanted}") from None
    if images.size and images.shape[1:] in ((math.prod(shape),), (*shape, 1)):
        images = images.reshape(-1, *shape)
    if images.shape[1:] != shape or not images.size:
        raise BadImages(f"expected images of shape {wanted}, got shape {images.shape}")
    if images.dtype.kind not in "iu":
        raise BadImages(
            f"pixels must be integers from 0 to {WHITE}, got {images.dtype.name}: send the image's unscaled bytes"
        )
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


def values_of(data: Any, shape: tuple[int, ...], name: str) -> Any:
    """The pixels in `data`: of a dictionary with the input's name, a data frame, or a list of encoded pictures."""
    if isinstance(data, Mapping) and list(data) != [BASE64]:
        if list(data) != [name]:
            raise BadImages(f"expected the input {name!r}, got {', '.join(map(repr, data)) or 'no input'}")
        data = data[name]
    if hasattr(data, "to_numpy"):
        return data.to_numpy()
    if isinstance(data, list | tuple) and data and all(isinstance(item, str | Mapping) for item in data):
        return [decode_picture(item, number, shape, name) for number, item in enumerate(data)]
    return data


def decode_picture(item: Any, number: int, shape: tuple[int, ...], name: str) -> Any:
    """The pixels (height, width) of a PNG or JPEG picture in base64, or those in a dictionary with the input's name.

    Raises BadImages if it cannot be decoded, or has another size: how to scale it would be a guess.
    """
    if isinstance(item, Mapping) and list(item) == [name]:
        item = item[name]
        if not isinstance(item, str | Mapping):
            return item
    text: Any = item.get(BASE64) if isinstance(item, Mapping) else item
    try:
        picture = Image.open(io.BytesIO(base64.b64decode(text, validate=True)), formats=PICTURES)
        size, mode = (picture.height, picture.width), picture.mode
        if size == shape and mode in MODES and "transparency" not in picture.info:
            return np.asarray(picture.convert("L"))
    except (TypeError, ValueError, binascii.Error, OSError, SyntaxError, UnidentifiedImageError):
        raise BadImages(f"image {number} is not a PNG or JPEG picture in base64") from None
    if size != shape:
        found, wanted = (f"{width}×{height}" for height, width in (size, shape))
        raise BadImages(f"image {number} has {found} pixels, expected {wanted}")
    raise BadImages(f"image {number} has transparency or 16 bits a channel (mode {mode}): send 8-bit gray levels")


def _load_pyfunc(folder: str) -> DigitReader:
    """Load the model; MLflow calls this. Raises MlflowException if a file is not the one that was logged."""
    path = Path(folder)
    for name, digest in Model.load(path.parent.parent).metadata[DIGESTS].items():
        found = hashlib.sha256((path / name).read_bytes()).hexdigest()
        if found != digest:
            raise MlflowException(
                f"{path / name} is not the file that was logged: its SHA-256 is {found}, expected {digest}. "
                "The model is not loaded. `make promote` registers it again"
            )
    return DigitReader(path / NETWORK)
