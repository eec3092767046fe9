"""Projects that are moved or copied, clocks that are set back, and processes that stand still."""

import random
import shutil
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest

from pipeline.tracking.relocation import release
from tests import web
from tests.conftest import PATH, Project, Start
from tests.faults.conftest import Tell
from tests.faults.test_sources import source
from tests.faults.trial import EPOCHS, Trial, read_until

pytestmark = pytest.mark.faults
ASLEEP = 60.0  # seconds


def train_only(trial: Trial) -> None:
    """Run the stages up to train."""
    trial.project.succeed("dvc", "repro", "train", **trial.settings)


@pytest.mark.parametrize("name", ["elsewhere", "with space", "né中", "deep/er/still"])
def test_the_project_is_moved_between_train_and_evaluate(trial: Trial, tell: Tell, tmp_path: Path, name: str) -> None:
    train_only(trial)
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    release()  # this process has opened the project, too
    trial.root.rename(tmp_path / name)
    old, trial.root, trial.project = trial.root, tmp_path / name, Project(tmp_path / name)
    trial.recover()
    assert not old.exists(), "nothing is written to the old place"
    tell("the project is moved between train and evaluate", "`mv`", "`dvc repro` evaluated; the run is complete")


@pytest.mark.parametrize("used", ["the copy", "both"])
def test_the_project_is_copied_between_train_and_evaluate(trial: Trial, tell: Tell, tmp_path: Path, used: str) -> None:
    train_only(trial)
    before = snapshot(trial.root)
    shutil.copytree(trial.root, tmp_path / "copy", symlinks=True)
    copied = Trial(Project(tmp_path / "copy"), trial.expected, Path(trial.settings["DATASET_MIRROR"]))
    copied.before = trial.before
    copied.lock = trial.lock
    copied.recover()
    assert snapshot(trial.root) == before, "nothing is written to the original"
    if used == "both":
        trial.recover()
        copied.check()
    tell(
        "the project is copied between train and evaluate", "`cp -r`; used: the copy, or both", "each has its own runs"
    )


def snapshot(root: Path) -> dict[str, bytes]:
    """Content of all files but Python's bytecode."""
    return {str(path): path.read_bytes() for path in root.rglob("*") if path.is_file() and path.suffix != ".pyc"}


@pytest.mark.skipif(shutil.which("faketime") is None, reason="needs faketime")
@pytest.mark.parametrize("shift", ["-2h", "-400d"])
def test_the_clock_is_set_back(trial: Trial, tell: Tell, operations: dict[str, list[str]], shift: str) -> None:
    """Between a killed training and its continuation."""
    assert trial.kill(f"pipeline.stages.train {int(0.6 * len(operations['pipeline.stages.train']))}").returncode
    trial.project.succeed("faketime", "-f", shift, "dvc", "repro", **trial.settings, PATH=PATH)
    trial.check()
    tell("the clock is set back", "faketime, by 2 hours or 400 days, after `kill -9`", "the training continued")


@pytest.mark.parametrize("seconds", [3.0, ASLEEP])
def test_the_machine_sleeps_during_the_training(trial: Trial, tell: Tell, start: Start, seconds: float) -> None:
    running = start(["dvc", "repro"], trial.root, **trial.settings, PATH=PATH)
    read_until(running, "epoch ", random.Random(seconds).randint(1, EPOCHS - 1))
    sleep_and_wake(running, seconds)
    output, _ = running.communicate()
    assert running.returncode == 0, output
    trial.recover()
    tell("the machine sleeps in mid-run", "SIGSTOP for 3 s or 60 s", "the run went on")


@pytest.mark.parametrize("seconds", [3.0, ASLEEP])
def test_the_machine_sleeps_during_the_download(trial: Trial, tell: Tell, start: Start, seconds: float) -> None:
    requested = threading.Event()

    def trickle(request: web.Handler, content: bytes) -> None:
        requested.set()
        web.trickle(request, content)

    faulty = source(trial.settings["DATASET_MIRROR"], trickle, lambda number: True)
    with web.serving(faulty) as address:
        running = start(["dvc", "repro", "fetch"], trial.root, DATASET_MIRROR=address, PATH=PATH)
        assert requested.wait(60)
        sleep_and_wake(running, seconds)
        output, _ = running.communicate()
    assert running.returncode == 0, output
    trial.recover()
    tell("the machine sleeps in a download", "SIGSTOP for 3 s or 60 s", "the download went on")


def sleep_and_wake(process: "subprocess.Popen[str]", seconds: float) -> None:
    """Stop a process and its children for some time."""
    import psutil

    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    for one in family:
        one.send_signal(signal.SIGSTOP)
    time.sleep(seconds)
    assert [one.status() for one in family] == [psutil.STATUS_STOPPED] * len(family)
    assert len(family) > 1, "DVC and its stage"
    for one in family:
        one.send_signal(signal.SIGCONT)
