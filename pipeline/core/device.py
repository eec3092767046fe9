"""Device selection at run time, so that a change of machine is not a change of experiment."""

import os
import shutil

import keras

from pipeline.core.backends import load_backend
from pipeline.core.errors import PipelineError
from pipeline.core.machine import computes_bfloat16

VARIABLE = "DEVICE"
CHOICES = ("auto", "cpu", "gpu")
NO_DRIVER = "the NVIDIA driver is not installed (no nvidia-smi). Install it"


def use_device(deterministic: bool = False) -> str:
    """Select the backend's device from the environment variable DEVICE, and return "cpu" or "gpu".

    `auto`, the default, selects a GPU if one is available. GPU memory is allocated on demand.
    `deterministic` makes operations bit-for-bit reproducible, at some cost in speed.
    Call this before the backend computes anything.
    Raises PipelineError if the name is unknown, or if it is `gpu` and the backend sees no GPU.
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
    """Keras dtype policy for training: the configured one, unless it is `auto`.

    `auto` selects mixed_bfloat16 for TensorFlow on a CPU with bfloat16 instructions, which speed up convolutions by a
    quarter, and float32 otherwise.
    """
    if configured != "auto":
        return configured
    quick = device == "cpu" and keras.backend.backend() == "tensorflow" and computes_bfloat16()
    return "mixed_bfloat16" if quick else "float32"
