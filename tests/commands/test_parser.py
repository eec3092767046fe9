"""How commands end: one line for an error that the user can fix, and for an output that cannot be written."""

import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.commands.parser import one_line_errors
from pipeline.core.errors import PipelineError
from tests.conftest import PATH, ROOT, Project, Start

FULL = Path("/dev/full")  # on Linux: as a file on a full disk


@pytest.fixture(autouse=True)
def handler() -> Iterator[None]:
    """Restore what this process does at Ctrl-C: a command changes it when it ends."""
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)


def end_with(error: BaseException | None) -> None:
    """Run a command that raises an error."""
    with one_line_errors("example"):
        if error:
            raise error


def test_a_further_interrupt_does_not_wait_for_threads(start: Start) -> None:
    code = """
import threading, time
from pipeline.commands.parser import one_line_errors
threading.Thread(target=time.sleep, args=(60,)).start()
with one_line_errors("example"):
    print("started", flush=True)
    time.sleep(60)
"""
    process = start([sys.executable, "-c", code], ROOT)
    assert process.stdout
    assert process.stdout.readline() == "started\n"
    process.send_signal(signal.SIGINT)
    assert [process.stdout.readline() for _ in range(2)] == ["\n", "example: interrupted\n"]
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=20)[0] == ""
    assert process.returncode == 1


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (PipelineError("no model"), "example: no model"),
        (KeyboardInterrupt(), "\nexample: interrupted"),
        (FileNotFoundError(2, "No such file or directory", "model.onnx"), "example: model.onnx: No such file or direc"),
        (OSError(28, "No space left on device"), "example: No space left on device"),
        (BrokenPipeError(), 1),
        (SystemExit("unmatched"), "unmatched"),
        (SystemExit(2), 2),
        (None, 0),
    ],
    ids=repr,
)
def test_an_error_is_one_line(error: BaseException | None, status: str | int) -> None:
    with pytest.raises(SystemExit) as ended:
        end_with(error)
    found = ended.value.code
    assert found == status or (isinstance(found, str) and isinstance(status, str) and found.startswith(status))


def test_a_bug_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError), one_line_errors("example"):
        raise ZeroDivisionError


@pytest.mark.skipif(not FULL.exists(), reason="no full device on this system")
@pytest.mark.parametrize(
    ("command", "name"),
    [
        ("doctor --only disk", "doctor"),
        ("doctor --only disk --json", "doctor"),
        ("runs send", "tracking"),
        ("runs check", "tracking"),
    ],
)
def test_an_output_that_cannot_be_written_is_one_line(trained_once: Project, command: str, name: str) -> None:
    printed = trained_once.run("sh", "-c", f"python -m pipeline.commands.{command} > {FULL}; echo $?", PATH=PATH)
    line, status = printed.stdout.splitlines()
    assert (line[: len(name) + 2], line.partition("No space")[2], status) == (f"{name}: ", " left on device", "1")


@pytest.mark.parametrize("command", ["doctor --only disk", "doctor --only disk --json", "runs check"])
def test_a_closed_output_is_no_error(trained_once: Project, command: str) -> None:
    script = f"python -m pipeline.commands.{command} >&-; echo $?; python -m pipeline.commands.{command} | :"
    assert trained_once.run("sh", "-c", script, PATH=PATH).stdout == "0\n"
