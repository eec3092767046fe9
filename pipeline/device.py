"""Where the arithmetic happens: chosen when a stage runs, so that another machine does not mean another experiment."""

import importlib
import os
import shutil
from typing import Any

import keras

from pipeline.errors import PipelineError
from pipeline.machine import computes_bfloat16

VARIABLE = "DEVICE"
CHOICES = ("auto", "cpu", "gpu")


def use_device(deterministic: bool = False) -> str:
    """Make Keras's backend use the device that the environment variable DEVICE names, and return "cpu" or "gpu".

    `auto`, the default, is a GPU where there is one. A GPU's memory is taken as it is needed, not all at once.
    `deterministic` has the same operations give the same bits every time, at some cost in speed.
    Must run before the backend computes anything.
    Raises PipelineError for an unknown name, and for `gpu` where the backend sees none.
    """
    choice = os.environ.get(VARIABLE, "auto").lower()
    if choice not in CHOICES:
        raise PipelineError(f"{VARIABLE}={choice}: must be one of {', '.join(CHOICES)}")
    if deterministic:
        _make_deterministic()
    found = _jax_gpus(choice) if keras.backend.backend() == "jax" else _tensorflow_gpus(choice)
    if choice == "gpu" and not found:
        raise PipelineError(f"{VARIABLE}=gpu, but {keras.backend.backend()} sees no GPU: {_what_is_missing()}")
    return "gpu" if found else "cpu"


def choose_precision(configured: str, device: str) -> str:
    """The Keras dtype policy to train with: what is configured.

    `auto` is mixed_bfloat16 on a CPU that has instructions for it, where convolutions gain a quarter, else float32.
    """
    if configured != "auto":
        return configured
    quick = device == "cpu" and on_tensorflow() and computes_bfloat16()
    return "mixed_bfloat16" if quick else "float32"


def _make_deterministic() -> None:
    if keras.backend.backend() == "jax":
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_deterministic_ops=true".strip()
    else:
        backend_module("tensorflow").config.experimental.enable_op_determinism()


def _tensorflow_gpus(choice: str) -> bool:
    config = backend_module("tensorflow").config
    gpus = config.list_physical_devices("GPU")
    if choice == "cpu":
        config.set_visible_devices([], "GPU")
        return False
    for gpu in gpus:
        config.experimental.set_memory_growth(gpu, True)
    return bool(gpus)


def _jax_gpus(choice: str) -> bool:
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    jax = backend_module("jax")
    if choice == "cpu":
        jax.config.update("jax_platforms", "cpu")
    return bool(jax.default_backend() == "gpu")


def backend_module(name: str) -> Any:
    """The backend's own module, for the few things that Keras has no name for."""
    return importlib.import_module(name)


def on_tensorflow() -> bool:
    """Whether Keras computes with TensorFlow."""
    return bool(keras.backend.backend() == "tensorflow")


def _what_is_missing() -> str:
    if not shutil.which("nvidia-smi"):
        return "there is no NVIDIA driver (no nvidia-smi). Install it, or run with DEVICE=cpu"
    return "CUDA's libraries are not installed. `make repro GPU=1` installs them; or run with DEVICE=cpu"
