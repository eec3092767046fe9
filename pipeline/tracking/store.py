"""Where runs are recorded, and making sure of it before anything depends on it."""

import contextlib
import json
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from filelock import FileLock

from pipeline.errors import PipelineError, first_line
from pipeline.files import replacing

ARTIFACT_ROOT = "_MLFLOW_SERVER_ARTIFACT_ROOT"
URI_VARIABLE = "MLFLOW_TRACKING_URI"
EXPERIMENT_VARIABLE = "MLFLOW_EXPERIMENT_NAME"
UNREACHABLE = ("NewConnectionError", "NameResolutionError", "Connection refused")  # in what requests reports
TIMEOUT = 5.0  # seconds within which a server must answer at the start
# MLflow's own patience is seven retries of two minutes each, which a training would have to sit through.
PATIENCE = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}
UNADDRESSABLE = re.compile("[?]|%[0-9a-fA-F]{2}|[\ud800-\udfff]")  # SQLAlchemy splits at the first, decodes the second
RELATIVE = "sqlite:///"  # what follows is a path; an absolute one starts with a fourth stroke
EXPERIMENT_TAGS = {
    "mlflow.experimentKind": "custom_model_development",
    "mlflow.note.content": "A run for each trained model: figures, curves, pictures, a report, how to get it again."
    "\n\nRuns below another one reuse its model.",  # folded, the UI shows the first line
}
VIEW = "results"  # the columns below, by this name
VIEW_TAG = f"mlflow.sharedViewState.{VIEW}"
FIXED = {"0": 70, "attributes.`Run Name`": 250, "runDateAndNestInfo": 150, "duration": 75}  # the UI's own; pixels
COLUMNS = {
    "metrics.`test/accuracy`": 125,
    "metrics.`test/errors`": 95,
    "metrics.`test/loss`": 95,
    "metrics.`work/fit_seconds`": 135,
    "params.`optimizer.name`": 125,
    "params.`optimizer.learning_rate`": 180,
    "params.`training.epochs`": 125,
}
LOGIN = (
    "The server requires a login: set MLFLOW_TRACKING_TOKEN, or MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
)
UNSUPPORTED = "MLflow 3 no longer keeps runs in folders such as mlruns/"


class UsedElsewhereError(PipelineError):
    """Another process uses the project at a place where it was before; what is recorded here would go there."""


class Store(NamedTuple):
    """The address of an MLflow store, and where its artifacts go unless a server decides that."""

    uri: str
    artifacts: Path

    @property
    def remote(self) -> bool:
        """Whether a server stands between this process and the store."""
        return self.uri.startswith(("http://", "https://"))

    @property
    def file(self) -> Path | None:
        """The file of an SQLite database; None for any other store, also for one in memory."""
        path = self.uri.removeprefix(RELATIVE)
        return None if path in ("", ":memory:", self.uri) or "?" in path else Path(path)


def locate_store(root: Path) -> Store:
    """The store that MLFLOW_TRACKING_URI names, else mlflow.db in the project's real root; artifacts in mlartifacts/.

    Anchored to the root because DVC deletes the temporary folders in which it runs experiments.
    Raises PipelineError if the address is one of a folder, which MLflow 3 refuses, or if it cannot be written.
    """
    uri, root = os.environ.get(URI_VARIABLE) or f"{RELATIVE}mlflow.db", root.absolute()
    try:
        scheme = urlsplit(uri).scheme
    except ValueError as error:
        raise PipelineError(f"{URI_VARIABLE}={uri}: {error}") from None
    if scheme in ("", "file") and uri != "databricks":
        raise PipelineError(
            f"{URI_VARIABLE}={uri}: {UNSUPPORTED}. Unset it to record to {root.name}/mlflow.db, or name a server or a "
            "database; `mlflow migrate-filestore` brings the old runs along"
        )
    store = Store(absolute(uri, root), root / "mlartifacts")
    if store.uri != uri and UNADDRESSABLE.search(str(root)):
        raise PipelineError(
            f"the address of an SQLite database cannot name the folder {str(root)!r}: rename it, or name another store "
            f"in {URI_VARIABLE}"
        )
    return store


