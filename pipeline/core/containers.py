"""What the process may use of the machine: containers limit processor time and memory, and libraries do not notice."""

import contextlib
import os
import resource
from collections.abc import Iterator
from pathlib import Path

import psutil

CGROUPS, MEMBERSHIP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
UNLIMITED = 1 << 60  # bytes; version 1 of cgroups gives a number near 2^63 for no limit


def usable_cores() -> int:
    """The number of cores to which this process is restricted."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processor_quota(root: Path = CGROUPS, membership: Path = MEMBERSHIP) -> float | None:
    """The processor time that this process's cgroup and those above it allow, in cores; None without a limit."""
    return min(filter(None, map(quota_of, cgroups("cpu", root, membership))), default=None)


def available_memory(root: Path = CGROUPS, membership: Path = MEMBERSHIP) -> int:
    """Bytes that this process can allocate: what the machine has left, and the limits of its cgroups."""
    left = (memory_left(folder) for folder in cgroups("memory", root, membership))
    return min([psutil.virtual_memory().available, *(each for each in left if each is not None)])


@contextlib.contextmanager
def limited_memory() -> Iterator[None]:
    """Make allocations beyond the available memory fail in this block, where the kernel would kill the process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    limits = [limit for limit in (soft, hard) if limit != resource.RLIM_INFINITY]
    limit = min([psutil.Process().memory_info().vms + available_memory(), *limits])
    with contextlib.suppress(ValueError, OSError):  # macOS has no such limit
        resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    try:
        yield
    finally:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def cgroups(controller: str, root: Path, membership: Path) -> Iterator[Path]:
    """Folders of this process's cgroup and those above it, for versions 1 and 2 of cgroups."""
    try:
        lines = [line.split(":", 2) for line in membership.read_text(encoding="utf-8").splitlines()]
    except OSError:  # not Linux
        return
    for _, controllers, path in lines:
        if not controllers or controller in controllers.split(","):
            base = root if not controllers else root / controller
            folder = base / path.lstrip("/")
            yield from (each for each in (folder, *folder.parents) if each.is_relative_to(base))


def quota_of(folder: Path) -> float | None:
    """The limit of one cgroup, in cores; None without a limit."""
    try:
        if (folder / "cpu.max").exists():
            quota, period = read(folder / "cpu.max").split()
        else:
            quota, period = read(folder / "cpu.cfs_quota_us"), read(folder / "cpu.cfs_period_us")
        return int(quota) / int(period) if int(quota) > 0 else None
    except (OSError, ValueError):  # no such file, or "max"
        return None


def memory_left(folder: Path) -> int | None:
    """Bytes that a cgroup may still allocate, with file cache that the kernel would drop; None without a limit."""
    names = ("memory.max", "memory.current", "inactive_file")
    try:
        if not (folder / names[0]).exists():
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        limit, used = int(read(folder / names[0])), int(read(folder / names[1]))
        statistics = dict(line.split() for line in read(folder / "memory.stat").splitlines())
    except (OSError, ValueError):  # no such file, or "max"
        return None
    return max(0, limit - used + int(statistics.get(names[2], 0))) if limit < UNLIMITED else None


def read(path: Path) -> str:
    """Content of a small file, without its line break."""
    return path.read_text(encoding="utf-8").strip()
