"""A worker process that runs functions one at a time, in parallel with this process."""

import atexit
import gc
import os
import pickle
import shutil
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, Executor, Future
from contextlib import contextmanager, suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from types import TracebackType
from typing import Any, NoReturn, ParamSpec, TypeVar

from pipeline.core.errors import PipelineError
from pipeline.core.process.surroundings import settle

PATIENCE = 3.0  # seconds that the worker has to finish after an error or an interrupt in this process
NOT_WRITTEN = 120  # Python's exit status if standard output cannot be written

RARELY = 20_000  # allocations between garbage collections; Python's 700 takes a tenth of the import of Keras

P = ParamSpec("P")
T = TypeVar("T")


class WorkerDiedError(BrokenExecutor, PipelineError):
    """The worker process ended before it answered."""


class Worker(Executor):
    """An executor with one process, which ends when this process ends, even if this process is killed.

    The workers of `concurrent.futures.ProcessPoolExecutor` outlive a parent that is killed, because each holds both
    ends of its queue (python/cpython#94777). This one holds one end of a pipe and finishes the tasks it has received.
    A future raises the exception of its function, or WorkerDiedError if the worker process died.
    As with any spawned process, the main module must be importable and guarded by `__name__ == "__main__"`.
    """

    def __init__(self) -> None:
        context = get_context("spawn")  # a fork would copy locks that threads of imported modules hold
        self._connection, other = context.Pipe()
        self._process = context.Process(target=_work, args=(other,), daemon=True)
        self._pending: deque[Future[Any]] = deque()
        self._lock = threading.Lock()
        self._broken = False
        with _without_interrupts():
            self._process.start()
        other.close()
        self._reader = threading.Thread(target=self._receive, daemon=True)
        self._reader.start()

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Call a function in the worker, which must be able to import it, and return the future.

        Blocks while the pipe to the worker is full.
        """
        task = ForkingPickler.dumps((fn, args, kwargs))  # may fail, so before the future is pending
        future: Future[T] = Future()
        with self._lock:
            broken = self._broken
            if not broken:
                self._pending.append(future)
                self._send(task)
        if broken:
            future.set_exception(self._death())
        return future

    def _send(self, task: Any) -> None:
        try:
            self._connection.send_bytes(task)
        except OSError:
            return  # the worker has died: the reader thread sees it, too, and fails all pending futures
        except BaseException:  # an interrupt: no message can follow one that is only half sent
            self._process.kill()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the worker after all submitted tasks, or within seconds after an error or an interrupt in the block."""
        try:
            if error is None:
                self._end()
            else:
                self._wait_for_answers(PATIENCE)
        finally:
            self.shutdown(cancel_futures=True)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the worker after all submitted tasks, or at once if `cancel_futures` is true."""
        if not cancel_futures:
            self._end(None if wait else 0)
            return
        with _without_interrupts():  # callbacks that save lost work must not be interrupted
            self._process.kill()
            self._reader.join()
            self._process.join()

    def _end(self, timeout: float | None = None) -> None:
        with suppress(OSError), self._lock:  # the worker may have ended already
            self._connection.send(None)
        self._reader.join(timeout)

    def _wait_for_answers(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while self._pending and time.monotonic() < end:
            time.sleep(0.02)

    def _receive(self) -> None:
        """Resolve the futures in order, until the worker ends."""
        try:
            while True:
                succeeded, outcome = self._connection.recv()
                future = self._pending.popleft()
                future.set_result(outcome) if succeeded else future.set_exception(outcome)
        except (EOFError, OSError):
            pass
        finally:  # also if an answer cannot be read
            self._process.kill()
            with self._lock:  # so that callbacks of later submissions run later
                self._broken = True
                while self._pending:
                    self._pending.popleft().set_exception(self._death())

    def _death(self) -> WorkerDiedError:
        return WorkerDiedError(
            f"the worker process {self._process.pid} was killed or crashed (is there enough memory?): "
            "run this command again"
        )


def _work(connection: Connection) -> None:
    """Run the tasks that the parent sends, until it sends None or ends."""
    settle()
    gc.set_threshold(RARELY)
    while task := _receive_task(connection):
        function, arguments, named = task
        try:
            answer = (True, function(*arguments, **named))
        except Exception as error:
            answer = (False, _portable(error))
        with suppress(OSError):  # the parent may be gone; its tasks still run
            connection.send(answer)
    exit_at_once()


def _receive_task(connection: Connection) -> Any:
    try:
        return connection.recv()
    except (EOFError, OSError):  # also if the parent was killed in the middle of a message
        return None


def exit_at_once() -> NoReturn:
    """End this process without tearing down imported modules, which takes TensorFlow a second.

    Functions that are registered with `atexit` still run, such as TensorFlow's removal of temporary files. The exit
    status is 0, or Python's own if standard output or error cannot be written.
    """
    with _without_interrupts():
        atexit._run_exitfuncs()
    status = 0
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:  # None if it was closed at start-up
                stream.flush()
        except (OSError, ValueError):
            status = NOT_WRITTEN
    os._exit(status)


def end_with_parent(folder: str | None = None) -> None:
    """Wait until standard input ends, which the parent holds open. Then remove the folder, and end this process."""
    sys.stdin.read()
    if folder:
        shutil.rmtree(folder, ignore_errors=True)
    os._exit(1)


def _portable(error: Exception) -> Exception:
    """Return the error if another process can unpickle it, else a RuntimeError with its text."""
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301 (its own bytes)
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """Ignore Ctrl-C in this block and in processes that it starts: the parent decides what an interrupt ends."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
