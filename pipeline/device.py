"""Where the arithmetic happens: chosen when a stage runs, so that another machine does not mean another experiment."""

import os
import shutil

import keras

from pipeline.backends import load_backend
from pipeline.errors import PipelineError
from pipeline.machine import computes_bfloat16

VARIABLE = "DEVICE"
CHOICES = ("auto", "cpu", "gpu")
NO_DRIVER = "there is no NVIDIA driver (no nvidia-smi). Install it"


def use_device(deterministic: bool = False) -> str:
    """Make Keras's backend use the device that the environment variable DEVICE names, and return "cpu" or "gpu".

    `auto`, the default, is a GPU where there is one. A GPU's memory is taken as it is needed, not all at once.
    `deterministic` has the same operations give the same bits every time, at some cost in speed.
    Must run before the backend computes anything.
    Raises PipelineError for an unknown name, and for `gpu` where the backend sees none.
    """
    choice = (os.environ.get(VARIABLE) or "auto").lower()
    if choice not in CHOICES:
        raise PipelineError(f"{VARIABLE}={choice}: must be one of {', '.join(CHOICES)}")
    backend = load_backend()
    if deterministic:
        backend.make_deterministic()
    found = backend.use_device(choice)
    if choice == "gpu" and not found:
        missing = backend.missing_gpu if shutil.which("nvidia-smi") else NO_DRIVER
        raise PipelineError(f"{VARIABLE}=gpu, but {keras.backend.backend()} sees no GPU: {missing}; or use DEVICE=cpu")
    return "gpu" if found else "cpu"


def choose_precision(configured: str, device: str) -> str:
    """The Keras dtype policy to train with: what is configured.

    `auto` is mixed_bfloat16 on a CPU that has instructions for it, where convolutions gain a quarter, else float32.
    """
    if configured != "auto":
        return configured
    quick = device == "cpu" and keras.backend.backend() == "tensorflow" and computes_bfloat16()
    return "mixed_bfloat16" if quick else "float32"
