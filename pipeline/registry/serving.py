"""Load a registered model, verify its files, and serve it with MLflow's scoring server."""

import sys
import tempfile
from typing import Any, NamedTuple

import mlflow.pyfunc
import numpy as np
from fastapi import FastAPI
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.pyfunc.scoring_server import init
from numpy.typing import NDArray

from pipeline.core.errors import PipelineError, first_line
from pipeline.registry.classifier import BadImages
from pipeline.registry.model_files import SERVED_DIGEST, digest, download
from pipeline.tracking.store import Store


class Served(NamedTuple):
    """A served model: MLflow's application, the model, its image shape, and its version and tags in the registry."""

    app: FastAPI
    model: Any
    image_shape: tuple[int, ...]
    version: str
    tags: dict[str, str]


def load_registered(store: Store, name: str, alias: str) -> Served:
    """The version of a registered model that an alias names.

    Raises PipelineError if there is none, or if its files are not those that were registered.
    """
    client = MlflowClient(store.uri)
    try:
        version = client.get_model_version_by_alias(name, alias)
    except MlflowException as error:
        raise PipelineError(
            f"{store.uri} has no model {name!r} with the alias {alias!r} ({first_line(error)}). "
            "`make promote` registers the current model"
        ) from None
    with tempfile.TemporaryDirectory() as folder:
        model = load_checked(version, folder)
    (images,) = model.metadata.get_input_schema().inputs
    return Served(init(model), model, tuple(images.shape[1:]), str(version.version), dict(version.tags))


def predict(served: Served, images: Any) -> NDArray[np.float32]:
    """Probabilities (N, classes) of images. Raises BadImages if the model refuses them."""
    try:
        probabilities: NDArray[np.float32] = served.model.predict(images)
    except MlflowException as error:  # the model has a BadImages of its own: its code is stored with it
        raise BadImages(str(error.message)) from None
    return probabilities


def load_checked(version: Any, folder: str) -> Any:
    """Download a version to a place below `folder`, and load it if its digest matches the registry."""
    name = f"version {version.version} of {version.name}"
    try:
        files = download(version.source, folder)
    except (MlflowException, OSError) as error:
        raise PipelineError(f"the files of {name} cannot be downloaded: {first_line(error)}") from None
    expected, found = version.tags.get(SERVED_DIGEST), digest(files)
    if found != expected:
        raise PipelineError(
            f"the files of {name} are not those that were registered: their SHA-256 is {found}, the registry has "
            f"{expected}. They are not loaded. `make promote` registers the model again, "
            "`make promote ROLLBACK=1` restores the previous champion"
        )
    model = mlflow.pyfunc.load_model(str(files))
    # MLflow leaves the folder of the model's code first in sys.path, where anyone could create it again and plant code.
    sys.path[:] = [entry for entry in sys.path if not entry.startswith(folder)]
    return model
