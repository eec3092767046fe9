"""The format of registered models: served from raw images, without Keras, and verified before they are loaded."""

import sys
import tempfile
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import mlflow.pyfunc
import numpy as np
from mlflow import MlflowClient
from mlflow.models import Model

from pipeline.core.errors import PipelineError, first_line
from pipeline.core.files import sha256
from pipeline.core.process.stage import stderr_held
from pipeline.registry import classifier
from pipeline.registry.conversion import Converted
from pipeline.registry.model_files import digest, download
from pipeline.tracking.keras_model import example, log_model, pinned, signature

NAME = "served"
TOLERANCE = 1e-5  # maximum difference between probabilities in ONNX and in Keras


class Servable(NamedTuple):
    """A logged model that can be served: its MLflow ID, its address, and the digest of the served files."""

    model_id: str
    source: str
    digest: str


def log_servable(client: MlflowClient, run_id: str, converted: Converted, beside: Mapping[Path, str]) -> Servable:
    """Log a converted network to a run as a model that is served from raw images.

    `beside` maps additional files to their folders in the model.
    Raises PipelineError if its probabilities differ from the network's.
    """
    check_conversion(converted)
    model_id = log_model(client, run_id, NAME, sys.modules[__name__], {}, folder=converted.folder)
    for path, inside in beside.items():
        client.log_model_artifact(model_id, str(path), inside or None)
    source = f"models:/{model_id}"
    with tempfile.TemporaryDirectory() as temporary:
        return Servable(model_id, source, digest(download(source, temporary)))


def check_conversion(converted: Converted) -> None:
    """Raise PipelineError if the network's probabilities in ONNX differ from those in Keras."""
    name, failure, difference = converted.network_file, None, np.nan
    with stderr_held():  # an exception that leaves this block would show the buffered output
        try:
            served = classifier.DigitClassifier(converted.folder / classifier.NETWORK).predict(converted.images)
            difference = float(np.abs(served - converted.probabilities).max())
        except Exception as error:  # ONNX Runtime may raise anything
            failure = error
    if failure:
        raise PipelineError(f"{name} cannot be served: its conversion to ONNX failed ({first_line(failure)})")
    if not difference <= TOLERANCE:
        raise PipelineError(
            f"{name} cannot be served: its probabilities in ONNX and in Keras differ by up to {difference:.2g}, "
            f"and at most {TOLERANCE:g} is allowed"
        )


def save_model(path: str, mlflow_model: Model, folder: Path, **_: Any) -> None:
    """Write an MLflow model that serves the network in `folder`. `Model.log` requires this function of a flavor."""
    network = classifier.DigitClassifier(folder / classifier.NETWORK)
    sent = signature(network.image_shape, network.classes)
    # Makes the server pass on the input unchanged: a cast to bytes would turn images scaled to 0…1 black.
    sent._is_signature_from_type_hint = True
    mlflow_model.metadata = {classifier.DIGESTS: {file.name: sha256(file) for file in sorted(folder.iterdir())}}
    mlflow_model.add_flavor("keras", data=f"data/{folder.name}", keras_version=version("keras"))
    mlflow.pyfunc.save_model(
        path,
        loader_module=classifier.__name__.rpartition(".")[2],
        code_paths=[classifier.__file__],
        data_path=str(folder),
        mlflow_model=mlflow_model,
        signature=sent,
        input_example=example(network.image_shape),
        pip_requirements=pinned("mlflow", "numpy", "onnxruntime", "pillow"),
    )
