"""Scaling: epochs on several devices and in several processes, as ratios to the same epochs on one.

On a machine without GPUs, DEVICES divides the processor, which shows the cost of the division, and a process on one
core takes the place of a machine.
"""

import os
import statistics
import subprocess
import sys
from pathlib import Path

from benchmarks.command import epoch_seconds, run
from benchmarks.figures import Figures, add
from benchmarks.gpu import prepare, set_seed

EPOCHS = {"notebook": 4, "quick": 4}
BACKENDS = "jax", "tensorflow"
STAGE = "pipeline.stages.train"
ADDRESS = "127.0.0.1:29500"


def measure_devices(folder: Path, data: Path, rounds: int) -> Figures:
    """Train each recipe on 1, 2, 4 … devices, and in one and two processes on one core each, alternately."""
    figures: Figures = {}
    projects = {
        name: prepare(folder / f"{name}-devices", {"recipe": name, "training": {"epochs": epochs}}, data)
        for name, epochs in EPOCHS.items()
    }
    for seed in range(1, rounds + 1):
        for recipe, project in projects.items():
            set_seed(project, seed)
            for backend in BACKENDS:
                seconds = {count: train_on_devices(project, backend, count) for count in device_counts()}
                for count, value in seconds.items():
                    add(figures, f"{recipe}_{backend}_{count}_devices_epoch_seconds", value, "s")
                    add(figures, f"{recipe}_{backend}_{count}_devices_epoch_ratio", value / seconds[1], "ratio")
            alone, together = train_in_processes(project, 1), train_in_processes(project, 2)
            add(figures, f"{recipe}_one_process_epoch_seconds", alone, "s")
            add(figures, f"{recipe}_two_processes_epoch_seconds", together, "s")
            add(figures, f"{recipe}_two_processes_efficiency", alone / together / 2, "ratio")
    return figures


def device_counts() -> list[int]:
    """1, 2, 4 … up to the number of GPUs; without GPUs, up to 4 virtual devices."""
    return [1 << power for power in range((count_gpus() or 4).bit_length())]


def count_gpus() -> int:
    """Number of NVIDIA GPUs."""
    return len(list(Path("/proc/driver/nvidia/gpus").glob("*")))


def train_on_devices(project: Path, backend: str, count: int) -> float:
    """Seconds per epoch on this number of devices: GPUs if there are any."""
    device = "gpu" if count_gpus() else "cpu"
    run([sys.executable, "-m", STAGE], project, KERAS_BACKEND=backend, DEVICE=device, DEVICES=str(count))
    return report(project, f"{count} devices, {backend}")


def train_in_processes(project: Path, count: int) -> float:
    """Seconds per epoch on JAX in one or two processes, on one core each."""
    settings = {"KERAS_BACKEND": "jax", "DEVICE": "cpu", "JAX_COORDINATOR_ADDRESS": ADDRESS}
    settings["JAX_NUM_PROCESSES"] = str(count)
    cores = sorted(os.sched_getaffinity(0))[:count]
    commands = [["taskset", "-c", str(core), sys.executable, "-m", STAGE] for core in cores]
    peers = [
        subprocess.Popen(command, cwd=project, env=os.environ | settings | {"JAX_PROCESS_ID": str(process)})
        for process, command in enumerate(commands[1:], 1)
    ]
    run(commands[0], project, **settings, JAX_PROCESS_ID="0")
    for peer in peers:
        peer.wait()
    return report(project, f"{count} processes")


def report(project: Path, what: str) -> float:
    """Print and return the median of the seconds per epoch, without the first."""
    seconds = statistics.median(epoch_seconds(project))
    print(f"{project.name}, {what}: {seconds:.2f} s per epoch", flush=True)
    return seconds
