"""A worker process: it runs functions beside this process, one after the other."""

import atexit
import gc
import os
import pickle
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

from pipeline.errors import PipelineError
from pipeline.surroundings import settle

PATIENCE = 3.0  # seconds that a worker gets to finish when this process ends with an error or an interrupt
NOT_WRITTEN = 120  # the exit status with which Python, too, says that standard output could not be written

RARELY = 20_000  # new objects between two looks for garbage; Python's 700 cost a tenth of importing Keras

P = ParamSpec("P")
T = TypeVar("T")


class WorkerDiedError(BrokenExecutor, PipelineError):
    """The worker process ended before it answered."""


class Worker(Executor):
    """An executor with one process, which ends when this process ends, however that ends.

    The workers of `concurrent.futures.ProcessPoolExecutor` stay behind when their parent is killed, because each holds
    both ends of its queue (python/cpython#94777). This one holds a single end of a pipe and finishes what it was given.
    A future raises what its function raised, and WorkerDiedError if the worker process died.
    As with any process that is spawned, the main module must be importable, and guarded by `__name__ == "__main__"`.
    """

    def __init__(self) -> None:
        context = get_context("spawn")  # a fork would copy the threads' locks of whatever is imported by then
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
        """Have the worker call a function that it can import, and return the future result.

        Waits while the worker is so far behind that the pipe is full.
        """
        task = ForkingPickler.dumps((fn, args, kwargs))  # before anything waits for an answer to it
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
            return  # the worker has died: the reader finds the pipe closed, too, and answers for all that is pending
        except BaseException:  # an interrupt: half a message may be under way, which nothing can follow
            self._process.kill()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the worker after all that was submitted; soon, if the block was left by an error or an interrupt."""
        try:
            if error is None:
                self._end()
            else:
                self._wait_for_answers(PATIENCE)
        finally:
            self.shutdown(cancel_futures=True)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the worker: after all that was submitted, or at once if the futures are to be cancelled."""
        if not cancel_futures:
            self._end(None if wait else 0)
            return
        with _without_interrupts():  # whoever keeps what was lost is not to be disturbed
            self._process.kill()
            self._reader.join()
            self._process.join()

    def _end(self, timeout: float | None = None) -> None:
        with suppress(OSError), self._lock:  # it may have ended already
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
        finally:  # also where an answer cannot be read
            self._process.kill()
            with self._lock:  # so that callbacks of what is submitted later run later
                self._broken = True
                while self._pending:
                    self._pending.popleft().set_exception(self._death())

    def _death(self) -> WorkerDiedError:
        return WorkerDiedError(
            f"the worker process {self._process.pid} was killed or ended by itself (is there enough memory?): "
            "run this again"
        )


def _work(connection: Connection) -> None:
    """Call what the parent sends until it says that this was all, or is gone."""
    settle()
    gc.set_threshold(RARELY)
    while task := _receive_task(connection):
        function, arguments, named = task
        try:
            answer = (True, function(*arguments, **named))
        except Exception as error:
            answer = (False, _portable(error))
        with suppress(OSError):  # the parent may be gone: what it asked for is done all the same
            connection.send(answer)
    exit_at_once()


def _receive_task(connection: Connection) -> Any:
    try:
        return connection.recv()
    except (EOFError, OSError):  # also where the parent was killed in the middle of a message
        return None


def exit_at_once() -> NoReturn:
    """End this process without taking apart what it has imported, which takes TensorFlow a second.

    What asked to be called at the end is called: TensorFlow removes temporary files then. The status is 0, or that of
    Python itself where standard output or error could not be written.
    """
    with _without_interrupts():
        atexit._run_exitfuncs()
    status = 0
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:  # as where it was closed from the start
                stream.flush()
        except (OSError, ValueError):
            status = NOT_WRITTEN
    os._exit(status)


def _portable(error: Exception) -> Exception:
    """The error itself if another process can rebuild it from a pickle, else its text."""
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301 (its own bytes)
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """Ignore Ctrl-C in this block, and so in processes that it starts: the parent decides what an interrupt ends."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
