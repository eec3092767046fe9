"""Measure the accuracy and cost of the recipes, compared with plain scripts for the same task, and the cost of serving.

Needs the four MNIST files in ../shared/mnist beside the project, or in the folder that DATASET_MIRROR names.
Prints tables, writes docs/bench.json and draws docs/accuracy.svg. Commit first: the benchmark clones HEAD.
"""

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.backends import measure_backends, measure_epochs, measure_fast
from benchmarks.command import ROOT, clone, epoch_seconds, repro, run
from benchmarks.comparison import draw
from benchmarks.devices import measure_devices
from benchmarks.figures import Figures, add, report
from benchmarks.idea import measure_idea, measure_tests
from benchmarks.recipes import measure_recipes
from benchmarks.serving import measure_engines, measure_http, measure_memory
from benchmarks.sweeps import measure_sweeps
from benchmarks.team import measure_team
from pipeline.core.machine import describe_machine, describe_versions

BENCH = ROOT / "docs" / "bench.json"
TAGGING = 10.0  # seconds, after which the process that tags the gate's run has exited
MIN_EPOCHS = 2  # the comparison leaves out the first epoch
STAGES = ("compose", "fetch", "preprocess", "evaluate")  # train records its own figures
EMPTY = "stages:\n  only:\n    cmd: python -c pass\n    deps: [input]\n"


def main() -> None:
    """Run the selected benchmarks, print their tables and write the files."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--pairs", type=int, default=3, help="alternating runs of script and pipeline (default: 3)")
    parser.add_argument("--epochs", type=int, default=20, help="epochs of each run (default: 20, as in the notebook)")
    parser.add_argument("--only", choices=PARTS, help="measure one part and keep the figures of the others")
    parser.add_argument("--quick", action="store_true", help=f"measure {' and '.join(QUICK)} once, within ten minutes")
    parser.add_argument("--torch", metavar="PYTHON", help="a Python interpreter with PyTorch")
    arguments = parser.parse_args()
    if arguments.pairs < 1 or arguments.epochs < MIN_EPOCHS:
        parser.error(f"--pairs must be at least 1, and --epochs at least {MIN_EPOCHS}")
    parts = [arguments.only] if arguments.only else [*(QUICK if arguments.quick else PARTS)]
    if arguments.quick:
        arguments.pairs = 1
    data = Path(os.environ.get("DATASET_MIRROR") or ROOT.parent / "shared" / "mnist")
    if not data.is_dir():
        sys.exit(f"benchmarks: {data} is not a folder: set DATASET_MIRROR to a folder with the four MNIST files")
    commit = run(["git", "rev-parse", "--short=7", "HEAD"], ROOT).output.strip()
    with tempfile.TemporaryDirectory() as folder:
        for part in parts:
            figures = PARTS[part](Path(folder), data, arguments)
            report(BENCH, part, figures, f"{describe_machine()}; {describe_versions()}", commit)
    draw(json.loads(BENCH.read_text(encoding="utf-8")), ROOT / "docs" / "accuracy.svg")


def measure_pipeline(folder: Path, data: Path, arguments: argparse.Namespace) -> Figures:
    """Measure `dvc repro`, its stages and the gate."""
    pairs, epochs = arguments.pairs, arguments.epochs
    figures, project = compare(folder, data, pairs, epochs)
    figures |= measure_no_op(folder, project, 3 * pairs)
    figures |= measure_gate(project, 3 * pairs)
    return figures | measure_stages(project, data, pairs)


def measure_ideas(folder: Path, data: Path, arguments: argparse.Namespace) -> Figures:
    """Measure the time from a configuration change to its result."""
    return measure_idea(folder, data, arguments.pairs)


def measure_suite(folder: Path, _: Path, __: argparse.Namespace) -> Figures:
    """Measure the duration of the test suite."""
    return measure_tests(folder)


def measure_serving(folder: Path, data: Path, arguments: argparse.Namespace) -> Figures:
    """Measure the latency of predictions, and the throughput and memory of the server."""
    project = clone(folder / "served")
    return measure_engines(ROOT / "conf", 3 * arguments.pairs) | measure_champion(project, data, arguments.pairs)


def measure_accuracy(folder: Path, data: Path, arguments: argparse.Namespace) -> Figures:
    """Measure the accuracy and training time of every recipe and script."""
    return measure_recipes(folder, data, sys.executable, arguments.torch)


def measure_each_backend(folder: Path, data: Path, arguments: argparse.Namespace) -> Figures:
    """Measure the recipes on every Keras backend."""
    return measure_backends(folder, data, arguments.pairs, arguments.torch)


def measure_backend_epochs(folder: Path, data: Path, arguments: argparse.Namespace) -> Figures:
    """Measure the epochs of the notebook's network on every Keras backend, as ratios to the script's."""
    return measure_epochs(folder, data, arguments.pairs, arguments.torch)


def measure_fast_recipe(folder: Path, data: Path, arguments: argparse.Namespace) -> Figures:
    """Measure recipe=fast as a ratio to all epochs of the script."""
    return measure_fast(folder, data, arguments.pairs)


def measure_scaling(folder: Path, data: Path, arguments: argparse.Namespace) -> Figures:
    """Measure the epochs on several devices and in several processes."""
    return measure_devices(folder, data, arguments.pairs)


def measure_server(folder: Path, _: Path, arguments: argparse.Namespace) -> Figures:
    """Measure a team's server under load."""
    return measure_team(folder, arguments.pairs)


