"""Measure training on this machine's GPU with JAX, in less than ten minutes; write the part `gpu` of docs/bench.json.

Needs a GPU that JAX can use, and the four MNIST files in ../shared/mnist beside the project or in the folder that
DATASET_MIRROR names. Does not need git, DVC or TensorFlow: the stages run sequentially in temporary folders.
"""

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from mlflow import MlflowClient

from benchmarks.command import ROOT, run
from benchmarks.figures import Figures, add, report
from benchmarks.recipes import WIDE

SETTINGS = {"KERAS_BACKEND": "jax", "DEVICE": "gpu"}
RECIPES: dict[str, dict[str, Any]] = {
    "notebook": {"recipe": "notebook"},
    "fast": {"recipe": "fast"},
    "quick": {"recipe": "quick"},
    "quick_wider": {"recipe": "quick", "model": WIDE, "training": {"epochs": 11}},
    "champion_12_epochs": {"recipe": "champion", "training": {"epochs": 12}},
    "champion": {"recipe": "champion"},
}
TIMED = ("fast", "champion")  # recipes whose updates are timed individually
COLD = ("whole_seconds", "to_trained_seconds", "compile_seconds")  # reported while nothing is compiled yet
TOGETHER = 6  # parallel trainings that are scored but not timed
PRECISIONS = "float32,mixed_bfloat16"
BATCH_SIZES = "200,1000"
LOAD = {"utilization_percentage": "%", "memory_usage_megabytes": "MB", "power_usage_watts": "W"}


class Trained(NamedTuple):
    """A finished training: seconds of the process, of each epoch and of each part, and the load of the GPU."""

    whole: float
    epochs: list[float]
    facts: dict[str, Any]
    load: dict[str, float]


