"""Measure how accurate the recipes get and what they cost, beside plain scripts of the same job, and what serving does.

Needs the four MNIST files at hand: in ../shared/mnist beside the project, or in the folder DATASET_MIRROR.
Prints tables, writes docs/bench.json and draws docs/accuracy.svg. Commit first: what is measured is a clone of HEAD.
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

from benchmarks.command import ROOT, clone, epoch_seconds, repro, run
from benchmarks.comparison import draw
from benchmarks.figures import Figures, add, report
from benchmarks.idea import measure_idea, measure_tests
from benchmarks.recipes import measure_recipes
from benchmarks.serving import measure_engines, measure_http, measure_memory
from pipeline.machine import describe_machine, describe_versions

BENCH = ROOT / "docs" / "bench.json"
TAGGING = 10.0  # seconds after which the process that tags the gate's run is gone
MIN_EPOCHS = 2  # the first one is not compared
STAGES = ("compose", "fetch", "preprocess", "evaluate")  # train tells of itself
EMPTY = "stages:\n  only:\n    cmd: python -c pass\n    deps: [input]\n"


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--pairs", type=int, default=3, help="script and pipeline in turn, so often (default: 3)")
    parser.add_argument("--epochs", type=int, default=20, help="epochs of each (default: 20, the notebook's)")
    parser.add_argument("--only", choices=PARTS, help="measure one part; the other figures stay as they are")
    parser.add_argument("--quick", action="store_true", help=f"measure {' and '.join(QUICK)} once, within ten minutes")
    parser.add_argument(
        "--torch", metavar="PYTHON", help="a Python that has torch, for the script of PyTorch's example"
    )
    arguments = parser.parse_args()
    if arguments.pairs < 1 or arguments.epochs < MIN_EPOCHS:
        parser.error(f"--pairs must be 1 or more, --epochs {MIN_EPOCHS} or more")
    parts = [arguments.only] if arguments.only else [*(QUICK if arguments.quick else PARTS)]
    if arguments.quick:
        arguments.pairs = 1
    data = Path(os.environ.get("DATASET_MIRROR") or ROOT.parent / "shared" / "mnist")
    if not data.is_dir():
        sys.exit(f"benchmarks: {data} is no folder: set DATASET_MIRROR to one with the four MNIST files")
    commit = run(["git", "rev-parse", "--short=7", "HEAD"], ROOT).output.strip()
    with tempfile.TemporaryDirectory() as folder:
        for part in parts:
            figures = PARTS[part](Path(folder), data, arguments)
            report(BENCH, part, figures, f"{describe_machine()}; {describe_versions()}", commit)
    draw(json.loads(BENCH.read_text(encoding="utf-8")), ROOT / "docs" / "accuracy.svg")


def measure_pipeline(folder: Path, data: Path, arguments: argparse.Namespace) -> Figures:
    """What `dvc repro` and the gate cost."""
    pairs, epochs = arguments.pairs, arguments.epochs
    figures, project = compare(folder, data, pairs, epochs)
    figures |= measure_no_op(folder, project, 3 * pairs)
    figures |= measure_gate(project, 3 * pairs)
    return figures | measure_stages(project, data, pairs)


def measure_ideas(folder: Path, data: Path, arguments: argparse.Namespace) -> Figures:
    """What an idea costs."""
    return measure_idea(folder, data, arguments.pairs)


def measure_suite(folder: Path, _: Path, __: argparse.Namespace) -> Figures:
    """What the tests cost."""
    return measure_tests(folder)


def measure_serving(folder: Path, data: Path, arguments: argparse.Namespace) -> Figures:
    """What answers cost."""
    project = clone(folder / "served")
    return measure_engines(ROOT / "conf", 3 * arguments.pairs) | measure_champion(project, data, arguments.pairs)


def measure_accuracy(folder: Path, data: Path, arguments: argparse.Namespace) -> Figures:
    """How accurate each recipe gets, how soon."""
    return measure_recipes(folder, data, sys.executable, arguments.torch)


def measure_champion(project: Path, data: Path, rounds: int) -> Figures:
    """Train, promote and serve in a clone."""
    repro(project, data, notebook(seed=1, epochs=MIN_EPOCHS))
    identity = ["-c", "user.name=benchmark", "-c", "user.email=benchmark@localhost"]
    run(["git", *identity, "commit", "-qam", "a champion"], project)
    promoted = run([sys.executable, "-m", "pipeline.promote", "--base", "HEAD"], project)
    metrics = json.loads((project / "reports" / "metrics.json").read_text(encoding="utf-8"))
    name = metrics["dataset"]["name"]
    figures = measure_http(project, metrics["mlflow"]["run_id"], name, rounds) | measure_memory(project, name)
    add(figures, "promote_seconds", promoted.seconds, "s")
    return figures


def compare(folder: Path, data: Path, pairs: int, epochs: int) -> tuple[Figures, Path]:
    """`dvc repro` of recipe=notebook in fresh clones against the script, in turn; the figures and the last clone."""
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
        told = json.loads(plain.output.splitlines()[-1])
        project = clone(folder / f"clone-{pair}")
        whole = repro(project, data, notebook(seed=pair + 1, epochs=epochs))
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
    """The notebook's recipe as params.yaml has it."""
    return {"recipe": "notebook", "seed": seed, "training": {"epochs": epochs}}


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


PARTS = {
    "idea": measure_ideas,
    "pipeline": measure_pipeline,
    "serving": measure_serving,
    "tests": measure_suite,
    "recipes": measure_accuracy,
}
QUICK = ("idea", "pipeline")


if __name__ == "__main__":
    main()
