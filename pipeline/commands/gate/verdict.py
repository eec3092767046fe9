"""Decide whether the candidate may replace the baseline, and why."""

from collections.abc import Callable
from statistics import fmean, stdev
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.commands.gate.results import Results
from pipeline.commands.gate.significance import SignificanceTest, Spread, Spreads, Wrong, compare, holm
from pipeline.core.config import Gate, SeedNoise
from pipeline.core.records import ComparedFigures

Mark = Literal["pass", "warn", "FAIL", "–"]
TESTS = 2  # of accuracy and of recall, each at half of alpha


class Check(NamedTuple):
    """One line of the verdict."""

    name: str
    outcome: Mark
    baseline: str
    candidate: str
    remark: str


class Verdict(NamedTuple):
    """All checks, notes on the data behind them, and their figures by name."""

    checks: list[Check]
    notes: list[str]
    figures: dict[str, Any]

    @property
    def passed(self) -> bool:
        """Whether no check failed."""
        return all(check.outcome != "FAIL" for check in self.checks)


class Pair(NamedTuple):
    """The errors of all runs on the images that at least one of them misclassifies, and the labels of these images."""

    candidate: Wrong
    baseline: Wrong
    labels: NDArray[np.int64]


def judge(candidate: Results, baseline: Results | None, gate: Gate) -> Verdict:
    """Check the candidate against the floor and, if given, the baseline."""
    figures: dict[str, Any] = {"accuracy": mean(candidate, accuracy), "runs": len(candidate.reports)}
    floor = check_floor(candidate, gate)
    if baseline is None:
        return Verdict([floor], [], figures)
    pair = align(candidate, baseline)
    whole, classes = compare_whole(candidate, baseline, pair), compare_classes(candidate, baseline, pair)
    p_recall = holm([comparison.p_worse for comparison in classes])
    checks = [
        floor,
        check_accuracy(candidate, baseline, whole, gate.alpha),
        check_recall(candidate, baseline, classes, p_recall, gate.alpha),
        check_rise("test loss", candidate, baseline, lambda test: test.loss, gate.loss_rise),
        check_rise("calibration", candidate, baseline, lambda test: test.calibration_error, gate.calibration_rise),
    ]
    figures |= {
        "baseline_accuracy": mean(baseline, accuracy),
        "baseline_runs": len(baseline.reports),
        "accuracy_change": 0.0 - whole.rise,
        "p_worse": whole.p_worse,
        "p_mcnemar": whole.p_mcnemar,
        "p_recall": min(p_recall),
        "p_recall_by_class": p_recall,
    }
    return Verdict(checks, rests_on(candidate, baseline), figures)


def accuracy(test: ComparedFigures) -> float:
    """The test accuracy."""
    return test.accuracy


def compare_whole(candidate: Results, baseline: Results, pair: Pair) -> SignificanceTest:
    """Compare the models on all test images."""
    images = candidate.first.metrics.test.images
    spreads = measured(candidate, baseline, lambda noise: (noise.accuracy_std, noise.accuracy_disagreement))
    return compare(pair.candidate, pair.baseline, images, spreads)


def compare_classes(candidate: Results, baseline: Results, pair: Pair) -> list[SignificanceTest]:
    """Compare the models on the test images of each class; a class without images counts as equal."""

    def of_class(label: int, images: int) -> SignificanceTest:
        given = pair.labels == label
        spreads = measured(
            candidate, baseline, lambda noise: (noise.recall_std[label], noise.recall_disagreement[label])
        )
        return compare(pair.candidate[:, given], pair.baseline[:, given], max(images, 1), spreads)

    return [of_class(label, images) for label, images in enumerate(candidate.first.metrics.test.per_class.images)]


def check_floor(candidate: Results, gate: Gate) -> Check:
    """Check that the test accuracy reaches the dataset's floor, regardless of the baseline."""
    dataset = candidate.first.metrics.dataset.name
    floor, own = gate.floor.get(dataset), candidate.first.metrics.test.accuracy
    reached = min(own, mean(candidate, accuracy))  # lucky seeds must not compensate for a bad model
    after = share(candidate, accuracy)
    if floor is None:
        return Check("floor", "–", "", after, f"none; to set one, add gate.floor.{dataset} to conf/config.yaml")
    remark = f"the model itself: {100 * own:.2f} %" if len(candidate.reports) > 1 else ""
    return Check("floor", "pass" if reached >= floor else "FAIL", f"{100 * floor:.2f} %", after, remark)


