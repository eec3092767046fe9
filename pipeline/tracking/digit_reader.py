"""What answers for a served model: raw images in, probabilities out. It travels with the model, so it stands alone."""

import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
from mlflow.exceptions import MlflowException
from mlflow.models import Model
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from numpy.typing import NDArray

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # from 1.29 on it reports every model that it loads to its maker
import onnxruntime

NETWORK = "model.onnx"
DIGESTS = "sha256"  # in the metadata of the MLmodel file: the SHA-256 of each file in the folder of the network
BATCH = 1000  # images at once: larger ones leave the processor's cache
WHITE = 255


class BadImages(MlflowException):
    """What was sent cannot be read as images: the server answers 400 with the message."""

    def __init__(self, message: str) -> None:
        super().__init__(message, error_code=INVALID_PARAMETER_VALUE)

    def __setattr__(self, name: str, value: Any) -> None:
        """Keep the message: MLflow's server would put all that was sent in front of it."""
        if name != "message" or not hasattr(self, "message"):
            super().__setattr__(name, value)


class DigitReader:
    """A network in ONNX Runtime, behind a check of what it is given."""

    def __init__(self, path: Path) -> None:
        self._session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        (images,), (probabilities,) = self._session.get_inputs(), self._session.get_outputs()
        self._name = images.name
        self.image_shape = tuple(images.shape[1:])
        self.classes = int(probabilities.shape[1])

    def predict(self, data: Any) -> NDArray[np.float32]:
        """Probabilities (N, classes) of images (N, height, width) in grey levels 0 to 255, light on dark.

        Takes an array of integers or nested lists of them. Raises BadImages for anything else.
        """
        images = check_images(data, self.image_shape)
        parts = (images[start : start + BATCH] for start in range(0, len(images), BATCH))
        return np.concatenate([self._session.run(None, {self._name: part})[0] for part in parts])


def check_images(data: Any, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """The images (N, *shape) as bytes. Raises BadImages, with what is wrong and where."""
    wanted = f"(N, {', '.join(map(str, shape))})"
    try:
        images = np.asarray(data)
    except ValueError:
        raise BadImages(f"the rows or images differ in length: send images of shape {wanted}") from None
    if images.shape[1:] != shape or not len(images):
        raise BadImages(f"images of shape {wanted} are read here, and this has shape {images.shape}")
    if images.dtype.kind not in "iu":
        raise BadImages(
            f"grey levels are whole numbers from 0 to {WHITE}, and these are {images.dtype.name}: "
            "send the bytes of the image as they are, not scaled"
        )
    if images.dtype == np.uint8:
        return images
    wrong = np.argwhere((images < 0) | (images > WHITE))
    if len(wrong):
        image, row, column = wrong[0]
        raise BadImages(
            f"grey levels are whole numbers from 0 to {WHITE}, and image {image} has {images[tuple(wrong[0])]} "
            f"in row {row}, column {column}"
        )
    return images.astype(np.uint8)


def _load_pyfunc(folder: str) -> DigitReader:
    """What MLflow calls to load the model. Raises MlflowException if a file is not the one that was logged."""
    path = Path(folder)
    for name, digest in Model.load(path.parent.parent).metadata[DIGESTS].items():
        found = hashlib.sha256((path / name).read_bytes()).hexdigest()
        if found != digest:
            raise MlflowException(
                f"{path / name} is not the file that was logged: its SHA-256 is {found}, the model's has {digest}. "
                "It is not loaded. `make promote` registers the model anew"
            )
    return DigitReader(path / NETWORK)
