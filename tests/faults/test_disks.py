"""Full disks, quotas, read-only folders, and no more inodes: real file systems, for which root must mount them."""

import os
import random
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conftest import Project, copy
from tests.faults.conftest import Tell
from tests.faults.trial import Trial

pytestmark = [pytest.mark.faults, pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts file systems")]
KIB = 1 << 10
FULL = "No space left|disk is full"  # of the system, and of SQLite
READ_ONLY = ["models", "reports", "data/prepared", "composed", "mlartifacts", ".dvc/cache", ".dvc/tmp", ".resume"]


@contextmanager
def mounted(*command: str) -> Iterator[Path]:
    """Mount a file system during the block; the last argument is the folder."""
    folder = Path(command[-1])
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", *command], check=True, capture_output=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def used_kib(folder: Path) -> int:
    """Size of the files in a folder, in KiB."""
    return int(subprocess.run(["du", "-sk", str(folder)], capture_output=True, text=True, check=True).stdout.split()[0])


@pytest.fixture(scope="session")
def needed_kib(earlier: Project, undisturbed: Project) -> int:
    """How much the undisturbed run adds to the project's folder."""
    return used_kib(undisturbed.root) - used_kib(earlier.root)


def moved(trial: Trial, folder: Path) -> Trial:
    """The trial on another file system."""
    return Trial(copy(trial.project, folder / "project"), trial.expected, Path(trial.settings["DATASET_MIRROR"]))


@pytest.mark.parametrize("part", range(14))
def test_the_disk_is_full(trial: Trial, tell: Tell, tmp_path: Path, needed_kib: int, part: int) -> None:
    fraction = (part + random.Random(f"disk {part}").random()) / 14
    with mounted("-t", "tmpfs", "-o", "size=1g", "tmpfs", str(tmp_path / "disk")) as disk:
        full = moved(trial, disk)
        left = int(fraction * needed_kib) * KIB
        free = shutil.disk_usage(disk).free
        with (disk / "filler").open("wb") as filler:
            os.posix_fallocate(filler.fileno(), 0, free - left)
        assert shutil.disk_usage(disk).free <= left
        first = full.project.run("dvc", "repro", **full.settings)
        assert "Traceback" not in first.stdout
        (disk / "filler").unlink()
        output = full.recover()
    stage = next((line for line in first.stdout.splitlines() if re.search(FULL, line)), "")
    assert stage or not first.returncode, first.stdout
    who = stage.partition(":")[0] if stage else "no stage"
    tell("disk: full", "a tmpfs with less space than the run needs", f"{who} named it; `dvc repro` continued")
    assert output


@pytest.mark.parametrize("seed", range(4))
def test_there_are_no_more_inodes(trial: Trial, tell: Tell, tmp_path: Path, seed: int) -> None:
    with mounted("-t", "tmpfs", "-o", "nr_inodes=100k", "tmpfs", str(tmp_path / "disk")) as disk:
        full = moved(trial, disk)
        left = random.Random(f"inodes {seed}").randrange(2, 60)
        (disk / "filler").mkdir()
        for number in range(os.statvfs(disk).f_ffree - left):
            (disk / "filler" / str(number)).touch()
        first = full.project.run("dvc", "repro", **full.settings)
        assert "Traceback" not in first.stdout
        assert re.search(FULL, first.stdout) or not first.returncode, first.stdout
        shutil.rmtree(disk / "filler")
        full.recover()
    who = "the command named it" if first.returncode else "the run needed fewer"
    tell("disk: no more inodes", "a tmpfs with few inodes left", f"{who}; `dvc repro` continued")


@pytest.mark.parametrize("folder", READ_ONLY)
def test_a_folder_is_read_only(trial: Trial, tell: Tell, folder: str) -> None:
    place = trial.root / folder
    place.mkdir(parents=True, exist_ok=True)
    with mounted("--bind", str(place), str(place)):
        subprocess.run(["mount", "-o", "remount,bind,ro", str(place)], check=True)
        with pytest.raises(OSError, match="Read-only file system"):
            (place / "new").touch()
        first = trial.project.run("dvc", "repro", **trial.settings)
        assert "Traceback" not in first.stdout
    if first.returncode:
        assert "Read-only file system" in first.stdout
    assert "refuses" not in first.stdout, first.stdout
    kept = [*(trial.root / ".unsent").glob("*/")]
    trial.recover()
    outcome = "the command named the folder" if first.returncode else "the run did not need the folder"
    outcome = "`make send` sent the records that were kept" if kept else outcome
    tell("disk: read-only folder", f"a read-only mount of {', '.join(READ_ONLY)}", outcome)
