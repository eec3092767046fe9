"""Load of a team's server: many runs that record at once, and the list of runs of a store that has thousands.

Needs PostgreSQL's programs and Chromium. The services run on this machine: MLflow's server with logins on PostgreSQL,
artifacts in an S3-compatible store, as in deploy/compose.yaml.
"""

import multiprocessing
import os
import secrets
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import requests
from mlflow import MlflowClient
from playwright.sync_api import sync_playwright

from benchmarks.command import clone
from benchmarks.figures import Figures, add
from pipeline.core.files import write_text
from pipeline.tracking.outbox import RunAddress, send_unsent
from pipeline.tracking.recorder import Recorder
from pipeline.tracking.store import be_patient, experiment_id, open_store, page, run_list
from pipeline.tracking.tags import USER
from tests.browser.ui import launch, open_context, open_runs
from tests.services.services import (
    ADMIN,
    BUCKET,
    MISSING,
    Postgres,
    Team,
    postgres_programs,
    postgres_server,
    rclone,
    tracking,
)

RECORDING = 50  # runs at once
EPOCHS = 100
STORED = 10_000  # runs in the store
EXPERIMENT = "digits"
COPIED = ("tags", "params", "metrics", "latest_metrics")  # tables with rows of a run, besides `runs`
SHOWN = 100  # runs on the first page of the list
WORKERS = 4  # processes of the server, MLflow's default


def measure_team(folder: Path, rounds: int) -> Figures:
    """Record runs at once, fill the store, and time what people wait for."""
    figures: Figures = {}
    with services(folder) as team:
        os.environ |= team.login(ADMIN)
        be_patient()
        for number in range(rounds):
            record_at_once(figures, folder / f"clients-{number}", team)
        fill(team.postgres, STORED)
        project = trained_clone(folder / "project", team)
        for _ in range(rounds):
            measure_list(figures, project, team)
        measure_page(figures, project, team, rounds)
    return figures


@contextmanager
def services(folder: Path) -> Iterator[Team]:
    """Start the services of a team with an administrator."""
    programs = postgres_programs()
    if programs is None:
        sys.exit(f"benchmarks: {MISSING}")
    keys = {"AWS_ACCESS_KEY_ID": "team", "AWS_SECRET_ACCESS_KEY": secrets.token_hex()}
    objects = folder / "objects"
    (objects / BUCKET).mkdir(parents=True)
    s3 = rclone(folder, objects, keys)
    keys["AWS_ENDPOINT_URL"] = s3.address
    passwords = {ADMIN: secrets.token_hex()}
    with postgres_server(programs) as postgres:
        mlflow = tracking(postgres, folder, keys, passwords[ADMIN], WORKERS)
        try:
            s3.start()
            mlflow.start()
            yield Team(mlflow, s3, postgres, objects / BUCKET, passwords, keys, [])
        finally:
            mlflow.kill()
            s3.kill()


def record_at_once(figures: Figures, root: Path, team: Team) -> None:
    """Record all runs at once, each in a process of its own, and count what the store lacks afterwards."""
    root.mkdir()
    store = open_store(root)
    experiment = experiment_id(store, EXPERIMENT)
    with multiprocessing.get_context("fork").Pool(RECORDING) as pool:
        start = time.perf_counter()
        recorded = pool.starmap(
            record_run, [(store.uri, experiment, root, number, EPOCHS) for number in range(RECORDING)], 1
        )
        seconds = time.perf_counter() - start
    kept = len(list((root / ".unsent").glob("*/event-*.json")))
    send_unsent(root)
    client = MlflowClient(store.uri)
    lost = sum(EPOCHS - len(client.get_metric_history(run_id, "train/loss")) for run_id, _ in recorded)
    delays = [delay for _, own in recorded for delay in own]
    add(figures, "recording_seconds", seconds, "s")
    add(figures, "recorded_epochs_per_second", RECORDING * EPOCHS / seconds, "1/s")
    add(figures, "record_epoch_seconds", statistics.median(delays), "s")
    add(figures, "record_epoch_seconds_p99", statistics.quantiles(delays, n=100)[-1], "s")
    add(figures, "kept_events", kept, "events")
    add(figures, "lost_epochs", lost, "epochs")
    add(figures, "abandoned_runs", len(client.search_runs([experiment], "attributes.status = 'RUNNING'")), "runs")
    print(f"{RECORDING} runs of {EPOCHS} epochs: {seconds:.1f} s, {kept} events kept, {lost} epochs lost", flush=True)


