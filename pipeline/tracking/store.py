"""Locate the MLflow store that records runs, and check it before anything depends on it."""

import contextlib
import json
import logging
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from filelock import FileLock

from pipeline.core.errors import PipelineError, UsedElsewhereError, first_line
from pipeline.core.files import replacing

ARTIFACT_ROOT = "_MLFLOW_SERVER_ARTIFACT_ROOT"
URI_VARIABLE = "MLFLOW_TRACKING_URI"
EXPERIMENT_VARIABLE = "MLFLOW_EXPERIMENT_NAME"
UNREACHABLE = ("NewConnectionError", "NameResolutionError", "Connection refused")  # in the error messages of requests
TIMEOUT = 5.0  # seconds within which a server must answer at the start
# By default MLflow retries seven times for two minutes each, and a training would have to wait for that.
PATIENCE = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # it would print the password of an address
}
UNADDRESSABLE = re.compile("[?]|%[0-9a-fA-F]{2}|[\ud800-\udfff]")  # SQLAlchemy splits at the first, decodes the second
RELATIVE = "sqlite:///"  # followed by a path; an absolute path starts with a fourth slash
SAME_DRIVER = "sqlite+pysqlite:"  # SQLAlchemy's other name of it
NO_FILE = ("", ":memory:", "file:")  # beginnings of an SQLite path that names no file, or a file in another syntax
EXPERIMENT_TAGS = {
    "mlflow.experimentKind": "custom_model_development",
    "mlflow.note.content": "One run per trained model: metrics, curves, plots, a report, and commands to reproduce it."
    "\n\nChild runs reuse the model of their parent run.",  # the collapsed description shows only the first line
}
ARTIFACTS = "mlartifacts"
VIEW = "results"  # the name of the view with the columns below
VIEW_TAG = f"mlflow.sharedViewState.{VIEW}"
FIXED = {"0": 70, "attributes.`Run Name`": 265, "runDateAndNestInfo": 150, "duration": 75}  # MLflow's columns; pixels
# Together they fit a window of 1400 pixels, beside MLflow's sidebar and a scroll bar. A run's name has its recipe,
# network and seed. `started` tells runs of the same name apart: MLflow itself shows "1 day ago" for all of a day.
COLUMNS = {
    "tags.`started`": 156,
    "metrics.`test/accuracy`": 108,
    "metrics.`test/errors`": 90,
    "metrics.`test/loss`": 83,
    "params.`training.epochs`": 124,
}
LOGIN = (
    "The server requires a login: set MLFLOW_TRACKING_TOKEN, or MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
)
UNSUPPORTED = "MLflow 3 no longer keeps runs in folders such as mlruns/"


class Store(NamedTuple):
    """The address of an MLflow store, and the location of its artifacts unless a server decides that."""

    uri: str
    artifacts: Path

    @property
    def remote(self) -> bool:
        """Whether this process reaches the store through a server."""
        return self.uri.startswith(("http://", "https://"))

    @property
    def file(self) -> Path | None:
        """The file of an SQLite database; None for any other store."""
        path = self.uri.removeprefix(RELATIVE).partition("?")[0]
        return Path(path) if self.uri.startswith(RELATIVE) else None


def locate_store(root: Path) -> Store:
    """The store that MLFLOW_TRACKING_URI names, else mlflow.db in the project's real root; artifacts in mlartifacts/.

    Anchored to the root because DVC deletes the temporary folders in which it runs experiments. If several projects
    share a database elsewhere, artifacts are beside it: a project may be removed.
    Raises PipelineError if the address names a folder, which MLflow 3 refuses, or no file, or cannot express the root's
    path.
    """
    uri, root = os.environ.get(URI_VARIABLE) or f"{RELATIVE}mlflow.db", root.absolute()
    uri = f"sqlite:{uri.removeprefix(SAME_DRIVER)}" if uri.startswith(SAME_DRIVER) else uri
    try:
        scheme = urlsplit(uri).scheme
    except ValueError as error:
        raise PipelineError(f"{URI_VARIABLE}={uri}: {error}") from None
    if scheme in ("", "file") and uri != "databricks":
        raise PipelineError(
            f"{URI_VARIABLE}={uri}: {UNSUPPORTED}. Unset it to record to {root.name}/mlflow.db, or set it to a server "
            "or a database; `mlflow migrate-filestore` converts the old runs"
        )
    path = uri.removeprefix(RELATIVE).partition("?")[0]
    if scheme == "sqlite" and (not uri.startswith(RELATIVE) or path in NO_FILE or path.startswith(NO_FILE[1:])):
        raise PipelineError(
            f"{URI_VARIABLE}={uri}: name a file, as in {RELATIVE}mlflow.db. A database in memory is lost when a stage "
            "ends"
        )
    store = Store(absolute(uri, root), root / ARTIFACTS)
    if store.file and not store.file.resolve().is_relative_to(root.resolve()):
        store = store._replace(artifacts=store.file.resolve().with_name(ARTIFACTS))
    if store.uri != uri and UNADDRESSABLE.search(str(root)):
        raise PipelineError(
            f"the URL of an SQLite database cannot contain the folder {str(root)!r}: rename it, or set {URI_VARIABLE} "
            "to another store"
        )
    return store


