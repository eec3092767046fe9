"""The part of this machine that each of several trials may use: some cores, and some GPUs."""

import math
import os
import subprocess
from typing import NamedTuple

from pipeline.core.containers import available_memory, processor_quota, usable_cores
from pipeline.core.errors import PipelineError
from pipeline.core.process.surroundings import THREADS

MOST = 4  # trials that start at once know nothing of each other's results
MEMORY = 3 << 29  # bytes of one trial: the largest recipe takes 1.1 GiB
VISIBLE = "CUDA_VISIBLE_DEVICES"


class Share(NamedTuple):
    """Cores and GPUs of one trial."""

    cores: frozenset[int]  # empty for all
    threads: int | None  # a limit where the system does not restrict processes to cores
    gpus: tuple[str, ...] | None  # as in CUDA_VISIBLE_DEVICES; None to leave that as it is

    def take(self) -> None:
        """Restrict this process to the share. Call this before importing Keras."""
        if self.cores:
            os.sched_setaffinity(0, self.cores)
        if self.threads:
            for name in THREADS:
                os.environ.setdefault(name, str(self.threads))
        if self.gpus is not None:
            os.environ[VISIBLE] = ",".join(self.gpus)


def divide(jobs: int | None, cores: int | None, gpus: int | None) -> list[Share]:
    """Divide this machine among `jobs` trials with `cores` cores and `gpus` GPUs each.

    By default, a trial has one GPU if there are any, and an equal share of the cores; and there are as many trials as
    their GPUs allow, or as `side_by_side` says. Raises PipelineError if there are fewer cores or GPUs.
    """
    there, usable = visible_gpus(), usable_cores()
    each = min(1, len(there)) if gpus is None else gpus
    count = jobs or max(1, len(there) // each if each else side_by_side(cores or 1))
    if count * each > len(there):
        raise PipelineError(refusal(count, each, len(there)))
    if cores and count * cores > usable:
        raise PipelineError(
            f"{count} side by side with {cores} cores each need {count * cores}, but this machine has {usable}"
        )
    chosen = [tuple(there[each * number : each * (number + 1)]) for number in range(count)]
    threads = limit(count, cores)
    return [
        Share(own, threads, devices if there else None)
        for own, devices in zip(divide_cores(count, cores), chosen, strict=True)
    ]


def side_by_side(cores: int) -> int:
    """How many trials with `cores` cores each the machine has cores and memory for, at most MOST.

    With one core each, they train most.
    """
    usable = min(usable_cores(), int(processor_quota() or usable_cores()))
    return max(1, min(usable // cores, available_memory() // MEMORY, MOST))


def limit(jobs: int, cores: int | None) -> int | None:
    """The threads of each trial; None where each is restricted to cores of its own instead."""
    quota = processor_quota() or math.inf
    if hasattr(os, "sched_getaffinity") and quota >= usable_cores():
        return None
    return cores or (max(1, int(min(quota, usable_cores()) // jobs)) if jobs > 1 else None)


def refusal(trials: int, each: int, there: int) -> str:
    """The message that there are fewer GPUs than the trials need."""
    devices = f"{each} GPU{'s' * (each > 1)}"
    needed = f"1 trial with {devices} needs" if trials == 1 else f"{trials} trials with {devices} each need"
    where = f"{VISIBLE} names" if VISIBLE in os.environ else "this machine has"
    here = "DEVICE=cpu uses none" if uses_processor() else f"{where} {there} GPU{'s' * (there != 1)}"
    fewer = f"use --jobs {there // each}, or " if there >= each else f"use --gpus {there}, or " if there else "use "
    return f"{needed} {trials * each}, but {here}: {fewer}--gpus 0 to train on processors"


def divide_cores(jobs: int, each: int | None) -> list[frozenset[int]]:
    """`each` cores, or an equal share of all, for each job; empty for all of them, or on a system without it."""
    if not hasattr(os, "sched_getaffinity") or (jobs == 1 and not each):
        return [frozenset()] * jobs
    cores = sorted(os.sched_getaffinity(0))
    if each:
        return [frozenset(cores[each * number : each * (number + 1)]) for number in range(jobs)]
    return [frozenset(cores[number::jobs] or [cores[number % len(cores)]]) for number in range(jobs)]


def uses_processor() -> bool:
    """Whether DEVICE says that GPUs are not used."""
    return (os.environ.get("DEVICE") or "").lower() == "cpu"


def visible_gpus() -> list[str]:
    """The GPUs that CUDA_VISIBLE_DEVICES names, or else all of this machine, by number. None with DEVICE=cpu."""
    if uses_processor():
        return []
    if VISIBLE in os.environ:
        return [name.strip() for name in os.environ[VISIBLE].split(",") if name.strip() not in ("", "-1")]
    return installed_gpus()


def installed_gpus() -> list[str]:
    """The numbers of this machine's GPUs."""
    command = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    except (OSError, subprocess.CalledProcessError):  # no driver, or no GPU
        return []
