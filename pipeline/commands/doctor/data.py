"""Checks of the dataset and of the MLflow store."""

import contextlib
import os
import shlex
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import requests

from pipeline.commands.doctor.finding import Finding
from pipeline.core import paths
from pipeline.core.config import Config, IdxDataset
from pipeline.core.errors import PipelineError, first_line
from pipeline.core.files import md5, sha256
from pipeline.core.sources import is_address, places
from pipeline.core.validation import load_config
from pipeline.tracking.store import (
    URI_VARIABLE,
    Store,
    ask_server,
    be_patient,
    is_foreign,
    locate_store,
    silence_mlflow,
    tables_of,
)
from pipeline.tracking.tags import ACCURACY, CHAMPION

TIMEOUT = 3.0  # seconds


def check_configuration() -> Iterator[Finding]:
    """Whether composed.yaml is valid."""
    try:
        config = load_config()
    except PipelineError as error:
        yield Finding("configuration", "problem", str(error).replace("\n", "; "), "dvc repro compose")
        return
    yield Finding("configuration", "ok", f"recipe {config.recipe}, {config.dataset.name}, seed {config.seed}")


def check_dataset() -> Iterator[Finding]:
    """Whether the dataset's files are here and intact, or can be fetched."""
    config = read_config()
    if config is None:
        return
    dataset = config.dataset
    if not isinstance(dataset, IdxDataset):
        yield Finding("data", "ok", f"{dataset.name} is part of scikit-learn")
        return
    files = ((path, getattr(dataset.files, role).sha256) for role, path in paths.RAW_FILES.items())
    if all(path.is_file() and sha256(path) == digest for path, digest in files):
        yield Finding("data", "ok", f"{dataset.name} is in {paths.RAW}")
        return
    for source in places(dataset, paths.project_root(), os.environ.get("DATASET_MIRROR")):
        if answers(source, dataset.files.train_labels.name):
            yield Finding("data", "ok", f"{dataset.name} will be fetched from {source}")
            return
    remedy = "DATASET_MIRROR=/folder/with/the/four/files dvc repro, or dvc exp run -S dataset=digits"
    yield Finding("data", "problem", f"{dataset.name} is not in {paths.RAW}, and no source answers", remedy)


def answers(source: str, name: str) -> bool:
    """Whether a folder or a URL has a file of the dataset."""
    if not is_address(source):
        return (Path(source) / name).is_file()
    with contextlib.suppress(requests.RequestException, ValueError):
        return requests.head(f"{source.rstrip('/')}/{name}", timeout=TIMEOUT, allow_redirects=True).ok
    return False


def read_config() -> Config | None:
    """The configuration; None if it is invalid, which check_configuration reports."""
    with contextlib.suppress(PipelineError):
        return load_config()
    return None


def check_cache() -> Iterator[Finding]:
    """Whether the files in DVC's cache have the content that their names promise: DVC itself does not read them."""
    answer = subprocess.run([sys.executable, "-m", "dvc", "cache", "dir"], capture_output=True, text=True, check=False)
    if answer.returncode:
        return  # the check of DVC reports it
    cache = Path(answer.stdout.strip())
    files = [*(cache / "files" / "md5").glob("[0-9a-f][0-9a-f]/*")]
    for path in files:
        if path.is_file() and md5(path) != (path.parent.name + path.name).removesuffix(".dir"):
            remedy = f"rm -f {shlex.quote(str(path))}, then dvc pull or dvc repro --force"
            yield Finding("cache", "problem", f"{path} is damaged", remedy)
    for folder in (cache / "runs").glob("*/*"):
        if folder.is_dir() and not any(folder.iterdir()):
            fact = (
                f"{folder} is empty, as DVC leaves it if it is killed: `dvc repro` fails (join() argument must be str)"
            )
            yield Finding("cache", "problem", fact, f"rmdir {shlex.quote(str(folder))}")
    yield Finding("cache", "ok", f"{len(files)} files in DVC's cache")


def check_store() -> Iterator[Finding]:
    """Whether runs can be recorded, and the registry's champion. Changes nothing in the store."""
    try:
        store = locate_store(paths.project_root())
        if store.remote:
            ask_server(store.uri)
    except PipelineError as error:
        yield Finding("MLflow", "problem", str(error), f"unset {URI_VARIABLE} to record to mlflow.db")
        return
    if store.file is not None and not (store.file.exists() and store.file.stat().st_size):
        yield Finding("MLflow", "ok", f"the first run creates {store.file.name}")
        return
    if store.file is not None and (obstacle := why_not_writable(store.file)):
        yield Finding("MLflow", "problem", f"{store.file}: {obstacle}", "end the process that uses it, or free it")
        return
    yield from check_runs(store)


def why_not_writable(file: Path) -> str:
    """Why an SQLite database cannot be written; empty if it can."""
    try:
        with contextlib.closing(sqlite3.connect(f"{file.as_uri()}?mode=rw", uri=True, timeout=1)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("ROLLBACK")
    except sqlite3.Error as error:
        return str(error)
    return "" if os.access(file, os.W_OK) else "attempt to write a readonly database"


def check_tables(uri: str) -> Finding | None:
    """Why a database has not all tables of this version of MLflow, without changing it; None if it has them."""
    import sqlalchemy
    from mlflow.store.db import utils

    engine, tables = sqlalchemy.create_engine(uri), tables_of(uri)
    if not tables:
        return Finding("MLflow", "ok", f"{uri}: empty; the first run creates MLflow's tables")
    if is_foreign(tables) or "alembic_version" not in tables:
        fact = f"{uri}: a database of another program, in which no run is recorded"
        return Finding("MLflow", "problem", fact, f"set {URI_VARIABLE} to a database of its own, or unset it")
    with engine.connect() as connection:
        version = connection.scalar(sqlalchemy.text("SELECT version_num FROM alembic_version"))
    newest = utils._get_latest_schema_revision()
    if version != newest:
        fact = f"{uri}: MLflow's tables have the schema {version}, but this version of MLflow uses {newest}"
        return Finding("MLflow", "problem", fact, f"mlflow db upgrade {uri}, or install the MLflow that created it")
    if not utils._all_tables_exist(engine):
        fact = f"{uri}: some of MLflow's tables are missing"
        return Finding("MLflow", "problem", fact, f"restore a backup, or set {URI_VARIABLE} to another store")
    return None


def check_runs(store: Store) -> Iterator[Finding]:
    """Whether MLflow can read the store's experiments, and its champion for the configured dataset."""
    be_patient()
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    silence_mlflow()
    try:
        if not store.remote and (found := check_tables(store.uri)):  # MLflow's client would create or change tables
            yield found
            return
        client, config = MlflowClient(store.uri), read_config()
        experiments = client.search_experiments()
    except Exception as error:  # MLflow raises anything
        yield Finding("MLflow", "problem", f"{store.uri}: {first_line(error)}", f"check {URI_VARIABLE}")
        return
    names = ", ".join(each.name for each in experiments) or "none"
    yield Finding("MLflow", "ok", f"{store.uri}: experiments {names}")
    if config is None:
        return
    try:
        version = client.get_model_version_by_alias(config.dataset.name, CHAMPION)
    except MlflowException:
        yield Finding("registry", "ok", f"no champion for {config.dataset.name} yet", "make promote registers one")
        return
    accuracy = version.tags.get(ACCURACY, "?")
    yield Finding("registry", "ok", f"champion of {version.name}: version {version.version}, accuracy {accuracy}")
