"""The reports of evaluate on one trained model, parsed and checked."""

import csv
import io
import re
from pathlib import Path
from typing import NamedTuple

from pipeline.core import paths
from pipeline.core.errors import PipelineError
from pipeline.core.records import ComparedEvaluation, ComparedFigures

COLUMNS = ("index", "label", "prediction", "probability")
INTEGER = re.compile("-?[0-9]{1,18}")
FRACTION = re.compile(r"[0-9]{1,2}(\.[0-9]{1,20})?(e-[0-9]{1,3})?")
LONGEST = 100  # characters of a line to show
ROUNDING = 1e-6  # tolerance for the rounded fractions in the evaluation


class Misclassification(NamedTuple):
    """The label of a misclassified image, and the network's prediction."""

    label: int
    prediction: int


class Report(NamedTuple):
    """The figures of one trained model on the test set, and its misclassified images by index."""

    metrics: ComparedEvaluation
    wrong: dict[int, Misclassification]


def parse_report(evaluation_json: bytes, errors_csv: bytes, place: str, path: Path = paths.EVALUATION) -> Report:
    """Parse the two files of a report, which come from `place`; `path` is that of the evaluation.

    Raises PipelineError if one of them does not have evaluate's format, or if they contradict each other.
    """
    evaluation = ComparedEvaluation.parse(evaluation_json, f"{path} {place}")
    wrong = _parse_errors(errors_csv, evaluation.test, f"{paths.ERRORS} {place}", path)
    _check_agreement(evaluation.test, wrong, place, path)
    return Report(evaluation, wrong)


def _parse_errors(content: bytes, test: ComparedFigures, name: str, path: Path) -> dict[int, Misclassification]:
    try:
        rows = list(csv.reader(io.StringIO(content.decode("utf-8"), newline=""), strict=True))
    except (ValueError, csv.Error) as error:
        raise PipelineError(f"{name} is damaged ({error})") from None
    if not rows:
        raise PipelineError(f"{name} is empty")
    if tuple(rows[0]) != COLUMNS:
        raise PipelineError(f"{name}: the first line must be {','.join(COLUMNS)}")
    wrong: dict[int, Misclassification] = {}
    classes = range(len(test.per_class.images))
    for line, row in enumerate(rows[1:], start=2):
        try:
            index, label, prediction = map(parse_integer, row[:3])
            valid = label in classes and prediction in classes and label != prediction
            if len(row) != len(COLUMNS) or not valid or not is_probability(row[3]):
                raise ValueError
        except ValueError:
            shown = ",".join(row)[:LONGEST]
            raise PipelineError(f"{name}: line {line} is not a misclassified image: {shown!r}") from None
        if not 0 <= index < test.images or index in wrong:
            reason = "is listed twice" if index in wrong else f"is not one of the {test.images:,} test images"
            raise PipelineError(f"{name}: line {line}: image {index} {reason}")
        wrong[index] = Misclassification(label, prediction)
    if len(wrong) != test.errors:
        raise PipelineError(
            f"{name} lists {len(wrong)} images, but {path} counts {test.errors}: one file is incomplete"
        )
    return wrong


def is_probability(text: str) -> bool:
    """Whether a text is a number from 0 to 1, without spaces or other additions that Python allows."""
    return FRACTION.fullmatch(text) is not None and float(text) <= 1


def parse_integer(text: str) -> int:
    """Parse decimal digits. Raises ValueError for more that Python allows in a number, such as 1_0, spaces and ٣."""
    if not INTEGER.fullmatch(text):
        raise ValueError
    return int(text)


def _check_agreement(test: ComparedFigures, wrong: dict[int, Misclassification], place: str, path: Path) -> None:
    images = test.per_class.images
    missed = [0] * len(images)
    for found in wrong.values():
        missed[found.label] += 1
    recalls = [1 - count / max(total, 1) for count, total in zip(missed, images, strict=True)]
    agree = sum(images) == test.images and len(test.per_class.recall) == len(images)
    agree = agree and all(count <= total for count, total in zip(missed, images, strict=True))
    agree = agree and abs(test.accuracy - (1 - len(wrong) / test.images)) <= ROUNDING
    pairs = zip(test.per_class.recall, recalls, images, strict=False)
    if not agree or any(abs(reported - counted) > ROUNDING for reported, counted, total in pairs if total):
        raise PipelineError(f"{path} {place} contradicts {paths.ERRORS} there: the accuracies differ")
