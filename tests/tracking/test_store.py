import contextlib
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient

from pipeline.core.errors import PipelineError
from pipeline.tracking.store import Store, experiment_id, locate_store, open_store, page, run_list
from tests.conftest import PATH, ROOT, environment


def test_the_store_is_anchored_to_the_root(tmp_path: Path) -> None:
    assert locate_store(tmp_path) == Store(f"sqlite:///{tmp_path}/mlflow.db", tmp_path / "mlartifacts")


def test_a_relative_database_is_anchored_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mine.db")
    assert locate_store(tmp_path).uri == f"sqlite:///{tmp_path}/mine.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////elsewhere/mine.db")
    assert locate_store(tmp_path).uri == "sqlite:////elsewhere/mine.db"


def test_other_spellings_of_a_database_are_anchored_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for uri in ("sqlite+pysqlite:///mine.db", "sqlite:///mine.db?timeout=30"):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        store = locate_store(tmp_path)
        assert store.uri.partition("?")[0] == f"sqlite:///{tmp_path}/mine.db"
        assert store == (store.uri, tmp_path / "mlartifacts")
        assert store.file == tmp_path / "mine.db"
        open_store(tmp_path)
        assert (tmp_path / "mine.db").stat().st_size


def test_a_database_of_another_program_is_refused(tmp_path: Path) -> None:
    with contextlib.closing(sqlite3.connect(tmp_path / "mlflow.db")) as database:
        database.execute("CREATE TABLE customers (name)")
        database.commit()
    before = (tmp_path / "mlflow.db").read_bytes()
    with pytest.raises(PipelineError, match="belongs to another program: set MLFLOW_TRACKING_URI to a new one"):
        open_store(tmp_path)
    assert (tmp_path / "mlflow.db").read_bytes() == before


@pytest.mark.parametrize(
    "uri", ["sqlite://", "sqlite:///", "sqlite:///:memory:", "sqlite:///file:a.db?uri=true", "sqlite+pysqlite://"]
)
def test_a_database_without_a_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uri: str) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(PipelineError, match=r"MLFLOW_TRACKING_URI=sqlite.*: name a file, as in sqlite:///mlflow\.db\."):
        open_store(tmp_path)


@pytest.mark.parametrize("uri", ["postgresql://127.0.0.1:9/mlflow", "sqlite:////dev/null/mlflow.db"])
def test_a_database_that_cannot_be_used_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uri: str) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(PipelineError, match=f"the MLflow store {uri} cannot be used: "):
        open_store(tmp_path)


def test_the_environment_variable_names_another_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://mlflow.example.org")
    assert locate_store(tmp_path).remote


@pytest.mark.parametrize("uri", ["mlruns", "./mlruns", "/data/mlruns", "file:///data/mlruns"])
def test_a_folder_is_refused_with_a_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uri: str) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(PipelineError, match=r"MLFLOW_TRACKING_URI=.*mlruns.*Unset it .*`mlflow migrate-filestore"):
        open_store(tmp_path)


def test_an_unreachable_server_is_an_error_within_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    started = time.monotonic()
    with pytest.raises(PipelineError, match=r"http://127\.0\.0\.1:9: the tracking server cannot be reached\. Start it"):
        open_store(tmp_path)
    assert time.monotonic() - started < 30


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"MLFLOW_TRACKING_URI": "http://[::1"}, r"MLFLOW_TRACKING_URI=http://\[::1: "),
        ({"MLFLOW_TRACKING_AWS_SIGV4": "true"}, "cannot be used: .*requests_auth_aws_sigv4"),
        ({"MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "abc"}, "cannot be used: .*abc"),
        (
            {"MLFLOW_TRACKING_INSECURE_TLS": "true", "MLFLOW_TRACKING_SERVER_CERT_PATH": "a.pem"},
            "cannot be used: .*TLS",
        ),
    ],
)
def test_an_unusable_mlflow_setting_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, str], message: str
) -> None:
    for name, value in ({"MLFLOW_TRACKING_URI": "https://127.0.0.1:9"} | settings).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(PipelineError, match=message) as refused:
        open_store(tmp_path)
    assert "\n" not in str(refused.value)


def test_a_silent_server_is_an_error_within_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.tracking.store.TIMEOUT", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(PipelineError, match="the tracking server timed out"):
            open_store(tmp_path)