def main() -> None:
    """Run the benchmark and write its figures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--seeds", type=int, default=5, help="scored trainings of each recipe (default: 5)")
    parser.add_argument("--timed", type=int, default=2, help="number of them that run alone and are timed (default: 2)")
    parser.add_argument("--seconds", type=float, default=300, help="start no timed training later (default: 300)")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "bench.json", help="file to write (%(default)s)")
    parser.add_argument("--commit", default="unknown", help="commit to record with the figures")
    arguments = parser.parse_args()
    data = Path(os.environ.get("DATASET_MIRROR") or ROOT.parent / "shared" / "mnist").resolve()
    deadline = time.monotonic() + arguments.seconds
    with tempfile.TemporaryDirectory() as temporary, ThreadPoolExecutor(8) as pool:
        folder = Path(temporary)
        prepared = pool.map(lambda name: prepare(folder / name, RECIPES[name], data), RECIPES)
        projects = dict(zip(RECIPES, prepared, strict=True))
        figures, trained = time_trainings(projects, arguments.timed, deadline)
        seeds = range(arguments.timed + 1, arguments.seeds + 1)
        trained += train_together([(name, projects[name], seed) for seed in seeds for name in projects])
        card, timed = time_updates(projects, folder / "notebook")
        scores = pool.map(evaluate, trained)  # in parallel, because they are not timed
        for (name, _), accuracy in zip(trained, scores, strict=True):
            add(figures, f"{name}_accuracy", accuracy, "share")
        facts = facts_of(projects["notebook"])
        report(
            arguments.output,
            "gpu",
            figures | timed,
            f"{card}; {facts['machine']}; {facts['versions']}",
            arguments.commit,
        )


def prepare(project: Path, params: dict[str, Any], data: Path) -> Path:
    """Create a folder in which the train stage can run."""
    project.mkdir()
    for name in ("pipeline", "conf", "benchmarks"):
        shutil.copytree(ROOT / name, project / name, ignore=shutil.ignore_patterns("__pycache__"))
    (project / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    for stage in ("compose", "fetch", "preprocess"):
        run([sys.executable, "-m", f"pipeline.stages.{stage}"], project, DATASET_MIRROR=str(data))
    return project


def time_trainings(projects: dict[str, Path], seeds: int, deadline: float) -> tuple[Figures, list[tuple[str, Path]]]:
    """Train every recipe with nothing compiled yet, then with seeds 1 to `seeds`, alternately, until the deadline.

    Returns the figures, and the name of every training after the first with a folder that contains its network.
    """
    figures: Figures = {}
    trained = []
    for seed in range(seeds + 1):
        for name, project in projects.items():
            if time.monotonic() > deadline:
                break
            one = train(project, max(seed, 1))
            for figure, (value, unit) in describe(one).items():
                if seed or figure in COLD:
                    add(figures, f"{name}_{figure}" if seed else f"{name}_cold_{figure}", value, unit)
            print(f"seed {seed}: {name} {one.whole:.1f} s, fit {one.facts['seconds']['fit']:.2f} s", flush=True)
            if seed:
                trained.append((name, copy(project, seed)))
    return figures, trained


def train_together(jobs: list[tuple[str, Path, int]]) -> list[tuple[str, Path]]:
    """Train further seeds of the recipes in parallel, in copies of their projects."""
    folders = [copy(project, seed) for _, project, seed in jobs]
    with ThreadPoolExecutor(TOGETHER) as pool:
        for _ in pool.map(train, folders, [seed for _, _, seed in jobs]):
            pass
    return [(name, folder) for (name, _, _), folder in zip(jobs, folders, strict=True)]


def copy(project: Path, seed: int) -> Path:
    """Copy a project with its compilation cache and without its runs."""
    folder = project.parent / f"{project.name}-{seed}"
    shutil.copytree(project, folder, ignore=shutil.ignore_patterns("mlflow.db*", "mlartifacts", "benchmarks"))
    return folder


def train(project: Path, seed: int) -> Trained:
    """Run the train stage with a seed."""
    set_seed(project, seed)
    whole = run([sys.executable, "-m", "pipeline.stages.train"], project, **SETTINGS).seconds
    facts = facts_of(project)
    client = MlflowClient(f"sqlite:///{project}/mlflow.db")
    metrics = client.get_run(facts["run_id"]).data.metrics
    history = client.get_metric_history(facts["run_id"], "train/seconds_per_epoch")
    recorded = [name for name in LOAD if f"system/gpu_0_{name}" in metrics]
    load = {name: largest(client, facts["run_id"], f"system/gpu_0_{name}") for name in recorded}
    return Trained(whole, [point.value for point in sorted(history, key=lambda point: point.step)], facts, load)


def set_seed(project: Path, seed: int) -> None:
    """Compose the configuration with a seed that affects everything except the split."""
    params = yaml.safe_load((project / "params.yaml").read_text(encoding="utf-8"))
    (project / "params.yaml").write_text(yaml.safe_dump(params | {"seed": seed}), encoding="utf-8")
    run([sys.executable, "-m", "pipeline.stages.compose"], project)


def until_fit(facts: dict[str, Any]) -> float:
    """Seconds from the start of the process to the first epoch."""
    return sum(seconds for name, seconds in facts["seconds"].items() if name not in ("fit", "save"))


def largest(client: MlflowClient, run_id: str, name: str) -> float:
    """Largest value in the history of a metric."""
    return max(point.value for point in client.get_metric_history(run_id, name))


def facts_of(project: Path) -> dict[str, Any]:
    """Content of models/run.json, which the train stage writes."""
    facts: dict[str, Any] = json.loads((project / "models" / "run.json").read_text(encoding="utf-8"))
    return facts


def describe(one: Trained) -> dict[str, tuple[float, str]]:
    """Figures of a training, with their units."""
    parts = one.facts["seconds"]
    measured = {f"{name}_seconds": (value, "s") for name, value in parts.items()}
    measured |= {"whole_seconds": (one.whole, "s"), "to_trained_seconds": (until_fit(one.facts) + parts["fit"], "s")}
    measured |= {"first_epoch_seconds": (one.epochs[0], "s"), "epoch_seconds": (statistics.median(one.epochs[1:]), "s")}
    return measured | {f"gpu_{name}": (value, LOAD[name]) for name, value in one.load.items()}


def time_updates(projects: dict[str, Path], folder: Path) -> tuple[str, Figures]:
    """Name of the device, and update times of the recipes' networks at several batch sizes and precisions."""
    for name in TIMED:
        shutil.copy(projects[name] / "composed.yaml", folder / f"{name}.yaml")
    asked = [",".join(f"{name}.yaml" for name in TIMED), PRECISIONS, BATCH_SIZES]
    output = run([sys.executable, "-m", "benchmarks.updates", *asked], folder, **SETTINGS).output
    device, *rows = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    figures: Figures = {"peak_bfloat16": ([device["peak"] / 1e12], "TFLOP/s")}
    for row in rows:
        name = f"{row['config'].removesuffix('.yaml')}_{row['precision']}_batch_{row['batch_size']}"
        figures[f"{name}_update_microseconds"] = ([1e6 * seconds for seconds in row["update_seconds"]], "µs")
        figures[f"{name}_pass_milliseconds"] = ([1e3 * seconds for seconds in row["pass_seconds"]], "ms")
        speeds = [row["operations"] / seconds / device["peak"] for seconds in row["update_seconds"]]
        figures[f"{name}_share_of_peak"] = (speeds, "ratio")
        figures[f"{name}_launches"] = ([row["launches"]], "kernels")
        figures[f"{name}_compile_seconds"] = ([row["compile_seconds"]], "s")
    return device["name"], figures


def evaluate(trained: tuple[str, Path]) -> float:
    """Test accuracy of a trained network, from the evaluate stage, the only one that uses the test images."""
    _, project = trained
    run([sys.executable, "-m", "pipeline.stages.evaluate"], project, **SETTINGS)
    metrics = json.loads((project / "reports" / "evaluation.json").read_text(encoding="utf-8"))
    return float(metrics["test"]["accuracy"])


if __name__ == "__main__":
    main()
