"""Descriptions of the hardware and the package versions, which are reported with every result."""

import platform
import re
import subprocess
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

from pipeline.core.errors import PipelineError
from pipeline.core.paths import REQUIREMENTS
from pipeline.core.process.stage import DEFAULT_BACKEND, chosen_backend
from pipeline.core.process.surroundings import run_by_dvc

VECTORS = {"avx512_bf16": "AVX-512 with bfloat16", "avx512f": "AVX-512", "avx2": "AVX2"}  # widest first
CPUINFO = Path("/proc/cpuinfo")  # Linux only
BFLOAT16 = {"avx512_bf16", "amx_bf16"}
BACKENDS = {"tensorflow": "TensorFlow", "jax": "JAX", "torch": "PyTorch"}
PINNED = re.compile(r"^([A-Za-z0-9._-]+)==(\S+)(?: ; (.+?))?(?: \\)?$", re.MULTILINE)  # a line of a requirements file
PACKAGES = {"keras": "Keras", "mlflow": "MLflow", "dvc": "DVC"}


def describe_machine() -> str:
    """Processor, cores, memory and system, such as 'AMD EPYC 9B14 (AVX-512), 2 cores, 24 GiB, Linux'."""
    memory = psutil.virtual_memory().total / (1 << 30)
    return f"{_processor()}{_vectors()}, {psutil.cpu_count()} cores, {memory:.0f} GiB, {platform.system()}"


def describe_versions() -> str:
    """Versions of Python and the main packages, such as 'Python 3.11.7, TensorFlow 2.21.0, …'."""
    backend = chosen_backend()
    found = [(BACKENDS.get(backend, backend), find_version(backend))]
    found += [(name, find_version(package)) for package, name in PACKAGES.items()]
    described = [f"Python {platform.python_version()}", *(f"{name} {number}" for name, number in found if number)]
    return ", ".join(described)


def find_version(package: str) -> str | None:
    """Version of a package; None if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def public(number: str) -> str:
    """A version without its local label, which a pin need not have: 2.13.0+cpu is PyTorch 2.13.0 (PEP 440)."""
    return number.partition("+")[0]


def requirements_of(backend: str) -> Path:
    """The file that pins the packages for a Keras backend."""
    return REQUIREMENTS if backend == DEFAULT_BACKEND else Path(f"requirements-{backend}.txt")


def pinned_versions(requirements: Path) -> dict[str, dict[str, str]]:
    """Versions of each package that a file pins, with the environment marker of each, empty if there is none.

    A package has several versions if they depend on that of Python. The result is empty if the file does not exist.
    """
    text = requirements.read_text(encoding="utf-8") if requirements.exists() else ""
    found: dict[str, dict[str, str]] = {}
    for package, number, marker in PINNED.findall(text):
        found.setdefault(package, {})[number] = marker
    return found


def check_versions(stage: str) -> None:
    """Warn about versions of Keras and its backend that differ from the pinned ones, which are those that DVC compares.

    Raises PipelineError in a stage of DVC, which would take the results for those of the pinned versions.
    """
    for difference in _other_versions(chosen_backend()):
        if run_by_dvc():
            raise PipelineError(
                f"{difference}: DVC would take the results for those of the pinned version. Install it, or pin the "
                "installed one"
            )
        print(f"{stage}: {difference}: results may differ")


def _other_versions(backend: str) -> Iterator[str]:
    requirements = requirements_of(backend)
    pinned = pinned_versions(requirements)
    for package in ("keras", backend):
        versions, installed = pinned.get(package, {}), find_version(package)
        if versions and installed and public(installed) not in versions:
            yield f"{package} {installed} is installed, but {requirements} pins {' or '.join(versions)}"


def computes_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 in hardware; only x86 on Linux is checked."""
    return bool(BFLOAT16 & _flags())


def _vectors() -> str:
    """Widest vector instructions of x86 on Linux, which affect the weights that training produces."""
    flags = _flags()
    return next((f" ({name})" for flag, name in VECTORS.items() if flag in flags), "")


def _flags() -> set[str]:
    try:
        return set(CPUINFO.read_text(encoding="utf-8").split())
    except OSError:
        return set()


def _processor() -> str:
    """Name of the processor; its architecture if the system does not report a name."""
    try:
        if platform.system() == "Darwin":
            command = ["sysctl", "-n", "machdep.cpu.brand_string"]
            return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
        lines = CPUINFO.read_text(encoding="utf-8").splitlines()
        return next(line.partition(": ")[2] for line in lines if line.startswith("model name"))
    except (OSError, StopIteration, subprocess.CalledProcessError):
        return platform.machine()
