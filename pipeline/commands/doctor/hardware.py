"""Checks of the processor, the memory, the Keras backends and the GPUs."""

import ctypes
import importlib.util
import math
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from importlib.metadata import distributions
from pathlib import Path

import numpy as np

from pipeline.commands.doctor.finding import Finding, Level
from pipeline.core.containers import available_memory, processor_quota, usable_cores
from pipeline.core.machine import describe_machine, find_version
from pipeline.core.process.stage import BACKENDS, chosen_backend
from pipeline.core.process.surroundings import THREADS

MATRIX, REPEATS = 1536, 5  # of the measured product: 7 billion operations each
GIB = 1 << 30
NEEDED = 1.5 * GIB  # memory of the recipe `baseline`
DEVICES = Path("/proc/driver/nvidia/version"), Path("/dev/nvidiactl"), Path("/dev/dxg")  # the last in WSL
DRIVER, SUCCESS, NO_DEVICE = "libcuda.so.1", 0, 100  # CUDA's driver library, and results of cuInit
QUERY = "--query-gpu=name,driver_version,memory.total,memory.used"
FULL = 0.5  # share of a GPU's memory that others may use before a warning


def check_processor() -> Iterator[Finding]:
    """The processor, the cores that this process may use, and the speed of a matrix product on them."""
    cores, quota = usable_cores(), processor_quota()
    yield Finding("CPU", "ok", f"{describe_machine()}; {matrix_speed():.0f} GFLOP/s in float32")
    if cores < (os.cpu_count() or cores):
        yield Finding("CPU", "warning", f"this process may use {cores} of {os.cpu_count()} cores", "taskset -p -c …")
    if quota is not None and quota < cores:
        yield check_threads(f"the container may use the time of {quota:g} of {cores} cores", math.ceil(quota))
    free = available_memory()
    level: Level = "ok" if free >= NEEDED else "warning"
    remedy = "" if level == "ok" else "end other processes, or reduce training.batch_size"
    yield Finding("memory", level, f"{free / GIB:.1f} GiB available", remedy)


def check_threads(limit: str, threads: int) -> Finding:
    """Whether training follows the limit of its container, which environment variables override."""
    chosen = [name for name in THREADS if os.environ.get(name, str(threads)) != str(threads)]
    if chosen:
        return Finding("CPU", "warning", f"{limit}, but {' and '.join(chosen)} is set", f"unset {' '.join(chosen)}")
    return Finding("CPU", "ok", f"{limit}, so training uses {threads} thread{'s' * (threads > 1)}")


def matrix_speed() -> float:
    """Billions of floating-point operations per second in a product of square float32 matrices, the best of five."""
    matrix = np.ones((MATRIX, MATRIX), np.float32)
    seconds = []
    for _ in range(REPEATS):
        begun = time.perf_counter()
        matrix @ matrix
        seconds.append(time.perf_counter() - begun)
    return 2 * MATRIX**3 / min(seconds) / 1e9


def check_backends() -> Iterator[Finding]:
    """The installed Keras backends, and whether the chosen one is among them."""
    chosen = chosen_backend()
    installed = [name for name in sorted(BACKENDS) if importlib.util.find_spec(name) is not None]
    if chosen not in BACKENDS:
        yield Finding("backend", "problem", f"KERAS_BACKEND={chosen} is not supported", "unset KERAS_BACKEND")
    elif chosen not in installed:
        yield Finding("backend", "problem", f"{chosen} is not installed", f"make repro BACKEND={chosen}")
    for name in installed:
        used = ", in use" if name == chosen else f": KERAS_BACKEND={name} uses it"
        yield Finding("backend", "ok", f"{name} {find_version(name) or ''}{used}")


def check_gpus() -> Iterator[Finding]:
    """The NVIDIA GPUs, and if one is present and cannot be used, the reason."""
    present = [path for path in DEVICES if path.exists()]
    if not present and shutil.which("nvidia-smi") is None:
        yield Finding("GPU", "ok", "none: training runs on the CPU")
        return
    if reason := why_no_driver():
        yield Finding("GPU", "problem" if os.environ.get("DEVICE") == "gpu" else "warning", *reason)
        return
    yield from check_cards()
    yield from check_libraries()


def why_no_driver() -> tuple[str, str] | None:
    """Why CUDA's driver library cannot be used, with a remedy; None if it can."""
    try:
        driver = ctypes.CDLL(DRIVER)
        result = int(driver.cuInit(0))
    except (OSError, AttributeError) as error:
        return f"{DRIVER} cannot be loaded: {error}", "check LD_LIBRARY_PATH, and reinstall the NVIDIA driver"
    if result == NO_DEVICE:
        return "the driver sees no GPU", f"CUDA_VISIBLE_DEVICES is {os.environ.get('CUDA_VISIBLE_DEVICES')!r}: unset it"
    if result != SUCCESS:
        return f"the driver does not start (cuInit returns {result})", "nvidia-smi shows its state; restart the machine"
    return None


def check_cards() -> Iterator[Finding]:
    """Name, driver and free memory of every GPU, as nvidia-smi reports them."""
    command = ["nvidia-smi", QUERY, "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=False, timeout=5)
    except (OSError, subprocess.TimeoutExpired) as error:
        yield Finding("GPU", "warning", f"nvidia-smi cannot be run ({error})", "reinstall the NVIDIA driver")
        return
    if answer.returncode:
        yield Finding("GPU", "warning", " ".join(answer.stdout.split()), "reinstall the NVIDIA driver")
        return
    for line in answer.stdout.splitlines():
        name, driver, total, used = (part.strip() for part in line.split(","))
        text = f"{name}, driver {driver}, {used} of {total} MiB in use"
        if total.isdecimal() and used.isdecimal() and int(used) > FULL * int(total):
            yield Finding("GPU", "warning", text, "nvidia-smi lists the processes that use it; end them or wait")
        else:
            yield Finding("GPU", "ok", text)


def check_libraries() -> Iterator[Finding]:
    """Whether the backend in use has CUDA, and whether the driver is new enough for it."""
    backend = chosen_backend()
    found = {each.name.lower(): each.version for each in distributions() if each.name.lower().startswith("nvidia-cuda")}
    of_tensorflow = backend == "tensorflow"  # whose libraries are of CUDA 12, and those of the others of CUDA 13
    runtimes = (name for name in sorted(found) if "runtime" in name and name.endswith("-cu12") is of_tensorflow)
    runtime = next((found[name] for name in runtimes), None)
    if runtime is None and backend != "torch":  # PyTorch's wheels may contain the libraries
        fact = f"{backend} has no CUDA libraries: it computes on the CPU"
        yield Finding("GPU", "warning", fact, f"make repro BACKEND={backend} GPU=1")
        return
    version = ctypes.c_int()
    ctypes.CDLL(DRIVER).cuDriverGetVersion(ctypes.byref(version))
    supported = (version.value // 1000, version.value % 1000 // 10)
    if runtime is not None and int(runtime.split(".")[0]) > supported[0]:
        fact = f"the driver supports CUDA {supported[0]}.{supported[1]}, {backend}'s libraries are of CUDA {runtime}"
        yield Finding("GPU", "warning", fact, "update the NVIDIA driver")
