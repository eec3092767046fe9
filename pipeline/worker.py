"""A worker process: it runs functions beside this process, one after the other."""

import os
import pickle
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, Executor, Future
from contextlib import contextmanager, suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any, NoReturn, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class Worker(Executor):
    """An executor with one process, which ends when this process ends, however that ends.

    The workers of `concurrent.futures.ProcessPoolExecutor` stay behind when their parent is killed, because each holds
    both ends of its queue (python/cpython#94777). This one holds a single end of a pipe and finishes what it was given.
    A future raises what its function raised, and BrokenExecutor if the worker process died.
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
        """Have the worker call a function that it can import, and return the future result."""
        future: Future[T] = Future()
        with self._lock:
            broken = self._broken
            if not broken:
                self._pending.append(future)
        if broken:
            future.set_exception(BrokenExecutor("the worker process died"))
            return future
        try:
            self._connection.send((fn, args, kwargs))
        except OSError:
            self._reader.join()  # it finds the pipe closed, too, and answers for all that is pending
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the worker: after all that was submitted, or at once if the futures are to be cancelled."""
        if cancel_futures:
            self._process.kill()
        with suppress(OSError):  # it has ended already
            self._connection.send(None)
        if wait:
            self._reader.join()
            self._process.join()

    def _receive(self) -> None:
        """Resolve the futures in order, until the worker ends."""
        while True:
            try:
                succeeded, outcome = self._connection.recv()
            except (EOFError, OSError):
                break
            future = self._pending.popleft()
            future.set_result(outcome) if succeeded else future.set_exception(outcome)
        with self._lock:  # so that callbacks of what is submitted later run later
            self._broken = True
            while self._pending:
                self._pending.popleft().set_exception(BrokenExecutor("the worker process died"))


def _work(connection: Connection) -> None:
    """Call what the parent sends until it says that this was all, or is gone."""
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
    except EOFError:
        return None


def exit_at_once() -> NoReturn:
    """End this process without taking apart what it has imported, which takes TensorFlow a second."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


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