def absolute(uri: str, root: Path) -> str:
    """An address independent of the working directory: a relative database path starts at the project's root."""
    path = uri.removeprefix(RELATIVE)
    return uri if path == uri or path.startswith("/") else f"{RELATIVE}{root / path}"


def relative(uri: str, root: Path) -> str:
    """The inverse of `absolute`: an address that survives a move of the project, if the database is in its folder."""
    folder = f"{RELATIVE}{root}/"
    return f"{RELATIVE}{uri.removeprefix(folder)}" if uri.startswith(folder) else uri


def open_store(root: Path, required: bool = True) -> Store:
    """Check that the store answers, create its tables if necessary, and make it MLflow's current store.

    Raises PipelineError within seconds if it cannot be reached. If it is not `required`, prints the error and returns,
    unless new records would go to another location.
    """
    store = locate_store(root)
    try:
        _prepare(store, root)
    except PipelineError as error:
        if required or isinstance(error, UsedElsewhereError):
            raise
        print(f"tracking: {error}")
    return store


def _prepare(store: Store, root: Path) -> None:
    be_patient()
    os.environ[URI_VARIABLE] = store.uri
    if store.remote:
        ask_server(store.uri)
    import mlflow
    import sqlalchemy
    from mlflow.exceptions import MlflowException

    silence_mlflow()
    try:
        # This makes one attempt to connect. MLflow makes ten, over a minute and a half.
        if not store.remote and is_foreign(tables_of(store.uri)):
            raise PipelineError(f"the database {store.uri} belongs to another program: set {URI_VARIABLE} to a new one")
        file = store.file
        lock = root / "mlflow.db.lock" if file is None else file.with_name(f"{file.name}.lock")
        with FileLock(lock), default_location(store):  # creating the tables concurrently would break them
            if file is not None and not (file.exists() and file.stat().st_size):
                with replacing(file.resolve()) as new:  # atomic: a kill between two tables would leave it broken
                    mlflow.MlflowClient(f"{RELATIVE}{new}").search_experiments(max_results=1)
            mlflow.MlflowClient(store.uri).search_experiments(max_results=1)
            old = relocate_own(store, root)
    except (MlflowException, sqlalchemy.exc.SQLAlchemyError, ImportError, OSError) as error:
        remedy = LOGIN if "error code 401" in str(error) else f"Check {URI_VARIABLE}, and that the store is writable"
        raise PipelineError(f"the MLflow store {store.uri} cannot be used: {first_line(error)}. {remedy}") from None
    if old:
        with contextlib.suppress(OSError, ValueError):  # standard output may be closed, or on a full disk
            print(f"tracking: this project was at {old}: its earlier runs now refer to {store.artifacts}", flush=True)


def tables_of(uri: str) -> list[str]:
    """The names of the tables in a database. Raises SQLAlchemyError or ImportError if it cannot be opened."""
    import sqlalchemy

    return sqlalchemy.inspect(sqlalchemy.create_engine(uri)).get_table_names()


def is_foreign(tables: list[str]) -> bool:
    """Whether a database with these tables belongs to another program. MLflow would add its own tables to it."""
    return bool(tables) and "experiments" not in tables


def be_patient() -> None:
    """Limit how long MLflow waits for a server, and let it report failures. Call this before importing MLflow."""
    os.environ.pop("MLFLOW_ENABLE_ASYNC_LOGGING", None)  # MLflow would lose records that a server does not accept
    for name, value in PATIENCE.items():
        os.environ.setdefault(name, value)


def silence_mlflow() -> None:
    """Hide MLflow's progress, and the tracebacks of errors that callers report."""
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    logging.getLogger("mlflow.system_metrics").setLevel(logging.CRITICAL)  # its warnings contain the address


def relocate_own(store: Store, root: Path) -> str | None:
    """Update the artifact locations of a moved or copied project, and return the earlier one; None if unchanged.

    Only the project's own database is updated: several projects may share a database elsewhere. A read-only database
    stays unchanged.
    """
    from sqlalchemy.exc import SQLAlchemyError

    from pipeline.tracking.relocation import relocate

    file = store.file
    if file is None or file.resolve().parent != root.resolve():
        return None
    with contextlib.suppress(SQLAlchemyError):
        return relocate(store.uri, store.artifacts, file.with_name(f"{file.name}.use"))
    return None


@contextmanager
def default_location(store: Store) -> Iterator[None]:
    """Make MLflow place its unused default experiment beside its database if it creates one.

    The location records where the database was (see relocation.py). By default it is the working directory, whose name
    breaks MLflow's SQL if it contains both kinds of quotes.
    """
    folder = store.file.with_name(store.artifacts.name) if store.file else store.artifacts
    os.environ[ARTIFACT_ROOT] = folder.as_uri()
    try:
        yield
    finally:
        del os.environ[ARTIFACT_ROOT]  # while it is set, MLflow treats this process as a server


