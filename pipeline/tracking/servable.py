"""The form in which a model is registered: served from raw images, without Keras, and checked before it is loaded."""

import shutil
import sys
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import keras
import mlflow.pyfunc
import numpy as np
from mlflow import MlflowClient
from mlflow.models import Model
from numpy.typing import NDArray

from pipeline.errors import PipelineError, first_line
from pipeline.files import sha256
from pipeline.stage import quietly
from pipeline.tracking import digit_reader
from pipeline.tracking.keras_model import example_of, log_model, pinned, signature_of
from pipeline.tracking.model_files import digest, download

NAME = "served"
FOLDER = "network"  # in the model's data/
TOLERANCE = 1e-5  # of a probability: how far the served network may be from the trained one


class Servable(NamedTuple):
    """A logged model that can be served: MLflow's name for it, its address, and the digest of what is served."""

    model_id: str
    source: str
    digest: str


def log_servable(
    client: MlflowClient, run_id: str, network_file: Path, images: NDArray[np.uint8], beside: Mapping[Path, str]
) -> Servable:
    """Log the network in a `.keras` file to a run as a model that is served from raw images.

    `images` (N, height, width) are what it is tried on; `beside` are files to lie with it, each with its folder.
    Raises PipelineError if it does not answer as the network itself does.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / FOLDER
        folder.mkdir()
        shutil.copyfile(network_file, folder / "model.keras")
        check_conversion(network_file, folder / digit_reader.NETWORK, images)
        model_id = log_model(client, run_id, NAME, sys.modules[__name__], folder=folder)
    for path, inside in beside.items():
        client.log_model_artifact(model_id, str(path), inside or None)
    source = f"models:/{model_id}"
    with tempfile.TemporaryDirectory() as temporary:
        return Servable(model_id, source, digest(download(source, temporary)))


def check_conversion(network_file: Path, converted: Path, images: NDArray[np.uint8]) -> None:
    """Write the network as ONNX to `converted`. Raises PipelineError if it answers otherwise than Keras does."""
    failure, difference = None, np.nan
    with quietly():  # which would show what it held back if an error left it
        try:
            difference = convert(network_file, converted, images)
        except Exception as error:  # whatever a layer, the converter or ONNX's runtime cannot do
            failure = error
    if failure:
        raise PipelineError(f"{network_file} cannot be served: it has no form in ONNX ({first_line(failure)})")
    if not difference <= TOLERANCE:
        raise PipelineError(
            f"{network_file} cannot be served: in ONNX its probabilities are up to {difference:.2g} away from "
            f"those in Keras, and {TOLERANCE:g} is allowed"
        )


def convert(network_file: Path, converted: Path, images: NDArray[np.uint8]) -> float:
    """Write the network as ONNX; return the largest difference of a probability of `images` from what Keras gives."""
    network = keras.saving.load_model(network_file, compile=False, safe_mode=True)
    expected = network.predict(images, verbose=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tf2onnx looks for names that NumPy has dropped
        network.export(converted, format="onnx", verbose=False)
    return float(np.abs(digit_reader.DigitReader(converted).predict(images) - expected).max())


def save_model(path: str, mlflow_model: Model, folder: Path, **_: Any) -> None:
    """Write an MLflow model that serves the network in `folder`: what `Model.log` asks of a flavor."""
    network = keras.saving.load_model(folder / "model.keras", compile=False, safe_mode=True)
    signature = signature_of(network)
    # So that the server hands on what was sent: it casts it to bytes otherwise, and images scaled to 0…1 turn black.
    signature._is_signature_from_type_hint = True
    mlflow_model.metadata = {digit_reader.DIGESTS: {file.name: sha256(file) for file in sorted(folder.iterdir())}}
    mlflow_model.add_flavor("keras", data=f"data/{FOLDER}", keras_version=keras.__version__)
    mlflow.pyfunc.save_model(
        path,
        loader_module=digit_reader.__name__.rpartition(".")[2],
        code_paths=[digit_reader.__file__],
        data_path=str(folder),
        mlflow_model=mlflow_model,
        signature=signature,
        input_example=example_of(network),
        pip_requirements=pinned("mlflow", "numpy", "onnxruntime"),
    )
