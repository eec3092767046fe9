"""The gate's verdict on reports that are valid but unusual: it is an answer, and the same test as SciPy's."""

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from pipeline.commands.gate.comparison import Comparison
from pipeline.commands.gate.rendering import for_machines, for_markdown
from pipeline.commands.gate.report import Report, parse_report
from pipeline.commands.gate.results import Results
from pipeline.commands.gate.verdict import judge
from pipeline.core.config import Gate, SeedNoise
from pipeline.core.errors import PipelineError
from tests.commands.gate.test_report import as_bytes
from tests.fuzzing.inputs import limited

SHARES = st.floats(0, 1)
LOSSES = st.floats(0, 3.4e38)
GATES = st.builds(
    Gate,
    base=st.just(""),
    alpha=st.floats(0, 0.5, exclude_min=True, exclude_max=True),
    floor=st.dictionaries(st.just("tiny"), SHARES),
    loss_rise=st.floats(0),
    calibration_rise=SHARES,
    seed_noise=st.just({}),
)
NOISES = st.none() | st.builds(
    SeedNoise,
    seeds=st.integers(10, 2**31),
    configuration=st.just(""),
    accuracy_std=SHARES,
    accuracy_disagreement=SHARES,
    recall_std=st.lists(SHARES, min_size=3, max_size=3),
    recall_disagreement=st.lists(SHARES, min_size=3, max_size=3),
)
COUNTS = st.tuples(*[st.integers(0, 40)] * 3).filter(any)


@st.composite
def reports(draw: st.DrawFn, counts: tuple[int, ...]) -> Report:
    """A report on as many images of each class: its images are in the order of their classes."""
    labels = [label for label, count in enumerate(counts) for _ in range(count)]
    wrong = sorted(draw(st.sets(st.integers(0, len(labels) - 1))))
    missed = [sum(labels[index] == label for index in wrong) for label in range(3)]
    test = {
        "accuracy": 1 - len(wrong) / len(labels),
        "loss": draw(LOSSES),
        "errors": len(wrong),
        "images": len(labels),
        "calibration_error": draw(SHARES),
        "per_class": {
            "recall": [1 - count / max(total, 1) for count, total in zip(missed, counts, strict=True)],
            "images": list(counts),
        },
    }
    rows = "".join(f"{index},{labels[index]},{(labels[index] + 1) % 3},0.5\n" for index in wrong)
    content = as_bytes({"test": test, "dataset": {"name": "tiny", "test_md5": "0"}})
    return parse_report(content, f"index,label,prediction,probability\n{rows}".encode(), "here")


@st.composite
def pairs(draw: st.DrawFn) -> tuple[Results, Results]:
    """A candidate and a baseline, each with one run or several."""
    counts = draw(COUNTS)
    runs = st.lists(reports(counts), min_size=1, max_size=3)
    return tuple(Results("here", draw(runs), {}, {}, draw(NOISES)) for _ in range(2))  # type: ignore[return-value]


@given(pairs(), GATES)
def test_every_valid_report_gets_a_verdict(pair: tuple[Results, Results], gate: Gate) -> None:
    candidate, baseline = pair
    with limited():
        verdict = judge(candidate, baseline, gate)
        comparison = Comparison(verdict, candidate, baseline, [])
        shown: dict[str, Any] = json.loads(json.dumps(for_machines(comparison), allow_nan=False))["figures"]
        assert for_markdown(comparison, None)
    assert 0 <= shown["p_worse"] <= 1
    if candidate.noise is baseline.noise is None and len(candidate.reports) == len(baseline.reports) == 1:
        worse, better = len(comparison.newly_wrong), len(comparison.newly_right)
        expected = binomtest(worse, worse + better, alternative="greater").pvalue if worse + better else 1.0
        assert math.isclose(shown["p_mcnemar"], expected, rel_tol=1e-9)
        assert (verdict.checks[1].outcome == "FAIL") == (shown["p_worse"] <= gate.alpha / 2)


@given(st.data())
def test_figures_that_contradict_the_images_are_refused(data: st.DataObject) -> None:
    """A report whose count, accuracy or recall is changed: the verdict would be on other figures than the images'."""
    counts = data.draw(COUNTS)
    report = data.draw(reports(counts))
    test = report.metrics.test.model_dump()
    key = data.draw(st.sampled_from(("errors", "images", "accuracy", "recall", "class")))
    change = data.draw(st.sampled_from((-1, 1, 7)))
    match key:
        case "recall":
            place = data.draw(st.sampled_from([label for label, count in enumerate(counts) if count]))
            test["per_class"]["recall"][place] = abs(test["per_class"]["recall"][place] - 0.01)
        case "class":
            test["per_class"]["images"][data.draw(st.integers(0, 2))] += change
        case "accuracy":
            test["accuracy"] = abs(test["accuracy"] - 0.01)
        case _:
            test[key] += change
    rows = "".join(f"{index},{found.label},{found.prediction},0.5\n" for index, found in report.wrong.items())
    content = as_bytes({"test": test, "dataset": {"name": "tiny", "test_md5": "0"}})
    with pytest.raises(PipelineError, match=r"^reports/[^\n]*$"):
        parse_report(content, f"index,label,prediction,probability\n{rows}".encode(), "here")
