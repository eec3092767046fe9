"""Reports in another format than evaluate's are rejected, with a one-line error that says where and why."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from pipeline.commands.gate.report import parse_report
from pipeline.core.errors import PipelineError

ERRORS = "index,label,prediction,probability\n3,0,1,0.9\n7,1,0,0.6\n"


def metrics() -> dict[str, Any]:
    """Metrics of ten images, five per class, of which one in each class is misclassified."""
    per_class = {"recall": [0.8, 0.8], "images": [5, 5], "f1": [0.8, 0.8]}
    test = {"accuracy": 0.8, "loss": 0.5, "errors": 2, "images": 10, "calibration_error": 0.1, "per_class": per_class}
    run = {"run_id": "abc", "experiment_id": "1"}
    return {"test": test, "training": {}, "dataset": {"name": "tiny", "test_md5": "0123"}, "mlflow": run}


def as_bytes(values: Any) -> bytes:
    return json.dumps(values).encode()


def test_a_report_has_figures_and_misclassified_images() -> None:
    report = parse_report(as_bytes(metrics()), ERRORS.encode(), "here")
    assert report.metrics.test.accuracy == 0.8
    assert report.metrics.mlflow
    assert report.metrics.mlflow.run_id == "abc"
    assert report.wrong == {3: (0, 1), 7: (1, 0)}


def test_a_report_without_an_mlflow_run_is_accepted() -> None:
    older = {key: value for key, value in metrics().items() if key != "mlflow"}
    assert parse_report(as_bytes(older), ERRORS.encode(), "here").metrics.mlflow is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m["test"].pop("errors"), "reports/evaluation.json here: test.errors: is missing"),
        (lambda m: m["test"].update(accuracy="high"), "reports/evaluation.json here: test.accuracy: got 'high'"),
        (lambda m: m["test"].update(loss=float("nan")), "reports/evaluation.json here: test.loss: got nan"),
        (lambda m: m.pop("dataset"), "reports/evaluation.json here: dataset: is missing"),
        (
            lambda m: m["test"].update(errors=3),
            "lists 2 images, but reports/evaluation.json counts 3: one file is incomplete",
        ),
        (lambda m: m["test"].update(accuracy=0.9), "reports/evaluation.json here contradicts reports/errors.csv there"),
        (
            lambda m: m["test"]["per_class"].update(recall=[0.9, 0.7]),
            "contradicts reports/errors.csv there: the accuracies differ",
        ),
        (
            lambda m: m["test"]["per_class"].update(images=[6, 5]),
            "contradicts reports/errors.csv there: the accuracies differ",
        ),
        (
            lambda m: m["test"]["per_class"].update(recall=[0.8]),
            "contradicts reports/errors.csv there: the accuracies differ",
        ),
    ],
)
def test_wrong_figures_are_rejected(change: Callable[[dict[str, Any]], object], message: str) -> None:
    values = metrics()
    change(values)
    with pytest.raises(PipelineError) as caught:
        parse_report(as_bytes(values), ERRORS.encode(), "here")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", as_bytes(metrics())[:-20]])
def test_damaged_metrics_are_rejected(content: bytes) -> None:
    with pytest.raises(PipelineError, match=r"^reports/evaluation\.json here"):
        parse_report(content, ERRORS.encode(), "here")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "reports/errors.csv here is empty"),
        ("index,label\n3,0\n", "the first line must be index,label,prediction,probability"),
        (ERRORS[:-5], "line 3 is not a misclassified image: '7,1,0'"),
        (ERRORS.splitlines(keepends=True)[0] + "3,0,1,0.9\n", "lists 1 images, but reports/evaluation.json counts 2"),
        (ERRORS.replace("7,1", "10,1"), "line 3: image 10 is not one of the 10 test images"),
        (ERRORS.replace("7,1", "-1,1"), "line 3: image -1 is not one of the 10 test images"),
        (ERRORS.replace("7,1", "3,1"), "line 3: image 3 is listed twice"),
        (ERRORS.replace("7,1", "7,2"), "line 3 is not a misclassified image: '7,2,0,0.6'"),
        (ERRORS.replace("7,1,0", "7,1,1"), "line 3 is not a misclassified image: '7,1,1,0.6'"),
        (ERRORS.replace("7,1", "seven,1"), "line 3 is not a misclassified image: 'seven,1,0,0.6'"),
        (ERRORS.replace("7,1,0", "7,0,1"), "contradicts reports/errors.csv there: the accuracies differ"),
        ("\x00", "reports/errors.csv here"),
    ],
)
def test_damaged_errors_are_rejected(content: str, message: str) -> None:
    with pytest.raises(PipelineError) as caught:
        parse_report(as_bytes(metrics()), content.encode(), "here")
    assert message in str(caught.value)
    assert str(caught.value).startswith("reports/")
    assert "\n" not in str(caught.value)