def record_run(uri: str, experiment: str, root: Path, number: int, epochs: int) -> tuple[str, list[float]]:
    """Record one run without training, and return its ID and how long each epoch took to record."""
    run_id = MlflowClient(uri).create_run(experiment, run_name=f"smoke-mlp-seed-{number}").info.run_id
    recorder = Recorder(RunAddress(uri, run_id, experiment, root))
    recorder.params({f"group.param_{index}": index for index in range(50)})
    recorder.tags(
        {
            USER: f"user {number}",
            "recipe": "smoke",
            "started": time.strftime("%Y-%m-%d %H:%M:%S"),
            "machine": "a simulated one",
        }
    )
    recorder.text("model_summary.txt", "Model\n" * 30)
    delays = []
    for epoch in range(1, epochs + 1):
        names = ("train/loss", "train/accuracy", "val/loss", "val/accuracy", "train/seconds_per_epoch")
        start = time.perf_counter()
        recorder.metrics(dict.fromkeys(names, 1 / epoch), epoch)
        delays.append(time.perf_counter() - start)
    recorder.metrics({"test/accuracy": 0.9, "test/loss": 0.3, "test/errors": 50.0}, epochs)
    recorder.status("FINISHED")
    return run_id, delays


def fill(postgres: Postgres, total: int) -> None:
    """Copy the finished runs in the database, with earlier dates, until it has `total` runs."""
    count = total - int(postgres.run("psql", "-At", "--command", "SELECT count(*) FROM runs"))
    script = [
        "CREATE TEMP TABLE copies AS SELECT run_uuid AS source, n, md5(run_uuid || n) AS target "
        f"FROM runs, generate_series(1, {count}) n WHERE status = 'FINISHED' ORDER BY n LIMIT {count}"
    ]
    new = {"run_uuid": "target", "start_time": "start_time - n * 60000", "end_time": "end_time - n * 60000"}
    for table in ("runs", *COPIED):
        query = f"SELECT column_name FROM information_schema.columns WHERE table_name = '{table}'"
        names = postgres.run("psql", "-At", "--command", query).split()
        values = ", ".join(new.get(name, f'"{name}"') for name in names)
        quoted = ", ".join(f'"{name}"' for name in names)
        script.append(f"INSERT INTO {table} ({quoted}) SELECT {values} FROM {table} JOIN copies ON run_uuid = source")
    postgres.run("psql", "--quiet", *(part for each in (*script, "ANALYZE") for part in ("--command", each)))


def trained_clone(folder: Path, team: Team) -> Path:
    """A clone in which recipe=smoke was trained with the team's server."""
    project = clone(folder)
    write_text(project / "params.yaml", "recipe: smoke\n")
    run_with(team, project, sys.executable, "-m", "dvc", "repro")
    return project


def run_with(team: Team, project: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a command with the administrator's login."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    settings = os.environ | {"PATH": path} | team.login(ADMIN)
    return subprocess.run(command, cwd=project, env=settings, capture_output=True, text=True, check=False)


def measure_list(figures: Figures, project: Path, team: Team) -> None:
    """Time the request for the newest hundred runs, and `make joined`."""
    login = (ADMIN, team.passwords[ADMIN])
    body = {"experiment_ids": [experiment_id(open_store(project), EXPERIMENT)], "max_results": SHOWN}
    body["order_by"] = ["attributes.start_time DESC"]
    start = time.perf_counter()
    answer = requests.post(f"{team.mlflow.address}/api/2.0/mlflow/runs/search", json=body, auth=login, timeout=60)
    add(figures, "list_seconds", time.perf_counter() - start, "s")
    assert answer.ok, answer.text
    assert len(answer.json()["runs"]) == SHOWN
    start = time.perf_counter()
    checked = run_with(team, project, sys.executable, "-m", "pipeline.commands.runs", "check")
    add(figures, "joined_seconds", time.perf_counter() - start, "s")
    assert "1 joined, 0 unmatched" in checked.stdout, checked.stdout + checked.stderr


def measure_page(figures: Figures, project: Path, team: Team, rounds: int) -> None:
    """Time from opening the UI's list of runs to its first rows, each in a fresh browser context."""
    store = open_store(project)
    address = page(store, run_list(store, EXPERIMENT))
    with sync_playwright() as playwright:
        browser = launch(playwright)
        for _ in range(rounds):
            login = {"username": ADMIN, "password": team.passwords[ADMIN]}
            context = open_context(browser, http_credentials=login)
            start = time.perf_counter()
            open_runs(context.new_page(), address)
            add(figures, "page_seconds", time.perf_counter() - start, "s")
            context.close()
        browser.close()
