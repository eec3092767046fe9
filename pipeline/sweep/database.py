"""The database of a sweep: in its folder, or one that several machines share. Its errors are PipelineErrors."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.storages._rdb.models import TrialHeartbeatModel
from optuna.storages._rdb.storage import _create_scoped_session
from optuna.study import Study
from optuna.trial import FrozenTrial
from sqlalchemy import make_url
from sqlalchemy.exc import SQLAlchemyError

from pipeline.core.errors import PipelineError, first_line

VARIABLE = "SWEEP_STORAGE"  # the address of another database than the project's own
HEARTBEAT, GRACE = 10, 30  # seconds between signs of life of a trial, and without one after which it is started again
EXAMPLE = "postgresql+psycopg2://user:password@host/name"
LOCKED = 60  # seconds to wait for another process that writes to an SQLite database
DATABASE_ERRORS = (SQLAlchemyError, StorageInternalError)


class Storage(RDBStorage):
    """Optuna's database, whose next sign of life makes up for one that it did not accept."""

    def record_heartbeat(self, trial_id: int) -> None:
        """Record a sign of life, unless the database does not answer: Optuna would never record another one."""
        with contextlib.suppress(*DATABASE_ERRORS):
            super().record_heartbeat(trial_id)

    def record_first_heartbeat(self, trial_id: int) -> None:
        """Record a sign of life of a trial that has given none: Optuna never takes such a trial for dead."""
        with contextlib.suppress(*DATABASE_ERRORS), _create_scoped_session(self.scoped_session, True) as session:
            if TrialHeartbeatModel.where_trial_id(trial_id, session) is None:
                session.add(TrialHeartbeatModel(trial_id=trial_id))


@contextlib.contextmanager
def database_errors() -> Iterator[None]:
    """Turn errors of the database in this block, and those that follow from them, into a PipelineError."""
    try:
        yield
    except PipelineError:  # it may have been raised because of another database
        raise
    except Exception as error:
        found = [each for each in chain(error) if isinstance(each, DATABASE_ERRORS)]
        if not found:
            raise
        raise PipelineError(
            f"the sweep's database {shown_address()} fails ({said_by(found[-1])}): the same command continues the sweep"
        ) from None


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error, and those during whose treatment it was raised."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def reason_of(error: BaseException) -> str:
    """The first line of an error, or of the database's error that Optuna's hides."""
    found = [each for each in chain(error) if isinstance(each, DATABASE_ERRORS)]
    return said_by(found[-1]) if isinstance(error, DATABASE_ERRORS) else first_line(error)


def said_by(error: BaseException) -> str:
    """The first line of what the database's driver says, without SQLAlchemy's remarks."""
    return first_line(getattr(error, "orig", None) or error)


def shared_address() -> str | None:
    """The address of another database than the project's own; None without one."""
    return os.environ.get(VARIABLE) or None


def shown_address() -> str:
    """The address of another database than the project's own, without its password."""
    address = shared_address()
    if address is None:
        return "in .sweeps"
    try:
        return make_url(address).render_as_string(hide_password=True)
    except (SQLAlchemyError, ValueError):
        return VARIABLE


@contextlib.contextmanager
def usable_database() -> Iterator[None]:
    """Turn the errors of a database that cannot be opened into a PipelineError."""
    try:
        yield
    except (*DATABASE_ERRORS, ImportError, ValueError, KeyError, RuntimeError) as error:
        raise PipelineError(f"the sweep's database {shown_address()} cannot be used: {reason_of(error)}") from None


def open_storage(folder: Path) -> Storage:
    """Open the database that SWEEP_STORAGE names, or that of a folder. Raises ValueError if it is in memory."""
    own = f"sqlite:///{quote(f'{folder.absolute()}/study.db')}"
    try:
        url = make_url(shared_address() or own)
    except (SQLAlchemyError, ValueError):  # its message may contain a part of the password
        raise ValueError(f"it is not an address such as {EXAMPLE}, with %40 for an @ in the password") from None
    local = url.get_backend_name() == "sqlite"
    if local and (url.database in (None, "", ":memory:") or str(url.database).startswith("file:")):
        raise ValueError("a database in memory ends with the command: name a file as sqlite:////folder/file.db")
    return Storage(
        url.render_as_string(hide_password=False).replace("{", "{{").replace("}", "}}"),  # Optuna fills in its version
        engine_kwargs={"connect_args": {"timeout": LOCKED}} if local else None,
        heartbeat_interval=HEARTBEAT,
        grace_period=GRACE,
        heartbeat_stale_trial_callback=retry,
    )


def retry(study: Study, trial: FrozenTrial) -> None:
    """Queue a failed trial again, with the same settings."""
    RetryHeartbeatStaleTrialCallback(inherit_intermediate_values=False)(study, trial)
