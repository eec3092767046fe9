"""A Keras network as an MLflow model that can be loaded and served."""

import io
import shutil
import sys
from contextlib import redirect_stdout
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import keras
import mlflow.keras
import numpy as np
from mlflow import MlflowClient
from mlflow.models import Model, ModelSignature
from mlflow.types import Schema, TensorSpec

NAME = "model"  # of the logged model, on its run's page
KERAS_FILE = Path("data/model.keras")  # where mlflow.keras keeps and looks for the network


def log_network(client: MlflowClient, run_id: str, path: Path) -> None:
    """Log the network in a `.keras` file to a run, with its signature, an example and pinned requirements."""
    log_model(client, run_id, NAME, sys.modules[__name__], network_file=path)


def log_model(client: MlflowClient, run_id: str, name: str, flavor: ModuleType, **files: Path) -> str:
    """Log a model that `flavor.save_model` writes from `files` to a run, and return MLflow's id of it."""
    experiment = client.get_run(run_id).info.experiment_id
    # Without a place of its own, a model that is logged outside an active run goes to the default experiment.
    logged = client.create_logged_model(experiment, name=name, source_run_id=run_id)
    current = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(client.tracking_uri)  # `Model.log` takes no address
    try:
        with redirect_stdout(io.StringIO()):  # MLflow tries the example, and Keras draws a progress bar for it
            Model.log(None, flavor, run_id=run_id, model_id=logged.model_id, **files)
    finally:
        mlflow.set_tracking_uri(current)
    return str(logged.model_id)


def save_model(path: str, mlflow_model: Model, network_file: Path, **_: Any) -> None:
    """Write an MLflow model whose network is `network_file` to the byte: what `Model.log` asks of a flavor."""
    network = keras.saving.load_model(network_file, compile=False)
    Path(path).mkdir(parents=True, exist_ok=True)  # mlflow.keras writes the example before it makes the folder
    mlflow.keras.save_model(
        network,
        path,
        mlflow_model=mlflow_model,
        signature=signature_of(network),
        input_example=example_of(network),
        pip_requirements=pinned("keras", keras.backend.backend(), "numpy", "mlflow"),
    )
    shutil.copyfile(network_file, Path(path) / KERAS_FILE)


def signature_of(network: keras.Model) -> ModelSignature:
    """What a client sends: images (N, height, width) as bytes; and what it gets: probabilities (N, classes)."""
    images = TensorSpec(np.dtype(np.uint8), (-1, *network.input_shape[1:]))
    probabilities = TensorSpec(np.dtype(np.float32), (-1, network.output_shape[1]))
    return ModelSignature(Schema([images]), Schema([probabilities]))


def example_of(network: keras.Model) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """One image, all black."""
    return np.zeros((1, *network.input_shape[1:]), np.uint8)


def pinned(*packages: str) -> list[str]:
    """Requirements as installed here. Named, because MLflow otherwise loads the model in another process to guess."""
    return [f"{package}=={version(package)}" for package in packages]