def measure_champion(project: Path, data: Path, rounds: int) -> Figures:
    """Train a champion in a clone, and measure its promotion and serving."""
    repro(project, data, notebook(seed=1, epochs=MIN_EPOCHS))
    identity = ["-c", "user.name=benchmark", "-c", "user.email=benchmark@localhost"]
    run(["git", *identity, "commit", "-qam", "a champion"], project)
    promoted = run([sys.executable, "-m", "pipeline.commands.promote", "--base", "HEAD"], project)
    metrics = json.loads((project / "reports" / "evaluation.json").read_text(encoding="utf-8"))
    name = metrics["dataset"]["name"]
    figures = measure_http(project, metrics["mlflow"]["run_id"], name, rounds) | measure_memory(project, name)
    add(figures, "promote_seconds", promoted.seconds, "s")
    return figures


def compare(folder: Path, data: Path, pairs: int, epochs: int) -> tuple[Figures, Path]:
    """Alternately run the script and `dvc repro` of recipe=notebook in a new clone; return figures and last clone."""
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
        plain = run([sys.executable, "-m", "benchmarks.peers.notebook", str(data), str(epochs)], ROOT)
        measured = json.loads(plain.output.splitlines()[-1])
        project = clone(folder / f"clone-{pair}")
        whole = repro(project, data, notebook(seed=pair + 1, epochs=epochs))
        # The first epoch includes compilation on both sides, so it counts only towards the total time.
        theirs, ours = statistics.median(measured["epoch_seconds"][1:]), statistics.median(epoch_seconds(project))
        for name, value in {
            "epoch_ratio": ours / theirs,
            "cold_repro_ratio": whole.seconds / plain.seconds,
            "script_seconds": plain.seconds,
            "script_epoch_seconds": theirs,
            "script_accuracy": measured["accuracy"],
            "script_loss": measured["loss"],
            "script_peak_mib": plain.peak_mib,
            "repro_seconds": whole.seconds,
            "repro_epoch_seconds": ours,
            "repro_accuracy": whole.test["accuracy"],
            "repro_loss": whole.test["loss"],
        }.items():
            figures[name][0].append(value)
        facts = whole.train
        for name, value in facts["seconds"].items():
            figures.setdefault(f"train_{name}_seconds", ([], "s"))[0].append(value)
        figures.setdefault("train_seconds", ([], "s"))[0].append(sum(facts["seconds"].values()))
        figures.setdefault("train_peak_mib", ([], "MiB"))[0].append(facts["peak_memory_mib"])
        print(f"pair {pair + 1} of {pairs}: script {plain.seconds:.1f} s, dvc repro {whole.seconds:.1f} s", flush=True)
    return figures, project


def notebook(seed: int, epochs: int) -> dict[str, Any]:
    """Content of params.yaml for recipe=notebook."""
    return {"recipe": "notebook", "seed": seed, "training": {"epochs": epochs}}


def measure_no_op(folder: Path, project: Path, times: int) -> Figures:
    """Alternately time `dvc repro` without changes in this project and in an empty project of one stage."""
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
    ratios = [mine / other for mine, other in zip(ours[1:], theirs[1:], strict=True)]  # the first warms the file cache
    return {"noop_ratio": (ratios, "ratio"), "noop_seconds": (ours[1:], "s"), "noop_empty_seconds": (theirs[1:], "s")}


def measure_gate(project: Path, times: int) -> Figures:
    """Alternately time the gate, which runs `dvc status`, and `dvc status` alone; the baseline is the same model."""
    whole, status = [], []
    for _ in range(times + 1):
        status.append(run([sys.executable, "-m", "dvc", "status", "--json"], project).seconds)
        whole.append(run([sys.executable, "-m", "pipeline.commands.gate", "--base", "."], project).seconds)
        time.sleep(TAGGING)
    own = [both - alone for both, alone in zip(whole[1:], status[1:], strict=True)]  # the first warms the file cache
    return {"gate_seconds": (whole[1:], "s"), "gate_beside_status_seconds": (own, "s")}


def measure_stages(project: Path, data: Path, times: int) -> Figures:
    """Measure wall time and peak memory of every stage except train."""
    figures: Figures = {}
    for stage in STAGES:
        finished = []
        for _ in range(times):
            if stage == "fetch":
                shutil.rmtree(project / "data" / "raw")  # otherwise fetch has nothing to do
            finished.append(run([sys.executable, "-m", f"pipeline.stages.{stage}"], project, DATASET_MIRROR=str(data)))
        figures[f"{stage}_seconds"] = ([each.seconds for each in finished], "s")
        figures[f"{stage}_peak_mib"] = ([each.peak_mib for each in finished], "MiB")
    return figures


def measure_each_sweep(folder: Path, data: Path, arguments: argparse.Namespace) -> Figures:
    """Measure what a sweep costs besides its trainings."""
    return measure_sweeps(folder, data, arguments.pairs)


PARTS = {
    "idea": measure_ideas,
    "pipeline": measure_pipeline,
    "serving": measure_serving,
    "tests": measure_suite,
    "recipes": measure_accuracy,
    "backends": measure_each_backend,
    "epochs": measure_backend_epochs,
    "fast": measure_fast_recipe,
    "devices": measure_scaling,
    "team": measure_server,
    "sweeps": measure_each_sweep,
}
QUICK = ("idea", "pipeline")


if __name__ == "__main__":
    main()
