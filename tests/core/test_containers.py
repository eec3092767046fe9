"""Limits of containers: real cgroups where they can be created, and files like theirs."""

import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.core.containers import available_memory, processor_quota
from pipeline.core.process.surroundings import THREADS

MIB = 1 << 20
STAGE = f"""
import json, os
from pipeline.core.process.stage import run_stage
run_stage("x", "x", lambda: print(json.dumps({{name: os.environ[name] for name in {THREADS}}})))
"""
SHOW = "from pipeline.core.containers import available_memory; print(available_memory())"


def group(controller: str, name: str, limits: dict[str, str]) -> Iterator[Path]:
    """Create a cgroup of version 1 with these limits, and remove it afterwards."""
    folder = Path("/sys/fs/cgroup") / controller / f"{name}-{os.getpid()}"
    try:
        folder.mkdir()
    except OSError:
        pytest.skip("cgroups cannot be created here")
    for file, limit in limits.items():
        (folder / file).write_text(limit, encoding="utf-8")
    yield folder
    folder.rmdir()


@pytest.fixture
def one_core() -> Iterator[Path]:
    """A cgroup that may use the time of 0.8 cores."""
    yield from group("cpu", "containers-test", {"cpu.cfs_quota_us": "80000"})


@pytest.fixture
def half_a_gigabyte() -> Iterator[Path]:
    """A cgroup that may use 512 MiB of memory."""
    yield from group("memory", "containers-test", {"memory.limit_in_bytes": str(512 * MIB)})


def inside(folder: Path, *command: str) -> list[str]:
    """The command, started in a cgroup."""
    return ["sh", "-c", f'echo $$ > {folder}/cgroup.procs; exec "$@"', "sh", *command]


@pytest.mark.parametrize("chosen", [{}, {"OMP_NUM_THREADS": "2"}])
def test_stages_start_no_more_threads_than_the_container_has_cores(one_core: Path, chosen: dict[str, str]) -> None:
    """Variables that are set are kept."""
    inherited = {name: value for name, value in os.environ.items() if name not in THREADS} | chosen
    command = inside(one_core, sys.executable, "-c", STAGE)
    result = subprocess.run(command, env=inherited, capture_output=True, text=True, check=True)
    assert json.loads(result.stdout) == dict.fromkeys(THREADS, "1") | chosen


def test_available_memory_of_a_container(half_a_gigabyte: Path) -> None:
    command = inside(half_a_gigabyte, sys.executable, "-c", SHOW)
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert 300 * MIB < int(shown) <= 512 * MIB


VERSION_1 = {"memory.limit_in_bytes": "{limit}", "memory.usage_in_bytes": "60", "memory.stat": "total_inactive_file 20"}
VERSION_2 = {"memory.max": "{limit}", "memory.current": "60", "memory.stat": "inactive_file 20"}


@pytest.mark.parametrize(("line", "files", "unlimited"), [
    ("4:memory:/a/b", VERSION_1, "9223372036854771712"),
    ("0::/a/b", VERSION_2, "max"),
])  # fmt: skip
def test_limits_of_memory(tmp_path: Path, line: str, files: dict[str, str], unlimited: str) -> None:
    """The smallest limit of a group and of the groups above it counts; the file cache counts as free."""
    base = tmp_path / "memory" if "memory" in line else tmp_path
    (base / "a" / "b").mkdir(parents=True)
    membership = tmp_path / "membership"
    membership.write_text(f"{line}\n", encoding="utf-8")
    for folder, limit in ((base / "a", "100"), (base / "a" / "b", unlimited)):
        for name, text in files.items():
            (folder / name).write_text(text.format(limit=limit) + "\n", encoding="utf-8")
    assert available_memory(tmp_path, membership) == 60
    (base / "a" / next(iter(files))).write_text("10\n", encoding="utf-8")
    assert available_memory(tmp_path, membership) == 0
    (base / "a" / "memory.stat").unlink()
    assert available_memory(tmp_path, membership) > MIB


def test_a_machine_without_cgroups(tmp_path: Path) -> None:
    assert processor_quota(tmp_path, tmp_path / "none") is None
    assert available_memory(tmp_path, tmp_path / "none") > MIB


@pytest.mark.skipif(sys.platform != "linux", reason="no limit on memory elsewhere")
@pytest.mark.parametrize("soft", [resource.RLIM_INFINITY, 500 * MIB])
def test_allocations_fail_within_a_limit(soft: int) -> None:
    """A lower limit that the process already has is kept, and restored."""
    code = f"""
import mmap, resource
from pipeline.core.containers import available_memory, limited_memory
hard = resource.getrlimit(resource.RLIMIT_AS)[1]
NORESERVE = 0x4000  # Linux's; Python 3.11 does not name it
resource.setrlimit(resource.RLIMIT_AS, ({soft}, hard))
size = 2 * available_memory()
with limited_memory():
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    try:
        mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NORESERVE)
    except OSError as error:
        print("refused")
assert limit == {soft} or {soft} == resource.RLIM_INFINITY and 0 < limit < size, limit
assert resource.getrlimit(resource.RLIMIT_AS) == ({soft}, hard)
if {soft} == resource.RLIM_INFINITY:  # without the limit, the same allocation is granted
    mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NORESERVE)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (0, "refused\n"), result.stderr
