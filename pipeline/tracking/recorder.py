"""Write one MLflow run without losing records that the store did not accept.

Every record is an event: a small JSON object, with a file for images and models. If the store does not accept an event,
the event and all later ones are kept in .unsent/RUN_ID/, and the next command sends them in order. Only the process
that writes events imports MLflow; another process may record them.
"""

import contextlib
import functools
import json
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import BrokenExecutor, Executor, Future, wait
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock

from pipeline.core.errors import first_line, without_secrets
from pipeline.core.files import sha256, text_digest, write_json, write_text
from pipeline.tracking.store import RELATIVE, Store, absolute, relative

OUTBOX = ".unsent"
BATCH = 100  # MLflow's maximum of params or tags per request

KEPT = f"The missing records are kept in {OUTBOX}/; the next training or `make send` sends them"
PRIVATE = 0o600  # only its owner has access
CHECKSUM = "checksum"  # the key in a kept event that no kind of event uses itself
REFUSED = "refused"  # the folder in the outbox for events that the store rejected
ASIDE = f"The event is set aside in {OUTBOX}/{REFUSED}/; everything else is recorded"
REFUSALS = {*range(400, 500)} - {401, 403, 407, 408, 425, 429}  # except authentication, timeouts and rate limits
FAILED = re.compile(r"failed with error code (\d{3})")  # MLflow's message if a response is not JSON
NO_RESPONSE = re.compile("(?i)max retries exceeded|timed out")  # in MLflow's messages
NUMBERED = re.compile(r"(?:event|file)-(\d+)")  # the entries of an outbox

Event = dict[str, Any]


class RunAddress(NamedTuple):
    """A run in a store, and the root folder of the project that records it."""

    uri: str
    run_id: str
    experiment_id: str | None  # None if the store did not answer
    root: Path

    @property
    def outbox(self) -> Path:
        """The folder of events that the store has not accepted yet."""
        return self.root / OUTBOX / self.run_id


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


def keep_event(run: RunAddress, event: Event, path: Path | None, refused: bool = False) -> None:
    """Append an event and a copy of its file to the outbox, or to the refused events."""
    outbox = run.outbox.parent / REFUSED / run.run_id if refused else run.outbox
    outbox.mkdir(parents=True, exist_ok=True)
    number = next_number(outbox)
    write_text(outbox / "uri", relative(run.uri, run.root), PRIVATE)  # the address may contain a password
    if path is not None:  # the file may be replaced before it is sent
        folder = outbox / f"file-{number}"
        folder.mkdir()
        shutil.copy(path, folder)
        event = event | {"file": f"{folder.name}/{path.name}", "sha256": sha256(folder / path.name)}
    write_json(outbox / f"event-{number:06}.json", event | {CHECKSUM: text_digest(json.dumps(event))})


def next_number(outbox: Path) -> int:
    """The number of the next event in an outbox, or among the refused events of a run."""
    return 1 + max((int(name[1]) for entry in outbox.iterdir() if (name := NUMBERED.match(entry.name))), default=-1)


def read_event(path: Path) -> tuple[Event, Path | None]:
    """Read an event that was kept, and the path of its file. Raises ValueError if either is damaged."""
    event = json.loads(path.read_text(encoding="utf-8"))
    if event.pop(CHECKSUM, None) not in (None, text_digest(json.dumps(event))):  # earlier versions wrote none
        raise ValueError("its content does not match its checksum")
    file = path.parent / event.pop("file") if "file" in event else None
    if file is not None and event.pop("sha256", None) not in (None, sha256(file)):
        raise ValueError(f"{file} does not match its checksum")
    return event, file