def absolute(uri: str, root: Path) -> str:
    """An address that does not depend on the working directory: a relative database lies in the project's folder."""
    path = uri.removeprefix(RELATIVE)
    return uri if path == uri or path.startswith("/") else f"{RELATIVE}{root / path}"


def relative(uri: str, root: Path) -> str:
    """The opposite: an address that stays right when the project is moved, if its database lies in its folder."""
    folder = f"{RELATIVE}{root}/"
    return f"{RELATIVE}{uri.removeprefix(folder)}" if uri.startswith(folder) else uri


def open_store(root: Path, required: bool = True) -> Store:
    """Make sure that the store answers, and that its tables exist, and make it MLflow's current one.

    Raises PipelineError within seconds if it cannot be reached; says so and goes on where it is not `required`, unless
    what is recorded would go to another place.
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
    for name, value in PATIENCE.items():
        os.environ.setdefault(name, value)
    os.environ[URI_VARIABLE] = store.uri
    if store.remote:
        _ask_server(store.uri)
    import mlflow
    import sqlalchemy
    from mlflow.exceptions import MlflowException

    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # tracebacks of errors that are told below
    try:
        if not store.remote:  # one attempt: MLflow makes ten, over a minute and a half
            sqlalchemy.create_engine(store.uri).connect().close()
        file = store.file
        lock = root / "mlflow.db.lock" if file is None else file.with_name(f"{file.name}.lock")
        with FileLock(lock), default_location(store):  # processes that create the tables together leave them broken
            if file is not None and not (file.exists() and file.stat().st_size):
                with replacing(file) as new:  # whole or not at all: a kill between two tables would leave it broken
                    mlflow.MlflowClient(f"{RELATIVE}{new}").search_experiments(max_results=1)
            mlflow.MlflowClient(store.uri).search_experiments(max_results=1)
            old = relocate_own(store)
    except (MlflowException, sqlalchemy.exc.SQLAlchemyError, ImportError, OSError) as error:
        remedy = LOGIN if "error code 401" in str(error) else f"Is it what {URI_VARIABLE} should name, and writable?"
        raise PipelineError(f"the MLflow store {store.uri} cannot be used: {first_line(error)}. {remedy}") from None
    if old:
        with contextlib.suppress(OSError, ValueError):  # standard output may be closed, or full
            print(f"tracking: this project was at {old}: its earlier runs now refer to {store.artifacts}", flush=True)


def relocate_own(store: Store) -> str | None:
    """Where the artifacts of a project were, if it was moved or copied, and its own database now has the new place.

    Several projects may share a database that lies elsewhere. One that cannot be written stays as it is.
    """
    from sqlalchemy.exc import SQLAlchemyError

    from pipeline.tracking.relocation import relocate

    file, home = store.file, store.artifacts.parent
    if file is None or file.resolve().parent != home.resolve():
        return None
    with contextlib.suppress(SQLAlchemyError):
        return relocate(store.uri, store.artifacts, file.with_name(f"{file.name}.use"))
    return None


@contextmanager
def default_location(store: Store) -> Iterator[None]:
    """Have MLflow put its default experiment, which nobody uses, beside its database if it makes one.

    There it tells where the database was (see relocation.py). It would lie in the working directory, whose name breaks
    MLflow's SQL if it has two kinds of quotes.
    """
    folder = store.file.with_name(store.artifacts.name) if store.file else store.artifacts
    os.environ[ARTIFACT_ROOT] = folder.as_uri()
    try:
        yield
    finally:
        del os.environ[ARTIFACT_ROOT]  # with it, MLflow takes this process for a server


def experiment_name(dataset: str) -> str:
    """What MLFLOW_EXPERIMENT_NAME says, else the dataset's name."""
    return os.environ.get(EXPERIMENT_VARIABLE) or dataset


