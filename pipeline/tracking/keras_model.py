"""A Keras network as an MLflow model that can be loaded and served."""

import io
import shutil
import sys
from contextlib import redirect_stdout
from importlib.metadata import version
from pathlib import Path
from typing import Any

import keras
import mlflow.keras
import numpy as np
from mlflow import MlflowClient
from mlflow.models import Model, ModelSignature
from mlflow.types import Schema, TensorSpec

KERAS_FILE = Path("data/model.keras")  # where mlflow.keras keeps and looks for the network


def log_network(client: MlflowClient, run_id: str, path: Path) -> None:
    """Log the network in a `.keras` file to a run, with its signature, an example and pinned requirements.

    The signature is what a client sends: images (N, height, width) as bytes, and what it gets: probabilities
    (N, classes). The requirements are named because MLflow otherwise loads the model in another process to guess them.
    """
    experiment = client.get_run(run_id).info.experiment_id
    # Without a place of its own, a model that is logged outside an active run goes to the default experiment.
    logged = client.create_logged_model(experiment, name="model", source_run_id=run_id)
    flavor, current = sys.modules[__name__], mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(client.tracking_uri)  # `Model.log` takes no address
    try:
        with redirect_stdout(io.StringIO()):  # MLflow tries the example, and Keras draws a progress bar for it
            Model.log(None, flavor, run_id=run_id, model_id=logged.model_id, network_file=path)
    finally:
        mlflow.set_tracking_uri(current)


def save_model(path: str, mlflow_model: Model, network_file: Path, **_: Any) -> None:
    """Write an MLflow model whose network is `network_file` to the byte: what `Model.log` asks of a flavor."""
    network = keras.saving.load_model(network_file, compile=False)
    image_shape, (classes,) = network.input_shape[1:], network.output_shape[1:]
    images = TensorSpec(np.dtype(np.uint8), (-1, *image_shape))
    probabilities = TensorSpec(np.dtype(np.float32), (-1, classes))
    packages = ["keras", keras.backend.backend(), "numpy", "mlflow"]
    Path(path).mkdir(parents=True, exist_ok=True)  # mlflow.keras writes the example before it makes the folder
    mlflow.keras.save_model(
        network,
        path,
        mlflow_model=mlflow_model,
        signature=ModelSignature(Schema([images]), Schema([probabilities])),
        input_example=np.zeros((1, *image_shape), np.uint8),
        pip_requirements=[f"{package}=={version(package)}" for package in packages],
    )
    shutil.copyfile(network_file, Path(path) / KERAS_FILE)
