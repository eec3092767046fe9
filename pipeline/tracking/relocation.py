"""Update artifact locations after a project was moved or copied: MLflow's database stores absolute locations.

MLflow's unused default experiment records the project's location when its database was last opened: its artifact
location is in the same folder as those of all other experiments. Locations outside that folder are a user's choice.
"""

import fcntl
import os
from pathlib import Path

import sqlalchemy

from pipeline.core.errors import UsedElsewhereError

DEFAULT = "0"  # the ID of the default experiment, and the last part of its location
LOCATIONS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "storage_location"),
    ("model_versions", "source"),
)
_held: list[int] = []  # the descriptor of the lock that this process holds


def relocate(database: str, artifacts: Path, lock: Path) -> str | None:
    """Replace the earlier location of a project's artifacts in its own SQLite database with `artifacts`.

    Returns the earlier location; None if it is the same. Raises UsedElsewhereError if another process, which sees the
    project at the earlier location, is using it (`lock`), and SQLAlchemyError if the database is not writable.
    """
    new, engine = artifacts.as_uri(), sqlalchemy.create_engine(database)
    try:
        with engine.connect() as connection:
            old = earlier_place(connection, artifacts)
        if old in (None, new):
            return None
        if is_used(lock):
            raise UsedElsewhereError(
                f"{artifacts.parent} was last opened as {old}, and a process is using it there: wait until it ends"
            )
        # If only the database was copied, existing artifacts stay at the earlier location.
        kept = LOCATIONS if artifacts.exists() else LOCATIONS[:1]
        with engine.begin() as connection:
            for table, column in kept:
                replace_prefix(connection, table, column, str(old), new)
    finally:
        engine.dispose()
        hold(lock)
    return old


def earlier_place(connection: sqlalchemy.Connection, artifacts: Path) -> str | None:
    """The location of the project's artifacts according to the database; None if the database has none."""
    find = "SELECT artifact_location FROM experiments WHERE experiment_id = 0"
    location = connection.execute(sqlalchemy.text(find)).scalar()
    folder, _, last = (location or "").rpartition("/")
    if location and location.startswith("file://") and (folder.rpartition("/")[2], last) == (artifacts.name, DEFAULT):
        return str(folder)
    # In a database of an earlier version, the files of a run that were moved along reveal the earlier location.
    elsewhere = "artifact_uri LIKE 'file://%' AND substr(artifact_uri, 1, :length) <> :own"
    own = f"{artifacts.as_uri()}/"
    runs = sqlalchemy.text(f"SELECT artifact_uri FROM runs WHERE {elsewhere}")  # noqa: S608
    for uri in connection.execute(runs, {"own": own, "length": len(own)}).scalars():
        place, _, below = str(uri).rpartition(f"/{artifacts.name}/")
        if place and (artifacts / below).is_dir():
            return f"{place}/{artifacts.name}"
    return None


def replace_prefix(connection: sqlalchemy.Connection, table: str, column: str, old: str, new: str) -> None:
    """Replace a folder at the beginning of the locations in a column."""
    below = f"substr({column}, 1, :length) = :old AND substr({column}, :length + 1, 1) IN ('', '/')"
    update = f"UPDATE {table} SET {column} = :new || substr({column}, :length + 1) WHERE {below}"  # noqa: S608
    connection.execute(sqlalchemy.text(update), {"old": old, "new": new, "length": len(old)})


def hold(lock: Path) -> None:
    """Mark a project as used by this process until it ends.

    The lock belongs to the file, regardless of the path by which a process sees it, as inside and outside a container.
    """
    release()
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    _held.append(descriptor)


def release() -> None:
    """Remove the mark that `hold` set."""
    while _held:
        os.close(_held.pop())


def is_used(lock: Path) -> bool:
    """Whether another process uses the project."""
    release()
    with lock.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
