"""Simulate how often the gate stops a worse model, and how often it stops one that is not worse.

Baseline and candidate are drawn from real runs of recipe=baseline on MNIST that differ only in their seed, so seed
noise is the measured one; runs.csv lists the runs that misclassify each test image. The candidate's runs then
misclassify further images: half of them among the hard images, weighted by how much seeds disagree about each, and half
among the images that no run misclassifies, all with the same probability.
Prints a table and writes it to docs/gate.md.
"""

import argparse
import csv
import itertools
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.progress import Progress

from pipeline.commands.gate.record import measure_noise
from pipeline.commands.gate.report import Misclassification, Report
from pipeline.commands.gate.results import Results
from pipeline.commands.gate.verdict import judge
from pipeline.core.config import Gate
from pipeline.core.files import write_text
from pipeline.core.records import ClassRecall, ComparedEvaluation, ComparedFigures, ScoredImages

RUNS = Path(__file__).parent / "runs.csv"
PAGE = Path(__file__).parent.parent / "docs" / "gate.md"
MARKS = "<!-- make gate-power -->"
CLASS_IMAGES = (980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009)  # per class of MNIST's test set
DROPS = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0)  # percentage points
SEEDS = (1, 3, 5)
THRESHOLDS = (0.1, 0.5)  # percentage points that common gates allow
BLIND = "McNemar alone"
GATES = ("gate", BLIND, *(f"− {limit}" for limit in THRESHOLDS))
GATE = Gate(base="", alpha=0.05, floor={}, loss_rise=0.0, calibration_rise=0.0, seed_noise={})


class Runs(NamedTuple):
    """Misclassified test images of each run, and the labels of all test images."""

    wrong: NDArray[np.bool_]  # (runs, images)
    labels: NDArray[np.int64]


def main() -> None:
    """Run the simulation, print its table and write it to docs/gate.md."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gate_power", description=__doc__)
    parser.add_argument("--trials", type=int, default=3000, help="trials per drop and number of seeds (default: 3000)")
    trials: int = parser.parse_args().trials
    runs, random = read_runs(RUNS), np.random.default_rng(1)
    with Progress() as progress:
        task = progress.add_task("trials", total=len(DROPS) * len(SEEDS) * trials)
        rates = {}
        for drop, seeds in itertools.product(DROPS, SEEDS):
            fired = []
            for _ in range(trials):
                fired.append(fires(runs, seeds, drop, random))
                progress.advance(task)
            rates[drop, seeds] = np.mean(fired, axis=0)
    table = markdown(rates, trials, len(runs.wrong))
    print(table)
    before, _, after = PAGE.read_text(encoding="utf-8").split(MARKS)
    write_text(PAGE, f"{before}{MARKS}\n\n{table}\n\n{MARKS}{after}")


def read_runs(path: Path) -> Runs:
    """Read the runs; images that no run misclassifies get the remaining labels in any order."""
    rows = list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))
    seeds = sorted({int(seed) for row in rows for seed in row["seeds"].split()})
    wrong = np.zeros((len(seeds), sum(CLASS_IMAGES)), bool)
    labels = np.full(wrong.shape[1], -1)
    for row in rows:
        labels[int(row["index"])] = int(row["label"])
        wrong[[seeds.index(int(seed)) for seed in row["seeds"].split()], int(row["index"])] = True
    left = CLASS_IMAGES - np.bincount(labels[labels >= 0], minlength=len(CLASS_IMAGES))
    labels[labels < 0] = np.repeat(np.arange(len(CLASS_IMAGES)), left)
    return Runs(wrong, labels)


def fires(runs: Runs, seeds: int, drop: float, random: np.random.Generator) -> list[bool]:
    """Run one trial: whether the gate, the gate without a noise record, and each threshold stop the candidate."""
    order = random.permutation(len(runs.wrong))
    drawn, rest = runs.wrong[order[: 2 * seeds]], runs.wrong[order[2 * seeds :]]
    baseline = results(drawn[:seeds], runs.labels)
    candidate = results(worsen(drawn[seeds:], harm(runs.wrong, drop), random), runs.labels)
    blind = judge(candidate, baseline, GATE)
    noise = measure_noise(results(rest, runs.labels))
    verdict = judge(candidate._replace(noise=noise), baseline._replace(noise=noise), GATE)
    change = 100 * (verdict.figures["accuracy"] - verdict.figures["baseline_accuracy"])
    return [not verdict.passed, not blind.passed, *(change < -limit for limit in THRESHOLDS)]


def harm(wrong: NDArray[np.bool_], drop: float) -> NDArray[np.float64]:
    """Probability of misclassifying each image that a run classified correctly; `drop` is in percentage points."""
    share = wrong.mean(axis=0)
    hard = share * (1 - share)
    easy = (share == 0).astype(float)
    lost = drop / 100 * wrong.shape[1] * (hard / hard.sum() + easy / easy.sum()) / 2
    return np.asarray(np.minimum(lost / np.maximum(1 - share, 1e-9), 1))


def worsen(wrong: NDArray[np.bool_], harmed: NDArray[np.float64], random: np.random.Generator) -> NDArray[np.bool_]:
    """Runs with further misclassified images, drawn with the probabilities `harmed`."""
    return wrong | (random.random(wrong.shape) < harmed)


def results(wrong: NDArray[np.bool_], labels: NDArray[np.int64]) -> Results:
    """One of the compared models, as the gate reads it from reports."""
    return Results("simulated", [report(run, labels) for run in wrong], {"recipe": "baseline"}, {})


def report(wrong: NDArray[np.bool_], labels: NDArray[np.int64]) -> Report:
    """A report with the figures that the verdict uses, built without validation, which would take most of the time."""
    missed = np.bincount(labels[wrong], minlength=len(CLASS_IMAGES))
    per_class = ClassRecall.model_construct(recall=list(1 - missed / CLASS_IMAGES), images=list(CLASS_IMAGES))
    figures = {"accuracy": 1 - wrong.mean(), "errors": int(wrong.sum()), "images": len(wrong)}
    test = ComparedFigures.model_construct(**figures, loss=0.0, calibration_error=0.0, per_class=per_class)
    data = ScoredImages.model_construct(name="mnist", test_md5="")
    misclassified = {int(index): Misclassification(int(labels[index]), -1) for index in np.flatnonzero(wrong)}
    return Report(ComparedEvaluation.model_construct(test=test, dataset=data), misclassified)


def markdown(rates: dict[tuple[float, int], NDArray[np.float64]], trials: int, runs: int) -> str:
    """The table of docs/gate.md."""
    columns = [
        (number, name, seeds) for number, name in enumerate(GATES) for seeds in SEEDS if name != BLIND or seeds == 1
    ]
    header = ["drop", *(f"{name}: {seeds} seed{'s' * (seeds > 1)}" for _, name, seeds in columns)]
    rows = [
        [f"{drop:g}", *(f"{100 * rates[drop, seeds][number]:.1f}" for number, _, seeds in columns)] for drop in DROPS
    ]
    table = "\n".join(f"| {' | '.join(line)} |" for line in [header, ["---:"] * len(header), *rows])
    return (
        f"{table}\n\nPer cent of {trials:,} trials each, drawn from {runs} runs of recipe=baseline, alpha {GATE.alpha}."
    )


if __name__ == "__main__":
    main()
