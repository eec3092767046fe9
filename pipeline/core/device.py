"""Device selection at run time, so that a change of machine is not a change of experiment."""

import os
import re
import shutil

import keras

from pipeline.core.backends import load_backend
from pipeline.core.errors import PipelineError
from pipeline.core.machine import computes_bfloat16

VARIABLE = "DEVICE"
COUNT = "DEVICES"
CHOICES = ("auto", "cpu", "gpu")
NO_DRIVER = "the NVIDIA driver is not installed (no nvidia-smi). Install it"


def use_device(deterministic: bool = False, virtual: int = 1) -> str:
    """Select the backend's device from the environment variable DEVICE, and return "cpu" or "gpu".

    `auto`, the default, selects a GPU if one is available. GPU memory is allocated on demand.
    `deterministic` makes operations bit-for-bit reproducible, at some cost in speed. With DEVICE=cpu, the processor is
    divided into `virtual` devices.
    Call this before the backend computes anything.
    Raises PipelineError if the name is unknown, or if it is `gpu` and the backend sees no GPU.
    """
    choice = (os.environ.get(VARIABLE) or "auto").lower()
    if choice not in CHOICES:
        raise PipelineError(f"{VARIABLE}={choice}: must be one of {', '.join(CHOICES)}")
    backend = load_backend()
    if deterministic:
        backend.make_deterministic()
    found = backend.use_device(choice, virtual)
    if choice == "gpu" and not found:
        missing = backend.missing_gpu if shutil.which("nvidia-smi") else NO_DRIVER
        raise PipelineError(f"{VARIABLE}=gpu, but {keras.backend.backend()} sees no GPU: {missing}; or use DEVICE=cpu")
    return "gpu" if found else "cpu"


def use_devices(batch_size: int, deterministic: bool = False) -> str:
    """Select the devices for training, which share each batch: those of DEVICE, as many as DEVICES says, 1 by default.

    With DEVICE=cpu, the processor is divided into virtual devices, to try this out.
    Raises PipelineError in the same cases as `use_device`, if there are fewer devices, or if they cannot share a batch
    equally.
    """
    count, backend = wanted_count(), load_backend()
    if count and count > 1 and not backend.divides_batches:
        name = keras.backend.backend()
        raise PipelineError(f"{COUNT}={count}: {name} trains on one device; use BACKEND=jax or BACKEND=tensorflow")
    check_batch_size(batch_size, count or 1)
    device = use_device(deterministic, virtual=count or 1)
    available = backend.available_devices()
    if count and count > available:
        seen = (
            f"{available} GPU{'s' if available > 1 else ''}: set {COUNT}={available}"
            if device == "gpu"
            else ("no GPU; DEVICE=cpu divides the processor into virtual devices, to try this out")
        )
        raise PipelineError(f"{COUNT}={count}, but {keras.backend.backend()} sees {seen}")
    backend.use_devices(count or available)
    check_batch_size(batch_size, backend.devices)
    return device


def check_batch_size(size: int, devices: int) -> None:
    """Raise PipelineError if the devices cannot share a batch equally."""
    if size % devices:
        raise PipelineError(
            f"training.batch_size={size} cannot be divided among {devices} devices: set a multiple of {devices}, or "
            f"another {COUNT}"
        )


def wanted_count() -> int | None:
    """The number of devices in DEVICES; None for `all`."""
    text = (os.environ.get(COUNT) or "1").strip().lower()
    if text == "all":
        return None
    if not re.fullmatch("[1-9][0-9]{0,3}", text):
        raise PipelineError(f"{COUNT}={text}: must be a number of devices, or all")
    return int(text)


def choose_precision(configured: str, device: str) -> str:
    """Keras dtype policy for training: the configured one, unless it is `auto`.

    `auto` selects mixed_bfloat16 for TensorFlow on a CPU with bfloat16 instructions, which speed up convolutions by a
    quarter, and float32 otherwise.
    """
    if configured != "auto":
        return configured
    quick = device == "cpu" and keras.backend.backend() == "tensorflow" and computes_bfloat16()
    return "mixed_bfloat16" if quick else "float32"