def experiment_id(store: Store, name: str) -> str:
    """The experiment called MLFLOW_EXPERIMENT_NAME, else `name`; created, with a place for artifacts, if it is new.

    Raises PipelineError if it was deleted, or if the store does not give it or make it.
    """
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    client, name = MlflowClient(store.uri), experiment_name(name)
    try:
        found = client.get_experiment_by_name(name)
        if found is None:
            try:
                place = None if store.remote else store.artifacts.as_uri()
                return client.create_experiment(name, place, EXPERIMENT_TAGS)
            except MlflowException:
                found = client.get_experiment_by_name(name)
                if found is None:  # else another process was faster
                    raise
    except MlflowException as error:
        raise PipelineError(
            f"the MLflow store {store.uri} neither gives nor makes the experiment {name!r}: {first_line(error)}"
        ) from None
    if found.lifecycle_stage != "active":
        raise PipelineError(
            f"the MLflow experiment {name!r} was deleted. Bring it back (mlflow experiments restore --experiment-id "
            f"{found.experiment_id}) or set {EXPERIMENT_VARIABLE} to another name"
        )
    return str(found.experiment_id)


def run_list(store: Store, name: str) -> str:
    """The path of an experiment's list of runs, with the figures and choices that tell them apart as columns.

    The UI takes them from a tag of the experiment, as for a view that somebody shares; by itself it shows no figures.
    """
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    experiment, widths = experiment_id(store, name), FIXED | COLUMNS
    view = {"selectedColumns": [*COLUMNS], "columnOrder": [*widths], "columnWidths": widths}
    # Who may only read sees the columns that somebody else put there, or MLflow's own.
    with contextlib.suppress(MlflowException):
        MlflowClient(store.uri).set_experiment_tag(experiment, VIEW_TAG, json.dumps(view))
    return f"experiments/{experiment}/runs?viewStateShareKey={VIEW}"


def page(store: Store, path: str, port: int = 5000) -> str:
    """The address of a page in the MLflow UI, without a password; for a local store the one that `make ui` serves.

    It asks for the UI's side for training models: the other one, for language models, hides the runs.
    """
    server = urlsplit(store.uri)
    base = server._replace(netloc=server.netloc.rpartition("@")[2]).geturl().rstrip("/")
    address = f"{base if store.remote else f'http://127.0.0.1:{port}'}/#/{path}"
    return f"{address}{'&' if '?' in path else '?'}workflowType=machine_learning"


def _ask_server(uri: str) -> None:
    """Ask for MLflow's /health as its client would, with its certificates, and without waiting for long.

    Any answer will do, because proxies and hosted servers may not have that address; only what is known to be of no
    use is an error. Raises PipelineError.
    """
    from mlflow.tracking._tracking_service.utils import get_default_host_creds
    from mlflow.utils.rest_utils import http_request

    remedy = f"Start it, or unset {URI_VARIABLE} to record to mlflow.db"
    try:
        credentials = get_default_host_creds(uri.rstrip("/"))
        answer = http_request(credentials, "/health", "GET", max_retries=0, timeout=TIMEOUT, raise_on_status=False)
    except Exception as error:  # whatever MLflow makes of its own settings: a package that is missing, a number
        raise PipelineError(f"{URI_VARIABLE}={uri}: {describe_failure(error)}. {remedy}") from None
    if answer.status_code == HTTPStatus.FORBIDDEN and "invalid host" in answer.text.lower():
        raise PipelineError(
            f"{URI_VARIABLE}={uri}: the server answers 403 to this host name; start it with "
            f"--allowed-hosts {urlsplit(uri).netloc}"
        )
    if answer.status_code >= HTTPStatus.INTERNAL_SERVER_ERROR:
        raise PipelineError(f"{URI_VARIABLE}={uri}: the server answers {answer.status_code}. {remedy}")


def describe_failure(error: Exception) -> str:
    """Why a server could not be asked."""
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