def put_away(path: Path, outbox: Path, what: str) -> None:
    """Move a kept event that is damaged to the refused events, so that later events are not blocked."""
    aside = outbox.parent / REFUSED / outbox.name
    aside.mkdir(parents=True, exist_ok=True)
    own = int(path.stem.removeprefix("event-"))
    number = max(own, next_number(aside))  # other events may have been set aside under the same number
    shutil.move(path, aside / f"event-{number:06}.json")
    if (outbox / f"file-{own}").exists():
        shutil.move(outbox / f"file-{own}", aside / f"file-{number}")
    say(f"{path} is damaged ({what}). {ASIDE}")


def set_aside(run: RunAddress, event: Event, path: Path | None, error: Exception) -> bool:
    """If the store refused an event, set it aside so that later events are not blocked. Return whether it did."""
    refused = is_refused(error, run.uri, run.run_id)
    if refused:
        keep_event(run, event, path, refused=True)
        say(f"{run.uri} refuses the {event['kind']} of run {run.run_id} ({reason(error)}). {ASIDE}")
    return refused


def is_refused(error: Exception, uri: str, run_id: str) -> bool:
    """Whether the store rejected an event for good, rather than being unreachable or busy.

    Authentication errors, rate limits and stores that cannot return the run itself count as temporary.
    """
    if status_of(error) not in REFUSALS:
        return False
    try:
        client_of(uri).get_run(run_id)
    except Exception as other:  # a run that no longer exists accepts nothing
        return getattr(other, "error_code", "") == "RESOURCE_DOES_NOT_EXIST"
    return True


def status_of(error: Exception) -> int | None:
    """The HTTP status of an error, which MLflow's database errors also have; None if the error has none."""
    # MLflow uses BAD_REQUEST for every database error, including temporary ones.
    if getattr(error, "error_code", "") == "BAD_REQUEST":
        return None
    if found := FAILED.search(str(error)):
        return int(found[1])
    ask = getattr(error, "get_http_status_code", None)
    status = ask() if ask else getattr(getattr(error, "response", None), "status_code", None)
    return int(status) if status is not None else None


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


def say(text: str) -> None:
    """Print a message for the user, and ignore errors of standard output, which may be closed or on a full disk."""
    with contextlib.suppress(OSError, ValueError):
        print(without_secrets(f"tracking: {text}"), flush=True)


def tell_failure(future: Future[Any]) -> None:
    """Print the error of a background task that nothing waits for."""
    error = future.exception()
    if error is not None and not isinstance(error, BrokenExecutor):
        say(f"some records could not be written ({first_line(error)})")


@functools.cache
def client_of(uri: str) -> Any:
    """MLflow's client for a store, created on first use because it opens the database, which may fail."""
    from mlflow import MlflowClient

    return MlflowClient(uri)


@contextlib.contextmanager
def outbox_lock(outbox: Path) -> Iterator[None]:
    """Hold the lock that every reader and writer of an outbox must hold."""
    outbox.parent.mkdir(exist_ok=True)
    file = outbox.with_suffix(".lock")
    with FileLock(file):
        try:
            yield
        finally:  # while the lock is held: FileLock notices that the file which it waited for is gone
            file.unlink(missing_ok=True)


def reason(error: Exception) -> str:
    """The reason why an event was not sent, in one line."""
    return without_secrets(first_line(error))[:200]