def check_accuracy(candidate: Results, baseline: Results, whole: SignificanceTest, alpha: float) -> Check:
    """Check that the test accuracy is not significantly lower."""
    mark: Mark = "FAIL" if whole.p_worse <= alpha / TESTS else "pass"
    remark = f"{points(whole)}; p {whole.p_worse:.2g} (limit {alpha / TESTS:g}), McNemar alone {whole.p_mcnemar:.2g}"
    return Check("accuracy", mark, share(baseline, accuracy), share(candidate, accuracy), remark)


def check_recall(
    candidate: Results, baseline: Results, classes: list[SignificanceTest], p_values: list[float], alpha: float
) -> Check:
    """Check that the recall of no class is significantly lower; `p_values` are adjusted for the number of classes."""
    order = sorted(range(len(classes)), key=lambda label: (p_values[label], -classes[label].rise))
    fallen = [label for label in order if p_values[label] <= alpha / TESTS]
    shown = fallen or order[:1]
    remark = "; ".join(f"{label}: {points(classes[label])}, adjusted p {p_values[label]:.2g}" for label in shown)
    before, after = (share(results, lambda test: test.per_class.recall[shown[0]]) for results in (baseline, candidate))
    return Check(f"recall of {shown[0]}", "FAIL" if fallen else "pass", before, after, remark)


def check_rise(
    name: str, candidate: Results, baseline: Results, figure: Callable[[ComparedFigures], float], limit: float
) -> Check:
    """Warn if a figure for which lower is better rises by more than a limit."""
    before, after = mean(baseline, figure), mean(candidate, figure)
    too_much = after - before > limit
    remark = f"{after - before:+.4f}" + (f", more than {limit}" if too_much else "")
    return Check(name, "warn" if too_much else "pass", f"{before:.4f}", f"{after:.4f}", remark)


def rests_on(candidate: Results, baseline: Results) -> list[str]:
    """Notes on the source of each model's seed noise."""
    dataset = candidate.first.metrics.dataset.name
    for results in (candidate, baseline):
        if len(results.reports) == 1 and results.noise is None:
            return [
                f"{results.name} has one seed, and the baseline has no record of seed noise for recipe "
                f"{results.recipe} on {dataset} with its settings: "
                "McNemar's test alone decides, on the two models themselves "
                "(to make a record, run `make seeds N=10`, then `python -m pipeline.commands.gate --record`)"
            ]
    lines = []
    for results in (candidate, baseline):
        known = [f"its {len(results.reports)} seeds"] if len(results.reports) > 1 else []
        if results.noise is not None:
            known.append(f"the record of recipe {results.recipe} ({_spread(results.noise)})")
        lines.append(f"the seed noise of {results.name} is estimated from {' and '.join(known)}")
    return lines


def _spread(noise: SeedNoise) -> str:
    return f"standard deviation {100 * noise.accuracy_std:.2f} points over {noise.seeds} seeds"


def align(candidate: Results, baseline: Results) -> Pair:
    """The errors of both models on the images that any run misclassifies, in the order of their indices."""
    labels = {
        index: found.label
        for results in (candidate, baseline)
        for report in results.reports
        for index, found in report.wrong.items()
    }
    indices = sorted(labels)

    def wrong(results: Results) -> Wrong:
        return np.array([[index in report.wrong for index in indices] for report in results.reports], bool)

    return Pair(wrong(candidate), wrong(baseline), np.array([labels[index] for index in indices], int))


def measured(candidate: Results, baseline: Results, figures: Callable[[SeedNoise], tuple[float, float]]) -> Spreads:
    """The recorded spread of one figure of both models."""
    first, second = (
        Spread(*figures(results.noise), results.noise.seeds - 1) if results.noise else None
        for results in (candidate, baseline)
    )
    return first, second


def mean(results: Results, figure: Callable[[ComparedFigures], float]) -> float:
    """The mean of a figure over a model's runs."""
    return fmean(figure(report.metrics.test) for report in results.reports)


def share(results: Results, figure: Callable[[ComparedFigures], float]) -> str:
    """A fraction as a percentage: '98.41 %', or '98.41 ± 0.04 %' over several runs."""
    values = [100 * figure(report.metrics.test) for report in results.reports]
    return f"{fmean(values):.2f} ± {stdev(values):.2f} %" if len(values) > 1 else f"{values[0]:.2f} %"


def points(comparison: SignificanceTest) -> str:
    """The change of accuracy or recall in percentage points."""
    return f"{-100 * comparison.rise + 0:+.2f} points"