def experiment_name(dataset: str) -> str:
    """The value of MLFLOW_EXPERIMENT_NAME, else the dataset's name."""
    return os.environ.get(EXPERIMENT_VARIABLE) or dataset


def experiment_id(store: Store, name: str, tags: Mapping[str, str] = EXPERIMENT_TAGS) -> str:
    """The ID of the experiment MLFLOW_EXPERIMENT_NAME, else `name`; created with an artifact location if it is new.

    Raises PipelineError if it was deleted, or if the store neither returns nor creates it.
    """
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    client, name = MlflowClient(store.uri), experiment_name(name)
    try:
        found = client.get_experiment_by_name(name)
        if found is None:
            try:
                place = None if store.remote else store.artifacts.as_uri()
                return client.create_experiment(name, place, dict(tags))
            except MlflowException:
                found = client.get_experiment_by_name(name)
                if found is None:  # otherwise another process created it
                    raise
    except MlflowException as error:
        raise does_not_record(store, name, error) from None
    if found.lifecycle_stage != "active":
        raise PipelineError(
            f"the MLflow experiment {name!r} was deleted. Restore it (mlflow experiments restore --experiment-id "
            f"{found.experiment_id}) or set {EXPERIMENT_VARIABLE} to another name"
        )
    return str(found.experiment_id)


def does_not_record(store: Store, name: str, error: Exception) -> PipelineError:
    """The error for a store that refuses to open or create an experiment, or a run in it."""
    if "error code 403" in str(error):
        return PipelineError(
            f"the MLflow server {store.uri} does not let this user write to the experiment {name!r}: ask its "
            f"administrator for the permission EDIT, or unset {URI_VARIABLE} to record to mlflow.db"
        )
    return PipelineError(f"the MLflow store {store.uri} cannot record to the experiment {name!r}: {first_line(error)}")


def run_list(store: Store, name: str, columns: Mapping[str, int] = COLUMNS) -> str:
    """The path of an experiment's list of runs, whose columns are the metrics and params that distinguish runs.

    The UI reads the columns and their widths in pixels from a tag of the experiment, as for a shared view. By default
    it shows no metrics.
    """
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    experiment, widths = experiment_id(store, name), {**FIXED, **columns}
    view = {"selectedColumns": [*columns], "columnOrder": [*widths], "columnWidths": widths}
    # Users with read-only access see the columns that another user set, or MLflow's own.
    with contextlib.suppress(MlflowException):
        MlflowClient(store.uri).set_experiment_tag(experiment, VIEW_TAG, json.dumps(view))
    return f"experiments/{experiment}/runs?viewStateShareKey={VIEW}"


def page(store: Store, path: str, port: int = 5000) -> str:
    """The address of a page in the MLflow UI, without a password; for a local store, in the UI that `make ui` serves.

    It selects the UI's view for model training: the one for language models hides the runs.
    """
    server = urlsplit(store.uri)
    base = server._replace(netloc=server.netloc.rpartition("@")[2]).geturl().rstrip("/")
    address = f"{base if store.remote else f'http://127.0.0.1:{port}'}/#/{path}"
    return f"{address}{'&' if '?' in path else '?'}workflowType=machine_learning"


def ask_server(uri: str) -> None:
    """Request MLflow's /health as its client would, with its certificates, but with a short timeout.

    Raises PipelineError if there is no answer, or for an answer that is known to be useless. Any other answer passes,
    because proxies and hosted servers may not have that path.
    """
    from mlflow.tracking._tracking_service.utils import get_default_host_creds
    from mlflow.utils.rest_utils import http_request

    remedy = f"Start it, or unset {URI_VARIABLE} to record to mlflow.db"
    try:
        credentials = get_default_host_creds(uri.rstrip("/"))
        answer = http_request(credentials, "/health", "GET", max_retries=0, timeout=TIMEOUT, raise_on_status=False)
    except Exception as error:  # MLflow may raise anything for its own settings: a missing package, a bad number
        raise PipelineError(f"{URI_VARIABLE}={uri}: {describe_failure(error)}. {remedy}") from None
    if answer.status_code == HTTPStatus.FORBIDDEN and "invalid host" in answer.text.lower():
        raise PipelineError(
            f"{URI_VARIABLE}={uri}: the server answers 403 to this host name; start it with "
            f"--allowed-hosts {urlsplit(uri).netloc}"
        )
    if answer.status_code >= HTTPStatus.INTERNAL_SERVER_ERROR:
        raise PipelineError(f"{URI_VARIABLE}={uri}: the server answers {answer.status_code}. {remedy}")


def describe_failure(error: Exception) -> str:
    """The reason why a request to the server failed."""
    text = str(error)
    if "CERTIFICATE_VERIFY_FAILED" in text:
        return (
            "the certificate of the tracking server is not trusted: set MLFLOW_TRACKING_SERVER_CERT_PATH to the file "
            "of its certificate authority"
        )
    if "timed out" in text.lower():
        return "the tracking server timed out"
    if any(sign in text for sign in UNREACHABLE):
        return "the tracking server cannot be reached"
    return f"the tracking server cannot be used: {first_line(error)}"
