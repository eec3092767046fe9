"""Make commands independent of their environment; docs/surroundings.md lists the settings that they respect."""

import math
import os
import shlex
import sys

from pipeline.core.containers import processor_quota, usable_cores

COMPUTING = (  # library settings that may change the bits of a result, the run time, or the device
    *("DEVICE", "DEVICES", "KERAS_BACKEND", "CUDA_VISIBLE_DEVICES", "NVIDIA_TF32_OVERRIDE", "OMP_NUM_THREADS"),
    *("JAX_NUM_PROCESSES", "JAX_PLATFORMS", "XLA_FLAGS", "TF_XLA_FLAGS", "TF_ENABLE_ONEDNN_OPTS"),
    "ONEDNN_MAX_CPU_ISA",
    *("TF_NUM_INTEROP_THREADS", "TF_NUM_INTRAOP_THREADS", "NPROC"),
)
# Threads of TensorFlow's operations, of NumPy's and PyTorch's, and of JAX's.
THREADS = ("TF_NUM_INTRAOP_THREADS", "OMP_NUM_THREADS", "NPROC")
LOOPBACK = ("127.0.0.1", "localhost")  # hosts of this pipeline's servers, which are reached without a proxy


def settle() -> None:
    """Override environment settings that could change a result or end this process or its children.

    Call this before importing matplotlib, Keras or MLflow.
    """
    for descriptor in range(3):  # otherwise native code would print into the next file or socket
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    os.environ.pop("MPLBACKEND", None)  # Jupyter sets a module that may not be installed
    for name in ("NO_PROXY", "no_proxy"):
        listed = filter(None, os.environ.get(name, "").split(","))
        os.environ[name] = ",".join(dict.fromkeys([*listed, *LOOPBACK]))
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # it was closed
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115, PTH123 (until the end)
        getattr(sys, name).reconfigure(errors="replace")  # characters that it cannot encode become "?"


def run_by_dvc() -> bool:
    """Whether this process is a stage that DVC runs."""
    return "DVC_STAGE" in os.environ


def limit_threads() -> None:
    """Make libraries start only as many threads as a container's limit on processor time allows.

    Libraries respect the cores to which a process is restricted (its affinity), but not the limit of its cgroup. With
    more threads, the kernel stops all of them for the rest of each tenth of a second. A variable that is set is kept.
    """
    quota = processor_quota()
    if quota is not None and quota < usable_cores():
        for name in THREADS:
            os.environ.setdefault(name, str(math.ceil(quota)))


def computing_settings() -> str:
    """Variables of `COMPUTING` that are set, such as `DEVICE=cpu OMP_NUM_THREADS=1`."""
    text = shlex.join(f"{name}={os.environ[name]}" for name in COMPUTING if os.environ.get(name))
    return text.encode(errors="replace").decode()  # a value may have bytes that are not UTF-8


def use_own_keras_settings() -> None:
    """Undo the settings that Keras read from ~/.keras/keras.json when it was imported."""
    keras = sys.modules.get("keras")
    if keras is not None:
        keras.config.set_image_data_format("channels_last")
        keras.config.set_floatx("float32")
        keras.config.set_epsilon(1e-7)
        keras.config.set_dtype_policy("float32")
