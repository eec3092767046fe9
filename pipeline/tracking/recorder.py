"""Write one MLflow run without losing records that the store did not accept.

Every record is an event: a small JSON object, with a file for images and models. If the store does not accept an event,
the event and all later ones are kept in .unsent/RUN_ID/, and the next command sends them in order. Only the process
that writes events imports MLflow; another process may record them.
"""

import functools
import time
from collections.abc import Callable, Mapping
from concurrent.futures import BrokenExecutor, Executor, Future, wait
from pathlib import Path
from typing import Any

from pipeline.tracking.events import Event, client_of, reason, send_event
from pipeline.tracking.outbox import KEPT, RunAddress, keep_event, outbox_lock, say, set_aside, tell_failure


class Recorder:
    """Recorder of one run. No method raises an exception if the store fails: the missing events are kept.

    With an executor, its process writes the events in order, and `flush` waits for it.
    """

    def __init__(self, run: RunAddress, executor: Executor | None = None) -> None:
        self.run = run
        self._executor = executor
        self._writing: list[Future[None]] = []

    @property
    def run_id(self) -> str:
        """The MLflow run ID."""
        return self.run.run_id

    def params(self, values: Mapping[str, Any]) -> None:
        """Record the configuration with flat keys: {'training.epochs': 20}."""
        self._record({"kind": "params", "values": {key: str(value) for key, value in values.items()}})

    def tags(self, values: Mapping[str, Any]) -> None:
        """Record facts that users search for."""
        self._record({"kind": "tags", "values": {key: str(value) for key, value in values.items()}})

    def metrics(self, values: Mapping[str, float], step: int, timestamp: float | None = None) -> None:
        """Record metrics after `step` epochs. Equal metrics with the same timestamp are stored once."""
        stamp = int(1000 * (timestamp or time.time()))
        self._record({"kind": "metrics", "values": dict(values), "step": step, "timestamp": stamp})

    def text(self, name: str, content: str) -> None:
        """Record text as an artifact."""
        self._record({"kind": "text", "name": name, "content": content})

    def artifact(self, path: Path, folder: str = "") -> None:
        """Record a file as an artifact, at the top level or in a folder of the run."""
        self._record({"kind": "artifact", "folder": folder}, path)

    def dataset(self, name: str, context: str, digest: str, images: int, shape: list[int]) -> None:
        """Record a dataset and the context in which the run used it."""
        profile = {"images": images, "shape": shape}
        self._record({"kind": "dataset", "name": name, "context": context, "digest": digest, "profile": profile})

    def model(self, path: Path, image_shape: tuple[int, ...], classes: int, backend: str) -> None:
        """Record the network in a `.keras` file as the run's model, with its input and output shapes."""
        event = {"kind": "model", "image_shape": list(image_shape), "classes": classes, "backend": backend}
        self._record(event, path)

    def model_file(self, path: Path, folder: str = "") -> None:
        """Add a file to the run's model, if the run has one."""
        self._record({"kind": "model file", "folder": folder}, path)

    def status(self, status: str) -> None:
        """Record the status of the run: RUNNING, FINISHED, FAILED or KILLED."""
        self._record({"kind": "status", "status": status, "time": int(1000 * time.time())})

    def execute(self, function: Callable[..., None], *arguments: Any) -> None:
        """Call a function in the writing process after all earlier events. A failure is printed as one line."""
        if self._executor is None:
            function(*arguments)
        else:
            self._executor.submit(function, *arguments).add_done_callback(tell_failure)

    def flush(self, patience: float | None = None) -> None:
        """Wait until every event is written or kept. Raises OSError if neither is possible, as on a full disk.

        If the writing process writes nothing for `patience` seconds, it is ended and its events are kept.
        """
        while self._writing:
            finished, _ = wait(self._writing[:1], patience)
            if not finished and self._executor is not None:
                self._executor.shutdown(cancel_futures=True)
            self._writing.pop(0).result()

    def is_incomplete(self) -> bool:
        """Whether the store lacks any of the events recorded so far."""
        self.flush()
        return self.run.outbox.exists()

    def _record(self, event: Event, path: Path | None = None) -> None:
        if self._executor is None:
            write_event(self.run, event, path)
            return
        written: Future[None] = Future()
        writing = self._executor.submit(write_event, self.run, event, path)
        writing.add_done_callback(functools.partial(_settle, written, self.run, event, path))
        self._writing.append(written)


def write_event(run: RunAddress, event: Event, path: Path | None) -> None:
    """Write an event to the store, or keep it."""
    with outbox_lock(run.outbox):  # another process may be sending the outbox
        if run.outbox.exists():
            keep_event(run, event, path)
            return
        try:
            send_event(client_of(run.uri), run.run_id, event, path)
        except Exception as error:  # no failure of the store may end a training
            if not set_aside(run, event, path, error):
                keep_event(run, event, path)
                say(f"{run.uri} did not accept this run's {event['kind']} ({reason(error)}). {KEPT}")


def _settle(written: Future[None], run: RunAddress, event: Event, path: Path | None, writing: Future[None]) -> None:
    """Resolve `written` when its event is written or kept. If the worker process died, keep the event here."""
    try:
        error = writing.exception()
        if isinstance(error, BrokenExecutor):
            keep_lost(run, event, path)
        elif error is not None:
            raise error
    except Exception as failure:
        written.set_exception(failure)
    else:
        written.set_result(None)


def keep_lost(run: RunAddress, event: Event, path: Path | None) -> None:
    """Keep an event of a process that died, and print a message for the first one."""
    with outbox_lock(run.outbox):
        first = not run.outbox.exists()
        keep_event(run, event, path)
    if first:
        say(f"the process that records this run died. {KEPT}")
