"""What computes here, in words: results are told with the machine and the versions they come from."""

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

from pipeline.stage import chosen_backend

VECTORS = {"avx512_bf16": "AVX-512 with bfloat16", "avx512f": "AVX-512", "avx2": "AVX2"}  # the widest first
CPUINFO = Path("/proc/cpuinfo")  # on Linux
BFLOAT16 = {"avx512_bf16", "amx_bf16"}
BACKENDS = {"tensorflow": "TensorFlow", "jax": "JAX", "torch": "PyTorch"}
PACKAGES = {"keras": "Keras", "mlflow": "MLflow", "dvc": "DVC"}


def describe_machine() -> str:
    """Processor, cores, memory and system: 'AMD EPYC 9B14 (AVX-512), 2 cores, 24 GiB, Linux'."""
    memory = psutil.virtual_memory().total / (1 << 30)
    return f"{_processor()}{_vectors()}, {psutil.cpu_count()} cores, {memory:.0f} GiB, {platform.system()}"


def describe_versions() -> str:
    """Python and the packages that matter: 'Python 3.11.7, TensorFlow 2.21.0, …'."""
    backend = chosen_backend()
    found = [(BACKENDS.get(backend, backend), find_version(backend))]
    found += [(name, find_version(package)) for package, name in PACKAGES.items()]
    told = [f"Python {platform.python_version()}", *(f"{name} {number}" for name, number in found if number)]
    return ", ".join(told)


def find_version(package: str) -> str | None:
    """An installed package's version."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def computes_bfloat16() -> bool:
    """Whether this processor has instructions for products of bfloat16: an x86 on Linux may; nothing else is asked."""
    return bool(BFLOAT16 & _flags())


def _vectors() -> str:
    """The widest vector instructions of an x86 on Linux: with others, the same training gives other weights."""
    flags = _flags()
    return next((f" ({name})" for flag, name in VECTORS.items() if flag in flags), "")


def _flags() -> set[str]:
    try:
        return set(CPUINFO.read_text(encoding="utf-8").split())
    except OSError:
        return set()


def _processor() -> str:
    """The processor's name; its architecture where the system does not tell."""
    try:
        if platform.system() == "Darwin":
            asked = ["sysctl", "-n", "machdep.cpu.brand_string"]
            return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
        lines = CPUINFO.read_text(encoding="utf-8").splitlines()
        return next(line.partition(": ")[2] for line in lines if line.startswith("model name"))
    except (OSError, StopIteration, subprocess.CalledProcessError):
        return platform.machine()
