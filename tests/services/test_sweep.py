"""Sweeps that several machines share: workers in clones of their own, with one PostgreSQL, and on a Ray cluster."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import optuna
import psutil
import pytest
from mlflow import MlflowClient
from optuna.trial import FrozenTrial, TrialState

from pipeline.sweep.study import counted
from tests.conftest import Project, Start, copy, environment, free_port, serve_store
from tests.services.services import Postgres
from tests.sweep.files import write

pytestmark = pytest.mark.services
COMMAND = (sys.executable, "-m", "pipeline.sweep", "s")
TRIALS = 10
FINALS = {"finalists": 1, "seeds": 2}
PATIENCE = 240  # seconds
HEAD = ("--head", "--include-dashboard=false")


def wait_for(condition: Callable[[], bool]) -> None:
    """Wait until a condition holds."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.2)


def trials_of(storage: str, study: str = "s") -> list[FrozenTrial]:
    """The trials of a study; none if it does not exist yet."""
    try:
        return optuna.load_study(study_name=study, storage=storage).trials
    except Exception:  # the tables may be half created
        return []


def check_trials(storage: str, uri: str) -> None:
    """Every trial ended exactly once, none is lost, none is counted twice; the same in MLflow and in the finals."""
    trials = counted(trials_of(storage))
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * TRIALS
    (finals,) = [name for name in optuna.get_all_study_names(storage) if name != "s"]
    final = counted(trials_of(storage, finals))
    done = [trial for trial in final if trial.state == TrialState.COMPLETE]
    pairs = Counter((trial.params["finalist"], trial.params["seed"]) for trial in done)
    assert (len(pairs), {*pairs.values()}) == (4, {1})
    assert {trial.state for trial in final} <= {TrialState.COMPLETE, TrialState.WAITING}
    client = MlflowClient(uri)
    places = [each.experiment_id for each in client.search_experiments()]
    (parent,) = client.search_runs(places, "tags.sweep = 's'")
    assert parent.info.status == "FINISHED"
    runs = client.search_runs(places, f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'")
    names = Counter(run.data.tags["sweep.trial"] for run in runs if run.info.status == "FINISHED")
    assert names == Counter([*(f"trial {trial.number}" for trial in trials), *(f"{a}, seed {b}" for a, b in pairs)])
    ids = [trial.user_attrs["run_id"] for trial in [*trials, *done]]
    assert sorted(ids) == sorted(run.info.run_id for run in runs if run.info.status == "FINISHED")


@pytest.fixture
def uri(start: Start, tmp_path: Path) -> str:
    """The address of a tracking server."""
    port = free_port()
    folder = tmp_path / "server"
    folder.mkdir()
    serve_store(start, folder, port)
    return f"http://127.0.0.1:{port}"


def test_killed_workers_of_four_lose_no_trial(
    trained_once: Project, postgres: Postgres, start: Start, uri: str, tmp_path: Path
) -> None:
    postgres.run("createdb", "sweep")
    own = postgres.settings
    storage = f"postgresql+psycopg2://{own['PGUSER']}:{own['PGPASSWORD']}@127.0.0.1:{own['PGPORT']}/sweep"
    settings = {"SWEEP_STORAGE": storage, "MLFLOW_TRACKING_URI": uri}
    projects = [copy(trained_once, tmp_path / f"machine-{number}") for number in range(4)]
    for project in projects:
        write(project, "s", trials=TRIALS, **FINALS)
    workers = [start((*COMMAND, "--jobs", "1"), project.root, **settings) for project in projects]
    wait_for(lambda: sum(trial.state == TrialState.RUNNING for trial in trials_of(storage)) > 3)
    workers[0].kill()
    wait_for(lambda: sum(trial.state == TrialState.COMPLETE for trial in trials_of(storage)) > 3)
    workers[1].kill()
    printed = [worker.communicate(timeout=PATIENCE)[0] for worker in workers]
    assert [worker.returncode for worker in workers] == [-signal.SIGKILL, -signal.SIGKILL, 0, 0], printed[2:]
    check_trials(storage, uri)


class Cluster:
    """A Ray cluster whose machines are processes on this one."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.address = folder, f"127.0.0.1:{free_port()}"
        self.nodes: list[psutil.Process] = []

    def add(self, *options: str) -> None:
        """Start a machine with one core."""
        place = ("--port", self.address.split(":")[1]) if "--head" in options else ("--address", self.address)
        limits = ("--num-cpus=1", "--num-gpus=0", "--object-store-memory=100000000", "--disable-usage-stats")
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", *place, "--node-ip-address=127.0.0.1", *limits]
        before = self.raylets()
        temporary = [f"--temp-dir={self.folder}"] if "--head" in options else []
        done = subprocess.run(
            [*command, *options, *temporary], env=environment({}), capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        (new,) = self.raylets() - before
        self.nodes.append(new)

    def raylets(self) -> set[psutil.Process]:
        """The processes of the machines."""
        return {each for each in self.processes() if each.name() == "raylet"}

    def processes(self) -> list[psutil.Process]:
        """All processes of the cluster."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if any(str(self.folder) in word for word in process.cmdline()):
                    found.append(process)
        return found

    def stop(self) -> None:
        """End all processes."""
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                process.kill()


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """A Ray cluster of two machines."""
    folder = Path(tempfile.mkdtemp(prefix="ray-"))  # pytest's paths are too long for Ray's sockets
    found = Cluster(folder)
    try:
        found.add(*HEAD)
        found.add()
        yield found
    finally:
        found.stop()
        shutil.rmtree(folder, ignore_errors=True)


def test_a_machine_of_a_cluster_that_fails_loses_no_trial(
    trained: Project, cluster: Cluster, start: Start, uri: str
) -> None:
    write(trained, "s", trials=TRIALS, **FINALS)
    storage = f"sqlite:///{trained.root}/.sweeps/s/study.db"
    process = start((*COMMAND, "--ray", cluster.address), trained.root, MLFLOW_TRACKING_URI=uri)
    wait_for(lambda: sum(trial.state == TrialState.RUNNING for trial in trials_of(storage)) > 1)
    wait_for(lambda: sum(trial.state == TrialState.COMPLETE for trial in trials_of(storage)) > 2)
    cluster.nodes[1].send_signal(signal.SIGKILL)
    printed = process.communicate(timeout=PATIENCE)[0]
    assert process.returncode == 0, printed
    assert "Traceback" not in printed
    assert all(f"\ntrial {trial.number}: " in f"\n{printed}" for trial in counted(trials_of(storage)))
    check_trials(storage, uri)


def test_what_a_cluster_cannot_do_is_refused(trained: Project, cluster: Cluster) -> None:
    write(trained, "s", trials=TRIALS, **FINALS)
    for options, said in (
        (("--gpus", "1"), "sweep: none of the cluster's 2 machines has 1 cores and 1 GPUs: use fewer"),
        (("--cores", "2"), "sweep: none of the cluster's 2 machines has 2 cores and 0 GPUs: use fewer"),
    ):
        printed = trained.fail(*COMMAND, "--ray", cluster.address, *options)
        assert printed.splitlines()[-1].startswith(said), printed
    printed = trained.fail(*COMMAND, "--ray", f"127.0.0.1:{free_port()}")
    assert printed.splitlines()[-1].startswith("sweep: --ray 127.0.0.1:"), printed
    assert "no Ray cluster answers" in printed


def test_an_interrupted_sweep_leaves_no_process_on_the_cluster(
    trained: Project, cluster: Cluster, start: Start
) -> None:
    write(trained, "s", trials=TRIALS, **FINALS)
    storage = f"sqlite:///{trained.root}/.sweeps/s/study.db"
    process = start((*COMMAND, "--ray", cluster.address), trained.root)
    wait_for(lambda: sum(trial.state == TrialState.RUNNING for trial in trials_of(storage)) > 1)
    os.killpg(process.pid, signal.SIGINT)
    printed = process.communicate(timeout=PATIENCE)[0]
    assert printed.splitlines()[-1] == "sweep: interrupted: the same command continues the sweep", printed

    def idle() -> bool:
        return not [each for each in psutil.process_iter(["cmdline"]) if "--worker" in (each.info["cmdline"] or [])]

    wait_for(idle)
