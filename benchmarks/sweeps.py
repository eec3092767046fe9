"""What a sweep costs besides its trainings, and how much trials side by side gain.

Needs PostgreSQL's programs and Chromium.
"""

import contextlib
import importlib.util
import multiprocessing
import os
import random
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any

import optuna
from mlflow import MlflowClient
from mlflow.entities import Metric, Param
from optuna.trial import create_trial
from playwright.sync_api import expect, sync_playwright

from benchmarks.command import clone, run
from benchmarks.figures import Figures, add
from pipeline.sweep.crew import Crew
from pipeline.sweep.database import VARIABLE
from pipeline.sweep.search import Search
from pipeline.sweep.settings import Settings, prepare_images
from pipeline.sweep.shares import Share, divide
from pipeline.sweep.space import Range, Sweep, read_sweep, suggest
from pipeline.sweep.study import open_study
from pipeline.sweep.trial import Outcome, Task, running
from pipeline.tracking.runs import NAME, PARENT
from pipeline.tracking.store import Store, experiment_id, open_store
from pipeline.tracking.sweeps import SWEEP, TRIAL, named, sweep_list
from tests.browser.ui import close_assistant, launch, open_context, serve
from tests.services.services import MISSING, postgres_programs, postgres_server

TRIALS = (10, 100, 1000)
WORKERS = (1, 4, 16)
TIMED = 48  # trials, at each number of earlier trials
SECONDS = 100  # after which timed trials stop
CHILDREN = 1000
EPOCHS = 5
BACKENDS = {"tensorflow": "tensorflow", "jax": "jax", "torch": "torch"}  # and the package that each needs
NETWORKS: dict[str, dict[str, Any]] = {
    "baseline": {"recipe": "baseline", "training": {"epochs": EPOCHS}},
    "quick": {"recipe": "quick", "training": {"validation_fraction": 0.08333, "validate_on": "validation"}},
}


class Empty(Search):
    """A search whose trials train nothing."""

    def trial(self, trial: optuna.Trial, share: Share) -> tuple[float, ...]:
        """Choose settings, and return any value."""
        suggest(trial, self.sweep)
        return (random.random(),)


def measure_sweeps(folder: Path, data: Path, rounds: int) -> Figures:
    """Measure the cost of Optuna's database, trials side by side, and the list of trials in the browser."""
    figures: Figures = {}
    measure_engine(figures, folder)
    measure_side_by_side(figures, folder, data, rounds)
    measure_children(figures, folder, rounds)
    return figures


def measure_engine(figures: Figures, folder: Path) -> None:
    """Seconds of a trial besides its training: choosing, starting and recording it in Optuna's database."""
    programs = postgres_programs()
    if programs is None:
        sys.exit(f"benchmarks: {MISSING}")
    with postgres_server(programs) as server:
        for database, before, workers in product(("sqlite", "postgresql"), TRIALS, WORKERS):
            name = f"{database}-{before}-{workers}"
            own = folder / name
            own.mkdir()
            address = ""
            if database == "postgresql":
                server.run("createdb", name)
                login = f"{server.settings['PGUSER']}:{server.settings['PGPASSWORD']}"
                address = f"postgresql+psycopg2://{login}@127.0.0.1:{server.port}/{name}"
            seconds = timed_trials(own, address, before, workers)
            add(figures, f"engine_{database}_{before}_trials_{workers}_workers_seconds", seconds, "s per trial")
            print(f"{name}: {seconds:.3f} s per trial", flush=True)


def timed_trials(folder: Path, address: str, before: int, workers: int) -> float:
    """Seconds per trial of workers that share a study with this number of earlier trials."""
    os.environ[VARIABLE] = address
    study = open_study("s", read_sweep("mlp"), folder)
    study.add_trials(earlier(before))
    context = multiprocessing.get_context("spawn")
    ready = context.Barrier(workers + 1)
    processes = [context.Process(target=work, args=(folder, before + TIMED, ready)) for _ in range(workers)]
    for process in processes:
        process.start()
    ready.wait()
    for process in processes:
        process.join()
    del os.environ[VARIABLE]
    timed = [trial for trial in study.trials[before:] if trial.datetime_complete and trial.datetime_start]
    begun = min(trial.datetime_start for trial in timed if trial.datetime_start)
    ended = max(trial.datetime_complete for trial in timed if trial.datetime_complete)
    return (ended - begun).total_seconds() / len(timed)