def send_event(client: Any, run_id: str, event: Event, path: Path | None) -> None:  # noqa: PLR0912 (one case per kind)
    """Write one event to the store. Raises any exception that MLflow raises."""
    from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag

    from pipeline.tracking.keras_model import NAME, describe_network, log_network

    match event:
        case {"kind": "params", "values": values}:
            params = [Param(key, value) for key, value in values.items()]
            for start in range(0, len(params), BATCH):
                client.log_batch(run_id, params=params[start : start + BATCH])
        case {"kind": "tags", "values": values}:
            client.log_batch(run_id, tags=[RunTag(key, value) for key, value in values.items()])
        case {"kind": "metrics", "values": values, "step": step, "timestamp": stamp}:
            client.log_batch(run_id, metrics=[Metric(key, value, stamp, step) for key, value in values.items()])
        case {"kind": "text", "name": name, "content": content}:
            client.log_text(run_id, content, name)
        case {"kind": "artifact", "folder": folder}:
            client.log_artifact(run_id, str(path), folder or None)
        case {"kind": "dataset", "name": name, "context": context, "digest": digest, "profile": profile}:
            source = json.dumps({"uri": f"data/prepared/{context}.npz"})
            dataset = Dataset(name, digest, "local", source, profile=json.dumps(profile))
            client.log_inputs(run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", context)])])
        case {"kind": "model", "image_shape": shape, "classes": classes, "backend": backend}:
            assert path is not None
            log_network(client, run_id, path, shape, classes, backend)
        case {"kind": "model"}:  # kept by an earlier version, which did not record the rest
            assert path is not None
            log_network(client, run_id, path, *describe_network(path))
        case {"kind": "model file", "folder": folder}:
            models = (client.get_logged_model(each.model_id) for each in client.get_run(run_id).outputs.model_outputs)
            for own in [model for model in models if model.name == NAME][-1:]:  # registered models stay unchanged
                client.log_model_artifact(own.model_id, str(path), folder or None)
        case {"kind": "status", "status": "RUNNING"}:
            client.update_run(run_id, "RUNNING")
        case {"kind": "status", "status": status, "time": stamp}:
            client.set_terminated(run_id, status, stamp)
        case _:
            raise ValueError(f"unknown event {event}")


def send_unsent(root: Path) -> tuple[int, list[str]]:
    """Send the events that earlier commands could not. Returns the number of completed runs, and a line per failure.

    An event that was sent just before a failure may be sent twice; MLflow stores only one of two equal metrics.
    """
    sent, problems = 0, []
    unreachable: set[str] = set()
    # Of a run whose process was killed, there may be a lock alone.
    for outbox in sorted({path.with_suffix("") for path in (root / OUTBOX).glob("*") if path.name != REFUSED}):
        with outbox_lock(outbox):
            try:
                sent += _send_outbox(outbox, unreachable)
            except Exception as error:  # as above: report it and continue
                problems.append(f"run {outbox.name} is still incomplete: {reason(error)}")
    return sent, problems


def current_address(uri: str, root: Path) -> str:
    """The current address of the store that kept events belong to.

    Earlier versions kept absolute addresses, which are wrong if the database was moved along with the project.
    Raises FileNotFoundError if there is no such database.
    """
    store = Store(absolute(uri, root), root)
    if store.file is None or store.file.exists():
        return store.uri
    here = root / store.file.name
    if not here.exists():  # SQLite would create it
        raise FileNotFoundError(f"there is no database {store.file}, to which its records belong")
    return absolute(f"{RELATIVE}{store.file.name}", root)


def _send_outbox(outbox: Path, unreachable: set[str]) -> bool:
    """Send the events of one run. Returns whether there were any.

    Raises any exception. Adds a store that does not respond to `unreachable`, and then raises ConnectionError without a
    request, which could take half a minute.
    """
    if not outbox.exists():  # another process has already sent it
        return False
    if not (outbox / "uri").exists() and not [*outbox.glob("event-*.json")]:  # killed before the first event
        shutil.rmtree(outbox)
        return False
    root = outbox.parent.parent
    uri = current_address((outbox / "uri").read_text(encoding="utf-8"), root)
    if uri in unreachable:
        raise ConnectionError("the store did not respond")
    client, run = client_of(uri), RunAddress(uri, outbox.name, None, root)
    for path in sorted(outbox.glob("event-*.json")):
        try:
            event, file = read_event(path)
        except (ValueError, KeyError, AttributeError, TypeError, OSError) as error:
            put_away(path, outbox, first_line(error))
            continue
        try:
            send_event(client, outbox.name, event, file)
        except Exception as error:
            if not set_aside(run, event, file, error):
                unreachable |= {uri} if NO_RESPONSE.search(str(error)) else set()
                raise
        path.unlink()
    shutil.rmtree(outbox)
    return True
