"""Measure what the pipeline costs beside a plain Keras script of the notebook, and what a served model does.

Needs the four MNIST files at hand: in ../shared/mnist beside the project, or in the folder DATASET_MIRROR.
Prints a table and writes docs/bench.json. Commit first: what is measured is a clone of HEAD.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from mlflow import MlflowClient
from rich.console import Console
from rich.table import Table

from benchmarks.figures import Figures, add
from benchmarks.script import PLAIN
from benchmarks.serving import measure_engines, measure_http
from pipeline.files import write_json
from pipeline.machine import describe_machine, describe_versions

ROOT = Path(__file__).parent.parent
TAGGING = 10.0  # seconds after which the process that tags the gate's run is gone
MIN_EPOCHS = 2  # the first one is not compared
STAGES = ("compose", "fetch", "preprocess", "evaluate")  # train tells of itself
EMPTY = "stages:\n  only:\n    cmd: python -c pass\n    deps: [input]\n"

# A process counts the memory of the one that it was forked from, so a small one starts what is measured.
LAUNCHER = """
import resource, subprocess, sys, time
started = time.perf_counter()
code = subprocess.run(sys.argv[2:]).returncode
seconds, usage = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
open(sys.argv[1], "w").write(f"{seconds} {usage.ru_maxrss}")
sys.exit(code)
"""


class Finished(NamedTuple):
    """A command that has ended: its wall time, its peak memory and what it printed."""

    seconds: float
    peak_mib: float
    output: str


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--pairs", type=int, default=3, help="script and pipeline in turn, so often (default: 3)")
    parser.add_argument("--epochs", type=int, default=20, help="epochs of each (default: 20, the notebook's)")
    parser.add_argument("--only", choices=PARTS, help="measure one part; the other figures stay as they are")
    arguments = parser.parse_args()
    if arguments.pairs < 1 or arguments.epochs < MIN_EPOCHS:
        parser.error(f"--pairs must be 1 or more, --epochs {MIN_EPOCHS} or more")
    parts = [arguments.only] if arguments.only else [*PARTS]
    data = Path(os.environ.get("DATASET_MIRROR") or ROOT.parent / "shared" / "mnist")
    if not data.is_dir():
        sys.exit(f"benchmarks: {data} is no folder: set DATASET_MIRROR to one with the four MNIST files")
    with tempfile.TemporaryDirectory() as folder:
        for part in parts:
            report(part, PARTS[part](Path(folder), data, arguments.pairs, arguments.epochs))


def measure_pipeline(folder: Path, data: Path, pairs: int, epochs: int) -> Figures:
    """What `dvc repro` and the gate cost."""
    figures, project = compare(folder, data, pairs, epochs)
    figures |= measure_no_op(folder, project, 3 * pairs)
    figures |= measure_gate(project, 3 * pairs)
    return figures | measure_stages(project, data, pairs)


def measure_serving(folder: Path, data: Path, pairs: int, _: int) -> Figures:
    """What answers cost."""
    project = clone(folder / "served", seed=1, epochs=MIN_EPOCHS)
    return measure_engines(ROOT / "conf", 3 * pairs) | measure_champion(project, data, pairs)


def measure_champion(project: Path, data: Path, rounds: int) -> Figures:
    """Train, promote and serve in a clone."""
    run(["dvc", "repro"], project, DATASET_MIRROR=str(data))
    identity = ["-c", "user.name=benchmark", "-c", "user.email=benchmark@localhost"]
    run(["git", *identity, "commit", "-qam", "a champion"], project)
    promoted = run([sys.executable, "-m", "pipeline.promote", "--base", "HEAD"], project)
    metrics = json.loads((project / "reports" / "metrics.json").read_text(encoding="utf-8"))
    figures = measure_http(project, metrics["mlflow"]["run_id"], metrics["dataset"]["name"], rounds)
    add(figures, "promote_seconds", promoted.seconds, "s")
    return figures


def compare(folder: Path, data: Path, pairs: int, epochs: int) -> tuple[Figures, Path]:
    """`dvc repro` of recipe=notebook in fresh clones against the script, in turn; the figures and the last clone."""
    script = folder / "script.py"
    script.write_text(PLAIN, encoding="utf-8")
    figures: Figures = {
        "epoch_ratio": ([], "ratio"),
        "cold_repro_ratio": ([], "ratio"),
        "script_seconds": ([], "s"),
        "script_epoch_seconds": ([], "s"),
        "script_accuracy": ([], "share"),
        "script_loss": ([], "nats"),
        "script_peak_mib": ([], "MiB"),
        "repro_seconds": ([], "s"),
        "repro_epoch_seconds": ([], "s"),
        "repro_accuracy": ([], "share"),
        "repro_loss": ([], "nats"),
    }
    project = folder
    for pair in range(pairs):
        plain = run([sys.executable, str(script), str(data), str(epochs)], folder)
        told = json.loads(plain.output.splitlines()[-1])
        project = clone(folder / f"clone-{pair}", seed=pair + 1, epochs=epochs)
        whole = run(["dvc", "repro"], project, DATASET_MIRROR=str(data))
        metrics = json.loads((project / "reports" / "metrics.json").read_text(encoding="utf-8"))["test"]
        # Without the first epoch, which compiles on both sides and is part of the whole time.
        theirs, ours = statistics.median(told["epoch_seconds"][1:]), statistics.median(epoch_seconds(project))
        for name, value in {
            "epoch_ratio": ours / theirs,
            "cold_repro_ratio": whole.seconds / plain.seconds,
            "script_seconds": plain.seconds,
            "script_epoch_seconds": theirs,
            "script_accuracy": told["accuracy"],
            "script_loss": told["loss"],
            "script_peak_mib": plain.peak_mib,
            "repro_seconds": whole.seconds,
            "repro_epoch_seconds": ours,
            "repro_accuracy": metrics["accuracy"],
            "repro_loss": metrics["loss"],
        }.items():
            figures[name][0].append(value)
        facts = json.loads((project / "models" / "run.json").read_text(encoding="utf-8"))
        for name, value in facts["seconds"].items():
            figures.setdefault(f"train_{name}_seconds", ([], "s"))[0].append(value)
        figures.setdefault("train_seconds", ([], "s"))[0].append(sum(facts["seconds"].values()))
        figures.setdefault("train_peak_mib", ([], "MiB"))[0].append(facts["peak_memory_mib"])
        print(f"pair {pair + 1} of {pairs}: script {plain.seconds:.1f} s, dvc repro {whole.seconds:.1f} s", flush=True)
    return figures, project


def clone(folder: Path, seed: int, epochs: int) -> Path:
    """HEAD in a folder of its own, with nothing in DVC's cache, set to the notebook's recipe."""
    subprocess.run(["git", "clone", "-q", str(ROOT), str(folder)], check=True)
    params = f"recipe: notebook\nseed: {seed}\ntraining: {{epochs: {epochs}}}\n"
    (folder / "params.yaml").write_text(params, encoding="utf-8")
    return folder


def measure_no_op(folder: Path, project: Path, times: int) -> Figures:
    """`dvc repro` with nothing to do against the same in an empty project of one stage, in turn."""
    empty = folder / "empty"
    empty.mkdir()
    for command in (["git", "init", "-q"], ["dvc", "init", "-q"]):
        run(command, empty)
    (empty / "dvc.yaml").write_text(EMPTY, encoding="utf-8")
    (empty / "input").touch()
    run(["dvc", "config", "core.analytics", "false"], empty)
    run(["dvc", "repro"], empty)
    ours, theirs = [], []
    for _ in range(times + 1):
        ours.append(run(["dvc", "repro"], project).seconds)
        theirs.append(run(["dvc", "repro"], empty).seconds)
    ratios = [mine / other for mine, other in zip(ours[1:], theirs[1:], strict=True)]  # the first warms the files up
    return {"noop_ratio": (ratios, "ratio"), "noop_seconds": (ours[1:], "s"), "noop_empty_seconds": (theirs[1:], "s")}


def measure_gate(project: Path, times: int) -> Figures:
    """The gate, of which `dvc status` is a part, and `dvc status` alone, in turn; judged is a model against itself."""
    whole, status = [], []
    for _ in range(times + 1):
        status.append(run([sys.executable, "-m", "dvc", "status", "--json"], project).seconds)
        whole.append(run([sys.executable, "-m", "pipeline.gate", "--base", "."], project).seconds)
        time.sleep(TAGGING)
    own = [both - alone for both, alone in zip(whole[1:], status[1:], strict=True)]  # the first warms the files up
    return {"gate_seconds": (whole[1:], "s"), "gate_beside_status_seconds": (own, "s")}


def measure_stages(project: Path, data: Path, times: int) -> Figures:
    """Wall time and peak memory of each stage but train."""
    figures: Figures = {}
    for stage in STAGES:
        finished = []
        for _ in range(times):
            if stage == "fetch":
                shutil.rmtree(project / "data" / "raw")  # else there is nothing to do
            finished.append(run([sys.executable, "-m", f"pipeline.{stage}"], project, DATASET_MIRROR=str(data)))
        figures[f"{stage}_seconds"] = ([each.seconds for each in finished], "s")
        figures[f"{stage}_peak_mib"] = ([each.peak_mib for each in finished], "MiB")
    return figures


def run(command: list[str], folder: Path, **settings: str) -> Finished:
    """Run a command to its end. Raises SystemExit with its output if it fails."""
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


def epoch_seconds(project: Path) -> list[float]:
    """From the end of each epoch to the end of the next: checkpoints and recording included."""
    client = MlflowClient(f"sqlite:///{project}/mlflow.db")
    (experiment,) = [each for each in client.search_experiments() if each.name == "mnist"]
    (newest,) = client.search_runs([experiment.experiment_id], max_results=1)
    history = client.get_metric_history(newest.info.run_id, "train/loss")
    return [later - earlier for earlier, later in pairwise(sorted(point.timestamp / 1000 for point in history))]


PARTS = {"pipeline": measure_pipeline, "serving": measure_serving}


def report(part: str, figures: Figures) -> None:
    """Print the table of a part and put it into docs/bench.json, in place of what it was."""
    machine = f"{describe_machine()}; {describe_versions()}"
    table = Table("figure", "median", "min", "max", "n", "unit", title=machine, title_justify="left")
    path = ROOT / "docs" / "bench.json"
    told: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    summary: dict[str, dict[str, Any]] = {}
    for name, (values, unit) in figures.items():
        spread = {"median": statistics.median(values), "min": min(values), "max": max(values)}
        rounded = {key: float(f"{value:.5g}") for key, value in spread.items()}
        summary[name] = rounded | {"n": len(values), "unit": unit}
        table.add_row(name, *(f"{value:g}" for value in rounded.values()), str(len(values)), unit)
    Console(width=120).print(table)
    write_json(path, told | {part: {"machine": machine, "figures": summary}})


if __name__ == "__main__":
    main()