def work(folder: Path, trials: int, ready: Any) -> None:
    """Train empty trials in one worker."""
    sweep = read_sweep("mlp").model_copy(update={"trials": trials, "pruner": "none"})
    study = open_study("s", sweep, folder)
    nothing: Any = None
    alone, stopped = threading.Lock(), threading.Event()
    search = Empty(sweep, nothing, study, folder, nothing, nothing, nothing, alone, stopped)
    ready.wait()
    Crew(search, time.monotonic() + SECONDS, lambda _: None).run([Share(frozenset(), None, None)])


def earlier(count: int) -> list[optuna.trial.FrozenTrial]:
    """Complete trials with random settings."""
    study, sweep = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1)), read_sweep("mlp")
    for _ in range(count):
        trial = study.ask()
        suggest(trial, sweep)
        study.tell(trial, random.random())
    return [create_trial(params=t.params, distributions=t.distributions, value=t.value) for t in study.trials]


def measure_side_by_side(figures: Figures, folder: Path, data: Path, rounds: int) -> None:
    """Seconds of two trials, one after the other on all cores, and side by side on half of the cores each."""
    project = clone(folder / "side-by-side")
    run(["dvc", "repro", "fetch"], project, DATASET_MIRROR=str(data))
    with contextlib.chdir(project):
        for (name, settings), backend in product(NETWORKS.items(), BACKENDS):
            if importlib.util.find_spec(BACKENDS[backend]) is None:
                continue
            sweep = Sweep(
                objectives=["val_accuracy"], trials=2, settings=settings, space={"seed": Range(low=1, high=2)}
            )
            config = Settings(name, sweep).current
            images = project / name
            prepare_images(config, images)
            os.environ["KERAS_BACKEND"] = backend
            for _, jobs in product(range(rounds), (1, 2)):
                start = time.perf_counter()
                tasks = [
                    Task(config, images, images / f"checkpoints-{n}", divide(jobs, None, 0)[n % jobs]) for n in (0, 1)
                ]
                with ThreadPoolExecutor(jobs) as executor:
                    list(executor.map(train, tasks))
                seconds = time.perf_counter() - start
                add(figures, f"two_trials_{name}_{backend}_{jobs}_side_by_side_seconds", seconds, "s")
                print(f"{name}, {backend}, {jobs} side by side: {seconds:.1f} s", flush=True)
            del os.environ["KERAS_BACKEND"]


def train(task: Task) -> Outcome:
    """Train a trial."""
    with running(task, threading.Event()) as messages:
        *_, outcome = messages
    assert isinstance(outcome, Outcome)
    return outcome


def measure_children(figures: Figures, folder: Path, rounds: int) -> None:
    """Seconds until a sweep with many trials is in the UI's list, and until its first trials are below it."""
    project = clone(folder / "children")
    with contextlib.chdir(project):
        store = open_store(project)
        fill(store, experiment_id(store, named("mnist")))
        address = sweep_list(store, "mnist")
    with serve(project, folder / "ui.log") as printed, sync_playwright() as playwright:
        browser = launch(playwright)
        for _ in range(rounds):
            page = open_context(browser).new_page()
            start = time.perf_counter()
            page.goto(f"{printed.split('#')[0]}#/{address}&workflowType=machine_learning")
            close_assistant(page)
            rows = page.get_by_role("row")
            expect(rows.filter(has_text="sweep s").first).to_be_visible()
            add(figures, "list_of_1000_trials_seconds", time.perf_counter() - start, "s")
            start = time.perf_counter()
            rows.filter(has_text="sweep s").get_by_role("button").first.click()
            expect(rows.filter(has_text="trial ").first).to_be_visible()
            add(figures, "expand_1000_trials_seconds", time.perf_counter() - start, "s")
            page.context.close()
        browser.close()


def fill(store: Store, experiment: str) -> None:
    """Record a sweep and its trials, with as many params as a real one."""
    client = MlflowClient(store.uri)
    sweep = client.create_run(experiment, tags={NAME: "sweep s", SWEEP: "s"}).info.run_id
    params = [Param(f"group.param_{number}", str(number)) for number in range(50)]
    for number in range(CHILDREN):
        tags = {NAME: f"trial {number}", PARENT: sweep, TRIAL: f"trial {number}", "sweep.state": "complete"}
        run_id = client.create_run(experiment, tags=tags).info.run_id
        metrics = [Metric(name, number / CHILDREN, 0, 0) for name in ("val_accuracy", "val_loss", "fit_seconds")]
        client.log_batch(run_id, metrics, params)
        client.set_terminated(run_id)
