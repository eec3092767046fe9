"""Timed commands in clones of the project, and the times of their epochs."""

import json
import os
import subprocess
import sys
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from mlflow import MlflowClient

ROOT = Path(__file__).parent.parent

# The peak memory of a process includes that of the process it was forked from, so a small one starts the command.
LAUNCHER = """
import resource, subprocess, sys, time
started = time.perf_counter()
code = subprocess.run(sys.argv[2:]).returncode
seconds, usage = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
open(sys.argv[1], "w").write(f"{seconds} {usage.ru_maxrss}")
sys.exit(code)
"""


class Finished(NamedTuple):
    """A finished command: its wall time, its peak memory and its output."""

    seconds: float
    peak_mib: float
    output: str


def run(command: list[str], folder: Path, **settings: str) -> Finished:
    """Run a command and wait for it. Raises SystemExit with its output if it fails."""
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"} | settings
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "DVC_ROOT", "DVC_EXP_NAME"):
        environment.pop(name, None)
    with tempfile.TemporaryFile("w+") as output, tempfile.NamedTemporaryFile("r") as usage:
        launch = [sys.executable, "-S", "-c", LAUNCHER, usage.name, *command]
        code = subprocess.run(
            launch, cwd=folder, env=environment, stdout=output, stderr=subprocess.STDOUT, check=False
        ).returncode
        output.seek(0)
        text = output.read()
        if code:
            sys.exit(f"benchmarks: {' '.join(command)} failed in {folder}:\n{text}")
        seconds, peak = map(float, usage.read().split())
    return Finished(seconds, peak / (1 << 10), text)


def clone(folder: Path) -> Path:
    """Clone HEAD into a new folder, with an empty DVC cache."""
    subprocess.run(["git", "clone", "-q", str(ROOT), str(folder)], check=True)
    return folder


class Outcome(NamedTuple):
    """Results of a `dvc repro`: the test metrics, the content of models/run.json, and the wall time."""

    test: dict[str, Any]
    train: dict[str, Any]
    seconds: float


def repro(project: Path, data: Path, params: dict[str, Any]) -> Outcome:
    """Run `dvc repro` in a project with `params` in params.yaml and the dataset's files in `data`."""
    (project / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    finished = run(["dvc", "repro"], project, DATASET_MIRROR=str(data))
    metrics = json.loads((project / "reports" / "evaluation.json").read_text(encoding="utf-8"))
    facts = json.loads((project / "models" / "run.json").read_text(encoding="utf-8"))
    return Outcome(metrics["test"], facts, finished.seconds)


def epoch_seconds(project: Path) -> list[float]:
    """Seconds from the end of each epoch to the end of the next, including checkpoints and recording."""
    client = MlflowClient(f"sqlite:///{project}/mlflow.db")
    (experiment,) = [each for each in client.search_experiments() if each.name == "mnist"]
    (newest,) = client.search_runs([experiment.experiment_id], max_results=1)
    history = client.get_metric_history(newest.info.run_id, "train/loss")
    return [later - earlier for earlier, later in pairwise(sorted(point.timestamp / 1000 for point in history))]
