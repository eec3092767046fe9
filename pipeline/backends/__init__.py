"""What Keras's backends do differently: a module for each, found by the backend's name."""

import importlib

import keras

from pipeline.backends.base import Backend
from pipeline.errors import PipelineError


def load_backend() -> Backend:
    """The backend that Keras computes with. Raises PipelineError if it is one that nobody here has tried."""
    name = keras.backend.backend()
    try:
        backend: Backend = importlib.import_module(f"{__name__}.{name}").BACKEND
    except ModuleNotFoundError as error:
        if error.name != f"{__name__}.{name}":
            raise
        raise PipelineError(f"KERAS_BACKEND={name}: must be tensorflow, jax or torch") from None
    return backend
