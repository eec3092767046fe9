"""Backend-specific training code: one module per Keras backend, found by the backend's name."""

import importlib

import keras

from pipeline.core.backends.base import Backend


def load_backend() -> Backend:
    """Backend that Keras is using."""
    backend: Backend = importlib.import_module(f"{__name__}.{keras.backend.backend()}").BACKEND
    return backend
