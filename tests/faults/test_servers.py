"""MLflow servers and databases that fail."""

import json
import random
import shutil
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tests import web
from tests.conftest import Start, environment, free_port, kill_all, serve_store
from tests.faults.conftest import Tell
from tests.faults.trial import Trial, killed, read_until

QUICK = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1"}  # not a fraction
SLOW_SECONDS = 5.0


@pytest.fixture(scope="session")
def store_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of an MLflow server that works."""
    started: list[subprocess.Popen[str]] = []

    def run(command: list[str], cwd: Path, **settings: str) -> "subprocess.Popen[str]":
        with (cwd / "server.log").open("w", encoding="utf-8") as log:
            process = subprocess.Popen(
                command, cwd=cwd, env=environment(settings), stdout=log, stderr=log, text=True, start_new_session=True
            )
        started.append(process)
        return process

    port = free_port()
    serve_store(run, tmp_path_factory.mktemp("server"), port)
    yield f"http://127.0.0.1:{port}"
    for process in started:
        kill_all(process)


@pytest.mark.faults
def test_the_server_is_down_at_the_start(trial: Trial, tell: Tell, store_server: str) -> None:
    output = trial.fail("dvc", "repro", MLFLOW_TRACKING_URI="http://127.0.0.1:9")
    assert "train: MLFLOW_TRACKING_URI=http://127.0.0.1:9: the tracking server cannot be reached. Start it" in output
    trial.recover(MLFLOW_TRACKING_URI=store_server)
    tell("MLflow server: down at the start", "a port without a server", "train said so before it trained")


@pytest.mark.faults
@pytest.mark.parametrize("seed", range(4))
def test_the_server_is_killed_during_the_run(trial: Trial, tell: Tell, start: Start, tmp_path: Path, seed: int) -> None:
    """And is restarted before the run ends, or after it."""
    port = free_port()
    folder = tmp_path / "server"
    folder.mkdir()
    settings = {"MLFLOW_TRACKING_URI": f"http://127.0.0.1:{port}"}
    server = serve_store(start, folder, port)
    running = start(["dvc", "repro"], trial.root, **trial.settings, **settings, **QUICK)
    output = read_until(running, "epoch ", 1 + seed // 2)
    killed(server)
    assert running.poll() is None, "the run is not over"
    if seed % 2:
        serve_store(start, folder, port)
    output += running.communicate()[0]
    if not seed % 2:
        serve_store(start, folder, port)
    assert running.returncode == 0, output
    assert "Traceback" not in output
    assert seed % 2 or f"127.0.0.1:{port} did not accept this run's " in output
    trial.project.succeed("dvc", "repro", **trial.settings, **settings)
    sent = trial.send(**settings)
    trial.check(**settings)
    restart = "restarted during it" if seed % 2 else "restarted after it"
    outcome = "`make send` sent the missing records" if sent else "`dvc repro` continued the same run"
    tell(f"MLflow server: killed during the run, {restart}", "`kill -9` after an epoch", outcome)


@pytest.mark.faults
@pytest.mark.parametrize("every", [3, 5, 7])
def test_the_server_fails_from_time_to_time(trial: Trial, tell: Tell, store_server: str, every: int) -> None:
    failed: list[int] = []

    def answer(request: web.Handler, number: int) -> None:
        if number % every == every - 1:
            failed.append(number)
            request.send(b'{"error_code": "INTERNAL_ERROR", "message": "try later"}', 500)
        else:
            web.forward(request, store_server)

    with web.serving(answer) as address:
        settings = {"MLFLOW_TRACKING_URI": address}
        first = trial.project.run("dvc", "repro", **trial.settings, **settings, **QUICK)
        assert "Traceback" not in first.stdout
    assert len(failed) > 1
    assert "epoch " in first.stdout, first.stdout
    again = {"MLFLOW_TRACKING_URI": store_server}
    trial.project.succeed("dvc", "repro", **trial.settings, **again)
    for outbox in (trial.root / ".unsent").glob("*/uri"):
        outbox.write_text(store_server, encoding="utf-8")  # the proxy has gone
    sent = trial.send(**again)
    trial.check(**again)
    outcome = "the run is complete" + (" after `make send`" if sent else "")
    tell(f"MLflow server: status 500 for every request number {every}", "a proxy before a real server", outcome)


@pytest.mark.faults
def test_the_server_is_slow(trial: Trial, tell: Tell, store_server: str) -> None:
    delayed: list[int] = []

    def answer(request: web.Handler, number: int) -> None:
        if number in (3, 20):
            delayed.append(number)
            time.sleep(SLOW_SECONDS)
        web.forward(request, store_server)

    with web.serving(answer) as address:
        trial.project.succeed("dvc", "repro", **trial.settings, MLFLOW_TRACKING_URI=address)
    assert delayed == [3, 20]
    trial.recover(MLFLOW_TRACKING_URI=store_server)
    tell("MLflow server: slow by 5 s", "a proxy before a real server", "the run is complete")


@pytest.mark.faults
def test_the_server_has_no_logged_models(trial: Trial, tell: Tell, store_server: str) -> None:
    """As a server before MLflow 3."""

    def answer(request: web.Handler, number: int) -> None:
        if "logged-models" in request.path:
            request.send(b"<!doctype html><title>404 Not Found</title>", 404)
        else:
            web.forward(request, store_server)

    with web.serving(answer) as address:
        output = trial.project.succeed("dvc", "repro", **trial.settings, MLFLOW_TRACKING_URI=address)
    assert "refuses the model of run" in output
    run_id = json.loads((trial.root / "models" / "run.json").read_text(encoding="utf-8"))["run_id"]
    run = MlflowClient(store_server).get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.metrics["test/accuracy"] == trial.expected.metrics["accuracy"]
    refused = trial.root / ".unsent" / "refused" / run_id
    assert list(refused.rglob("model.keras")), "the model is set aside"
    outcome = "everything else is recorded; the model is set aside in `.unsent/refused/`, and a message says so"
    tell("MLflow server: without logged models (before MLflow 3)", "a proxy before a real server", outcome)


@pytest.mark.faults
def test_the_server_requires_a_login(trial: Trial, tell: Tell, store_server: str) -> None:
    def answer(request: web.Handler, number: int) -> None:
        if request.headers.get("Authorization") == "Bearer let-me-in" or request.path == "/health":
            web.forward(request, store_server)
        else:
            request.send(b"<html>Who are you?</html>", 401)

    with web.serving(answer) as address:
        settings = {"MLFLOW_TRACKING_URI": address}
        output = trial.fail("dvc", "repro", **settings)
        assert "The server requires a login: set MLFLOW_TRACKING_TOKEN, or MLFLOW_TRACKING_USERNAME" in output
        trial.project.succeed("dvc", "repro", **trial.settings, **settings, MLFLOW_TRACKING_TOKEN="let-me-in")
    trial.check(MLFLOW_TRACKING_URI=store_server)
    tell("MLflow server: behind a login", "a proxy before a real server", "train named the variables to set")


@pytest.mark.faults
@pytest.mark.parametrize("seed", range(4))
def test_the_database_is_locked(trial: Trial, tell: Tell, start: Start, seed: int) -> None:
    """By another process, for 3 to 12 seconds, from the start of train or from an epoch on."""
    seconds = random.Random(f"lock {seed}").uniform(3, 12)
    running = start(["dvc", "repro"], trial.root, **trial.settings)
    read_until(running, "epoch " if seed % 2 else "Running stage 'train'")
    with closing(sqlite3.connect(trial.root / "mlflow.db", timeout=30, isolation_level=None)) as database:
        database.execute("BEGIN EXCLUSIVE")
        time.sleep(seconds)
        waited = running.poll() is None
        database.execute("ROLLBACK")
    output, _ = running.communicate()
    assert "Traceback" not in output
    trial.project.succeed("dvc", "repro", **trial.settings)
    sent = trial.send()
    refused = running.returncode and "mlflow.db cannot be used: " in output
    assert waited or sent or refused, "the lock hindered the run"
    trial.check()
    outcome = "train named the database" if refused else "the run waited for the database"
    outcome = "`make send` sent the missing records" if sent else outcome
    tell("MLflow database: locked by another process", "an exclusive lock for 3 to 12 s", outcome)


@pytest.mark.faults
@pytest.mark.parametrize("page", range(4))
def test_the_database_is_damaged(trial: Trial, tell: Tell, page: int) -> None:
    """A page of zeros or noise; then its owner restores a backup."""
    file, backup = trial.root / "mlflow.db", trial.root.parent / "backup.db"
    shutil.copy(file, backup)
    content = bytearray(file.read_bytes())
    chooser = random.Random(f"page {page}")
    place = 0 if page == 0 else chooser.randrange(len(content) // 4096) * 4096
    content[place : place + 4096] = chooser.randbytes(4096) if page % 2 else bytes(4096)
    assert content != file.read_bytes()
    file.write_bytes(content)
    first = trial.project.run("dvc", "repro", **trial.settings)
    assert "Traceback" not in first.stdout
    if first.returncode:
        assert "mlflow.db cannot be used: " in first.stdout
    shutil.copy(backup, file)
    trial.project.succeed("dvc", "repro", "--force", **trial.settings)
    trial.send()
    shutil.rmtree(trial.root / ".unsent" / "refused", ignore_errors=True)  # of a run that the backup does not have
    trial.check()
    outcome = "train named the database" if first.returncode else "records were kept, or the page was not used"
    tell("MLflow database: damaged page", "4096 zero or random bytes", f"{outcome}; with a backup, all is there")


@pytest.mark.faults
def test_the_database_is_half_migrated(trial: Trial, tell: Tell) -> None:
    file, backup = trial.root / "mlflow.db", trial.root.parent / "backup.db"
    shutil.copy(file, backup)
    with closing(sqlite3.connect(file)) as database:
        database.execute("UPDATE alembic_version SET version_num = '451aebb31d03'")  # of MLflow 0.9
        database.commit()
    output = trial.fail("dvc", "repro")
    assert "mlflow.db cannot be used: " in output
    assert "mlflow db upgrade" in output
    shutil.copy(backup, file)
    trial.recover()
    tell("MLflow database: of an earlier version", "an earlier version number", "train named `mlflow db upgrade`")
