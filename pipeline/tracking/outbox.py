"""The outbox, .unsent/RUN_ID/: events that the store did not accept, until a later command sends them."""

import contextlib
import json
import re
import shutil
from collections.abc import Iterator
from concurrent.futures import BrokenExecutor, Future
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock

from pipeline.core.errors import first_line, without_secrets
from pipeline.core.files import remove_unfinished, sha256, text_digest, write_json, write_text
from pipeline.tracking.events import Event, client_of, is_refused, reason, remove_partial_uploads, send_event
from pipeline.tracking.store import RELATIVE, Store, absolute, relative

OUTBOX, LOCK = ".unsent", ".lock"
KEPT = f"The missing records are kept in {OUTBOX}/; the next training or `make send` sends them"
PRIVATE = 0o600  # only its owner has access
CHECKSUM = "checksum"  # the key in a kept event that no kind of event uses itself
ANOTHER = "~"  # follows the run's ID in the name of an outbox of a second store
NAME = re.compile(rf"[a-zA-Z0-9][\w-]{{0,255}}{ANOTHER}*")  # of an outbox: an ID that MLflow allows
REFUSED = "refused"  # the folder in the outbox for events that the store rejected
ASIDE = f"The event is set aside in {OUTBOX}/{REFUSED}/; everything else is recorded"
NO_RESPONSE = re.compile("(?i)max retries exceeded|timed out")  # in MLflow's messages
NUMBERED = re.compile(r"(?:event|file)-(\d+)")  # the entries of an outbox


class RunAddress(NamedTuple):
    """A run in a store, and the root folder of the project that records it."""

    uri: str
    run_id: str
    experiment_id: str | None  # None if the store did not answer
    root: Path

    @property
    def outbox(self) -> Path:
        """The folder of events that the store has not accepted yet. Each store of a run has its own."""
        folder, address = self.root / OUTBOX / self.run_id, relative(self.uri, self.root)
        while (folder / "uri").exists() and (folder / "uri").read_text(encoding="utf-8", errors="replace") != address:
            folder = folder.with_name(f"{folder.name}{ANOTHER}")
        return folder


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
    try:
        event = json.loads(path.read_text(encoding="utf-8"))
        if event.pop(CHECKSUM, None) not in (None, text_digest(json.dumps(event))):  # earlier versions wrote none
            raise ValueError("its content does not match its checksum")
        file = path.parent / event.pop("file") if "file" in event else None
        if file is not None and event.pop("sha256", None) not in (None, sha256(file)):
            raise ValueError(f"{file} does not match its checksum")
    except (AttributeError, TypeError, OSError, RecursionError) as error:
        raise ValueError(first_line(error)) from None
    return event, file


def put_away(path: Path, outbox: Path, what: str) -> None:
    """Move a kept event that is damaged to the refused events, so that later events are not blocked."""
    aside = outbox.parent / REFUSED / outbox.name.rstrip(ANOTHER)
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


def send_unsent(root: Path) -> tuple[int, list[str]]:
    """Send the events that earlier commands could not. Returns the number of completed runs, and a line per failure.

    An event that was sent just before a failure may be sent twice; MLflow stores only one of two equal metrics.
    """
    sent, problems = 0, []
    unreachable: set[str] = set()
    for outbox in outboxes(root):
        with outbox_lock(outbox):
            try:
                sent += _send_outbox(outbox, unreachable)
            except Exception as error:  # as above: report it and continue
                problems.append(f"run {outbox.name} is still incomplete: {reason(error)}")
    return sent, problems


def _send_outbox(outbox: Path, unreachable: set[str]) -> bool:
    """Send the events of one run. Returns whether the store accepted any.

    Raises any exception. Adds a store that does not respond to `unreachable`, and then raises ConnectionError without a
    request, which could take half a minute.
    """
    if not outbox.exists():  # another process has already sent it
        return False
    if not (outbox / "uri").exists() and not [*outbox.glob("event-*.json")]:  # killed before the first event
        remove_unfinished(outbox)
        with contextlib.suppress(OSError):  # it has other files: it is no outbox
            outbox.rmdir()
        return False
    root = outbox.parent.parent
    uri = current_address((outbox / "uri").read_text(encoding="utf-8"), root)
    if uri in unreachable:
        raise ConnectionError("the store did not respond")
    client, run = client_of(uri), RunAddress(uri, outbox.name.rstrip(ANOTHER), None, root)
    recorded = False
    with contextlib.suppress(Exception):  # the events tell whether the store responds, and has the run
        remove_partial_uploads(client, client.get_run(run.run_id).info)
    for path in sorted(outbox.glob("event-*.json")):
        try:
            event, file = read_event(path)
        except ValueError as error:
            put_away(path, outbox, first_line(error))
            continue
        try:
            send_event(client, run.run_id, event, file)
            recorded = True
        except Exception as error:
            if not set_aside(run, event, file, error):
                unreachable |= {uri} if NO_RESPONSE.search(str(error)) else set()
                raise
        path.unlink()
    shutil.rmtree(outbox)
    return recorded


def outboxes(root: Path) -> list[Path]:
    """The outboxes of all runs, among them those of which a killed process left a lock alone."""
    found = {path.with_suffix("") for path in (root / OUTBOX).glob("*") if path.is_dir() or path.suffix == LOCK}
    return sorted(path for path in found if NAME.fullmatch(path.name) and path.name != REFUSED)


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


@contextlib.contextmanager
def outbox_lock(outbox: Path) -> Iterator[None]:
    """Hold the lock that every reader and writer of an outbox must hold."""
    outbox.parent.mkdir(exist_ok=True)
    file = outbox.with_suffix(LOCK)
    with FileLock(file):
        try:
            yield
        finally:  # while the lock is held: FileLock notices that the file which it waited for is gone
            file.unlink(missing_ok=True)


def say(text: str) -> None:
    """Print a message for the user, and ignore errors of standard output, which may be closed or on a full disk."""
    with contextlib.suppress(OSError, ValueError):
        print(without_secrets(f"tracking: {text}"), flush=True)


def tell_failure(future: Future[Any]) -> None:
    """Print the error of a background task that nothing waits for."""
    error = future.exception()
    if error is not None and not isinstance(error, BrokenExecutor):
        say(f"some records could not be written ({first_line(error)})")
