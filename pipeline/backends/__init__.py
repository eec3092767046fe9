"""What Keras's backends do differently: a module for each, found by the backend's name."""

import importlib

import keras

from pipeline.backends.base import Backend


def load_backend() -> Backend:
    """The backend that Keras computes with."""
    backend: Backend = importlib.import_module(f"{__name__}.{keras.backend.backend()}").BACKEND
    return backend
