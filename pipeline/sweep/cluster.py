"""Workers on the machines of a Ray cluster. Each is the command of the sweep, in the same folder on its machine."""

import importlib.util
import os
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.core.errors import PipelineError, first_line
from pipeline.core.process.surroundings import THREADS
from pipeline.sweep.database import VARIABLE
from pipeline.sweep.search import Search

POLLING, PATIENCE = 1.0, 10.0  # seconds


class Workers(NamedTuple):
    """How many workers to start, and what each of them needs."""

    number: int | None  # None for as many as the cluster has room for
    cores: int
    gpus: int


@contextmanager
def connected(address: str) -> Iterator[Any]:
    """Connect to a Ray cluster, and give its module. Raises PipelineError if Ray is missing or nothing answers."""
    if importlib.util.find_spec("ray") is None:
        raise PipelineError("Ray is not installed: pip install -r requirements-ray.txt installs it")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # no warning: the workers hide GPUs themselves
    import ray

    try:
        knock(address)
        ray.init(address, log_to_driver=False, logging_level="ERROR")
    except Exception as error:  # Ray raises ConnectionError, ValueError, RuntimeError and others
        raise PipelineError(f"--ray {address}: no Ray cluster answers ({first_line(error)})") from None
    try:
        yield ray
    finally:
        ray.shutdown()


def knock(address: str) -> None:
    """Connect to a cluster's port once: Ray would try for minutes. Raises OSError if nothing answers."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdecimal():  # else a name such as `auto`, or what Ray will refuse
        socket.create_connection((host.strip("[]"), int(port)), PATIENCE).close()


def train_on_cluster(
    address: str, search: Search, command: list[str], workers: Workers, watch: Callable[[], None]
) -> None:
    """Run a command on the cluster until all workers have ended, and call `watch` every second.

    A worker whose machine fails is started again on another one. Raises PipelineError if no machine has what a worker
    needs, if the machines share no database, or if a worker fails.
    """
    with connected(address) as ray:
        nodes = [node for node in ray.nodes() if node["Alive"]]
        count = workers.number or min(search.sweep.trials, room(nodes, workers))
        check(nodes, workers, search)
        needed = {"num_cpus": workers.cores, "num_gpus": workers.gpus}
        task = ray.remote(worker()).options(max_retries=-1, scheduling_strategy="SPREAD", **needed)
        limits = dict.fromkeys(THREADS, str(workers.cores))
        working = [task.remote(command, str(Path.cwd()), dict(os.environ) | limits) for _ in range(count)]
        try:
            while working:
                ended, working = ray.wait(working, timeout=POLLING)
                for each in ended:
                    status, said = ray.get(each)
                    if status:
                        raise PipelineError(f"a worker ended with status {status}: {said}")
                watch()
        except (ray.exceptions.RayError, OSError) as error:
            raise PipelineError(f"--ray {address}: {first_line(error)}: the same command continues the sweep") from None
        finally:
            for each in working:
                ray.cancel(each, force=True)


def worker() -> Callable[[list[str], str, dict[str, str]], tuple[int, str]]:
    """The function that Ray runs. It is nested, so that Ray sends its code, and the machines need no import of it."""

    def work(command: list[str], folder: str, environment: dict[str, str]) -> tuple[int, str]:
        import os
        import subprocess

        own = {key: value for key, value in os.environ.items() if key.startswith("RAY_")}
        if "CUDA_VISIBLE_DEVICES" in os.environ:  # as Ray has chosen
            own["CUDA_VISIBLE_DEVICES"] = os.environ["CUDA_VISIBLE_DEVICES"]
        if not os.path.isdir(folder):  # noqa: PTH112 (without this module's imports)
            return 1, f"{os.uname().nodename} has no folder {folder}: all machines need the project at the same path"
        pipe, joined = subprocess.PIPE, subprocess.STDOUT
        try:
            with subprocess.Popen(  # it ends when its standard input does, also if this process is killed
                command, cwd=folder, env=environment | own, stdin=pipe, stdout=pipe, stderr=joined
            ) as process:
                assert process.stdout
                lines = process.stdout.read().decode(errors="replace").strip().splitlines()
                return process.wait(), lines[-1] if lines else ""
        except OSError as error:
            return 1, f"{os.uname().nodename}: {error}"

    return work


def room(nodes: list[dict[str, Any]], workers: Workers) -> int:
    """How many workers the machines have room for."""
    found = 0
    for node in nodes:
        resources = node["Resources"]
        fits = int(resources.get("CPU", 0)) // workers.cores
        found += min(fits, int(resources.get("GPU", 0)) // workers.gpus) if workers.gpus else fits
    return found


def check(nodes: list[dict[str, Any]], workers: Workers, search: Search) -> None:
    """Raise PipelineError if no machine has room for a worker, or if several machines share no databases."""
    if not room(nodes, workers):
        raise PipelineError(
            f"none of the cluster's {len(nodes)} machines has {workers.cores} cores and {workers.gpus} GPUs: use fewer "
            "--cores or --gpus"
        )
    others = sorted({node["NodeManagerHostname"] for node in nodes} - {socket.gethostname()})
    if others and not os.environ.get(VARIABLE, "sqlite").startswith("postgres"):
        raise PipelineError(
            f"the cluster has other machines than this one, such as {others[0]}: set {VARIABLE} to a PostgreSQL "
            "database that all of them reach"
        )
    if others and search.store.file:
        raise PipelineError(
            f"the cluster has other machines than this one, such as {others[0]}: set MLFLOW_TRACKING_URI to a server "
            "that all of them reach"
        )


def worker_command(name: str, study: str, trials: int | None, gpus: int) -> list[str]:
    """The command of one worker."""
    command = [sys.executable, "-m", "pipeline.sweep", name, "--study", study, "--worker", "--jobs", "1"]
    return [*command, "--gpus", str(gpus), *(["--trials", str(trials)] if trials else [])]