def test_a_file_that_is_not_a_database_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_bytes(b"not a database " * 100)
    with pytest.raises(PipelineError, match=r"mlflow\.db cannot be used: "):
        open_store(tmp_path)


def test_a_working_directory_with_both_kinds_of_quotes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / 'it\'s "new"'
    folder.mkdir()
    monkeypatch.chdir(folder)
    client = MlflowClient(open_store(folder).uri)
    assert client.get_experiment("0").artifact_location.startswith(folder.as_uri())
    assert "_MLFLOW_SERVER_ARTIFACT_ROOT" not in os.environ, "MLflow would treat this process as a server"


def test_artifacts_go_to_the_root_wherever_the_process_runs(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    experiment = MlflowClient(store.uri).get_experiment(experiment_id(store, "mnist"))
    assert experiment.artifact_location == (tmp_path / "mlartifacts").as_uri()
    assert experiment_id(store, "mnist") == experiment.experiment_id


def test_a_deleted_experiment_is_named_with_the_remedy(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    MlflowClient(store.uri).delete_experiment(experiment_id(store, "mnist"))
    with pytest.raises(PipelineError, match=r"'mnist' was deleted\. Restore it \(mlflow experiments restore"):
        experiment_id(store, "mnist")


def forbid(store: Store, table: str) -> None:
    """Make the database refuse new rows in a table, as a server does for users with read-only access."""
    with contextlib.closing(sqlite3.connect(store.uri.removeprefix("sqlite:///"))) as database:
        database.execute(f"CREATE TRIGGER refuse BEFORE INSERT ON {table} BEGIN SELECT RAISE(ABORT, 'forbidden'); END")


def test_users_with_read_only_access_get_the_list_of_runs(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    experiment = experiment_id(store, "mnist")
    forbid(store, "experiment_tags")
    assert run_list(store, "mnist") == f"experiments/{experiment}/runs?viewStateShareKey=results"


def test_an_experiment_that_the_store_cannot_create(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    forbid(store, "experiments")
    with pytest.raises(PipelineError, match=r"cannot record to the experiment 'mnist': .*forbidden"):
        experiment_id(store, "mnist")


def test_concurrent_processes_create_one_store(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from pipeline.tracking.store import open_store, experiment_id; "
        "print(experiment_id(open_store(Path(sys.argv[1])), 'mnist'))"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path)],  # forks would copy MLflow's tables instead of creating them
            cwd=ROOT,
            env=environment({"PATH": PATH}),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        for _ in range(4)
    ]
    answers = [process.communicate()[0].decode().strip() for process in processes]
    assert [process.returncode for process in processes] == [0] * 4, answers
    assert len(set(answers)) == 1


def test_the_address_of_a_page() -> None:
    for uri, base in {
        "sqlite:///a": "http://127.0.0.1:5000",
        "http://team:80/": "http://team:80",
        "https://me:secret@team/a": "https://team/a",
    }.items():
        address = page(Store(uri, Path()), "experiments/1")
        assert address == f"{base}/#/experiments/1?workflowType=machine_learning"


KILLED = f"""
import os, pathlib, signal, sys
import sqlalchemy
sys.path.insert(0, {str(ROOT)!r})
from pipeline.tracking.store import open_store
changes = 0

def count(connection, cursor, statement, *others):
    global changes
    changes += statement.split()[0] in ("CREATE", "ALTER", "DROP", "INSERT", "UPDATE")
    if changes == int(sys.argv[1]):
        os.kill(os.getpid(), signal.SIGKILL)

sqlalchemy.event.listen(sqlalchemy.Engine, "before_cursor_execute", count)
open_store(pathlib.Path())
"""


@pytest.mark.parametrize("changes", [30, 150])  # of more than 400 statements that change the database
def test_a_kill_during_table_creation_leaves_no_database(tmp_path: Path, changes: int) -> None:
    command = [sys.executable, "-c", KILLED, str(changes)]
    killed = subprocess.run(command, cwd=tmp_path, env=environment({"PATH": PATH}), check=False)
    assert killed.returncode == -signal.SIGKILL
    assert (tmp_path / "mlflow.db").stat().st_size == 0
    experiment_id(open_store(tmp_path), "mnist")
