"""Worker processes that succeed, that fail, that are killed, and whose parent is killed."""

import math
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import BrokenExecutor
from pathlib import Path

import psutil
import pytest

from pipeline.core.errors import PipelineError
from pipeline.core.process.worker import Worker, WorkerDiedError
from tests.conftest import ROOT


class LocalError(Exception):
    """An error that cannot be rebuilt from its text alone."""

    def __init__(self, text: str, *, code: int) -> None:
        super().__init__(text)
        self.code = code


def refuse(text: str) -> None:
    raise PipelineError(text)


def fail(text: str) -> None:
    raise LocalError(text, code=1)


def append(path: Path, text: str) -> None:
    time.sleep(0.05)
    with path.open("a", encoding="utf-8") as file:
        file.write(text)


def interrupt() -> str:
    os.kill(os.getpid(), signal.SIGINT)
    return "still there"


def test_tasks_run_in_another_process_and_in_order(tmp_path: Path) -> None:
    with Worker() as worker:
        assert worker.submit(os.getpid).result() != os.getpid()
        assert worker.submit(int, "11", base=2).result() == 3
        assert list(worker.map(math.factorial, range(5))) == [1, 1, 2, 6, 24]
        for letter in "abcdef":
            worker.submit(append, tmp_path / "letters", letter)
    assert (tmp_path / "letters").read_text(encoding="utf-8") == "abcdef", "the block waits for all submitted tasks"


def test_an_error_is_raised_by_the_future() -> None:
    with Worker() as worker:
        with pytest.raises(PipelineError, match=r"^not this$"):
            worker.submit(refuse, "not this").result()
        with pytest.raises(RuntimeError, match="LocalError: nor that"):
            worker.submit(fail, "nor that").result()
        assert worker.submit(abs, -1).result() == 1, "the worker continues"


def test_the_worker_ignores_ctrl_c() -> None:
    with Worker() as worker:
        assert worker.submit(interrupt).result() == "still there"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_all_futures_of_a_killed_worker_fail_and_so_do_later_ones() -> None:
    with Worker() as worker:
        pid = worker.submit(os.getpid).result()
        futures = [worker.submit(time.sleep, 60) for _ in range(3)]
        os.kill(pid, signal.SIGKILL)
        futures.append(worker.submit(time.sleep, 60))
        for future in futures:
            assert isinstance(future.exception(timeout=30), BrokenExecutor)
        assert isinstance(worker.submit(abs, -1).exception(timeout=30), BrokenExecutor)


def test_a_task_that_cannot_be_pickled_does_not_shift_later_answers() -> None:
    with Worker() as worker:
        with pytest.raises((TypeError, AttributeError, pickle.PicklingError)):
            worker.submit(callable, lambda: None)
        assert [worker.submit(len, "abc").result(30), worker.submit(len, "abcd").result(30)] == [3, 4]


def test_an_interrupt_ends_a_worker_whose_pipe_is_full() -> None:
    """The pipe holds a few hundred messages; then `submit` blocks."""
    worker, submitted = Worker(), []
    os.kill(worker.submit(os.getpid).result(), signal.SIGSTOP)
    threading.Timer(3, os.kill, (os.getpid(), signal.SIGINT)).start()

    def fill() -> None:
        while True:
            submitted.append(worker.submit(len, "x" * 4000))

    with pytest.raises(KeyboardInterrupt):
        fill()
    submitted.append(worker.submit(len, "abc"))
    assert {type(future.exception(timeout=30)) for future in submitted} == {WorkerDiedError}
    worker.shutdown(cancel_futures=True)


def test_an_error_in_the_block_does_not_wait_for_the_worker() -> None:
    futures = []

    def leave() -> None:
        with Worker() as worker:
            futures.append(worker.submit(time.sleep, 600))
            raise PipelineError("something else")

    started = time.monotonic()
    with pytest.raises(PipelineError, match="something else"):
        leave()
    assert isinstance(futures[0].exception(timeout=30), WorkerDiedError)
    assert time.monotonic() - started < 60


@pytest.mark.parametrize(("redirected", "status"), [(">&-", 0), ("| true", 0), ("> /dev/full", 120)])
def test_an_unwritable_standard_output_causes_no_traceback(redirected: str, status: int) -> None:
    code = "from pipeline.core.process.worker import exit_at_once; print(1); exit_at_once()"
    command = f"{sys.executable} -c '{code}' {redirected}"
    shell = ["env", "-u", "PYTHONUNBUFFERED", "sh", "-c", command]  # if unbuffered, print would fail
    result = subprocess.run(shell, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (status, "")


def test_shutdown_can_end_the_worker_at_once() -> None:
    started = time.monotonic()
    with Worker() as worker:
        future = worker.submit(time.sleep, 60)
        worker.shutdown(cancel_futures=True)
    assert isinstance(future.exception(timeout=30), BrokenExecutor)
    assert time.monotonic() - started < 30


PARENT = """
import os, pathlib, signal, sys, time
from pipeline.core.process.worker import Worker
from tests.core.process.test_worker import append
worker = Worker()
print(worker.submit(os.getpid).result(), flush=True)
for letter in "abcdef":
    worker.submit(append, pathlib.Path(sys.argv[1]), letter)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_the_worker_finishes_its_tasks_and_ends_if_its_parent_is_killed(tmp_path: Path) -> None:
    """The workers of `concurrent.futures` never end in this case."""
    path = tmp_path / "letters"
    parent = subprocess.run([sys.executable, "-c", PARENT, path], cwd=ROOT, capture_output=True, text=True, check=False)
    assert parent.returncode == -signal.SIGKILL, parent.stderr
    pid = int(parent.stdout)
    for _ in range(300):
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            break
        time.sleep(0.1)
    else:
        raise AssertionError("the worker is still running")
    assert path.read_text(encoding="utf-8") == "abcdef"
