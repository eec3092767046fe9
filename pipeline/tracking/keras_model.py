"""Log a Keras network as an MLflow model that can be loaded and served, without importing Keras."""

import io
import shutil
import sys
from contextlib import redirect_stdout
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import mlflow.pyfunc
import numpy as np
from mlflow import MlflowClient
from mlflow.entities import LoggedModel, LoggedModelStatus, Run
from mlflow.models import Model, ModelSignature
from mlflow.types import Schema, TensorSpec

from pipeline.core.files import md5
from pipeline.tracking.tags import DVC_HASH

NAME = "model"  # of the logged model on its run's page
DATA = "data"  # the folder in which mlflow.keras stores a model's network


def log_network(
    client: MlflowClient, run_id: str, path: Path, image_shape: list[int], classes: int, backend: str
) -> None:
    """Log the network in a `.keras` file to a run, with its signature, an input example and pinned requirements.

    The network maps images (N, *image_shape) to probabilities (N, classes) and was trained on the Keras `backend`.
    Does nothing if the run already has this network as its model: a training that is killed then logs it again.
    """
    # To validate the example, MLflow would load the model and import Keras, which takes longer than a training.
    options = {"image_shape": tuple(image_shape), "classes": classes, "backend": backend}
    flavor, tags = sys.modules[__name__], {DVC_HASH: md5(path)}
    log_model(client, run_id, NAME, flavor, tags, network_file=path, validate_serving_input=False, **options)


def describe_network(path: Path) -> tuple[list[int], int, str]:
    """Image shape, number of classes and Keras backend of the network in a `.keras` file, for log_network."""
    import keras

    network = keras.saving.load_model(path, compile=False)
    return list(network.input_shape[1:]), int(network.output_shape[1]), str(keras.backend.backend())


def log_model(
    client: MlflowClient, run_id: str, name: str, flavor: ModuleType, tags: dict[str, str], **options: Any
) -> str:
    """Log the model that `flavor.save_model` writes from `options` to a run, and return its MLflow ID.

    If the run has a network with these tags, that is returned; if the upload of one failed, it is completed.
    """
    run = client.get_run(run_id)
    networks = networks_of(client, run) if name == NAME else []
    for model in networks:
        if is_ready(model) and tags.items() <= model.tags.items():
            return str(model.model_id)
    unfinished = [model for model in networks if not is_ready(model)]
    if unfinished:
        (logged, *_) = unfinished
    else:
        # Without an experiment ID, a model that is logged outside an active run goes to the default experiment.
        logged = client.create_logged_model(run.info.experiment_id, name, source_run_id=run_id, tags=tags)
    linked = any(output.model_id == logged.model_id for output in run.outputs.model_outputs)
    current = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(client.tracking_uri)  # `Model.log` has no parameter for the store
    try:
        with redirect_stdout(io.StringIO()):  # Keras draws a progress bar if MLflow predicts the example
            # Linking a model to its run twice is an error.
            Model.log(None, flavor, run_id=None if linked else run_id, model_id=logged.model_id, **options)
    finally:
        mlflow.set_tracking_uri(current)
    return str(logged.model_id)


def networks_of(client: MlflowClient, run: Run) -> list[LoggedModel]:
    """The logged models of a run that hold its network, also those whose upload failed."""
    found = client.search_logged_models([run.info.experiment_id], f"source_run_id = '{run.info.run_id}'")
    return [model for model in found if model.name == NAME]


def is_ready(model: LoggedModel) -> bool:
    """Whether a model was uploaded completely."""
    return bool(model.status == LoggedModelStatus.READY)


def save_model(
    path: str,
    mlflow_model: Model,
    network_file: Path,
    image_shape: tuple[int, ...],
    classes: int,
    backend: str,
    **_: Any,
) -> None:
    """Write the same model as `mlflow.keras.save_model`, with a byte-for-byte copy of `network_file`.

    `Model.log` requires this function of a flavor. `mlflow.keras` loads the model.
    """
    options = {"keras_version": version("keras"), "keras_backend": backend, "save_exported_model": False}
    mlflow_model.add_flavor("keras", data=DATA, **options)
    mlflow.pyfunc.save_model(
        path,
        loader_module="mlflow.keras",
        mlflow_model=mlflow_model,
        signature=signature(image_shape, classes),
        input_example=example(image_shape),
        pip_requirements=pinned("keras", backend, "numpy", "mlflow"),
    )
    data = Path(path) / DATA
    data.mkdir()
    (data / "keras_module.txt").write_text("keras", encoding="utf-8")
    shutil.copyfile(network_file, data / "model.keras")
    mlflow_model.model_size_bytes = sum(file.stat().st_size for file in data.iterdir())
    mlflow_model.save(str(Path(path) / "MLmodel"))


def signature(image_shape: tuple[int, ...], classes: int) -> ModelSignature:
    """The model's signature: images (N, height, width) as uint8 in, probabilities (N, classes) as float32 out."""
    images = TensorSpec(np.dtype(np.uint8), (-1, *image_shape))
    probabilities = TensorSpec(np.dtype(np.float32), (-1, classes))
    return ModelSignature(Schema([images]), Schema([probabilities]))


def example(image_shape: tuple[int, ...]) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """One black image."""
    return np.zeros((1, *image_shape), np.uint8)


def pinned(*packages: str) -> list[str]:
    """Requirements pinned to the installed versions; to infer them, MLflow would load the model in another process."""
    return [f"{package}=={version(package)}" for package in packages]
