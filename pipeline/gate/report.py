"""The reports of evaluate on one trained model, parsed and checked."""

import csv
import json
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict, NonNegativeFloat, NonNegativeInt, PositiveInt, ValidationError

from pipeline import paths
from pipeline.config import Share, describe
from pipeline.errors import PipelineError

COLUMNS = ("index", "label", "prediction", "probability")
ROUNDING = 1e-6  # tolerance for the rounded fractions in metrics.json


class Section(BaseModel):
    """A part of metrics.json, of which the gate reads only some keys."""

    model_config = ConfigDict(strict=True, frozen=True)


class PerClass(Section):
    """Recall and number of test images of each class."""

    recall: list[Share]
    images: list[NonNegativeInt]


class Figures(Section):
    """The figures on the test set."""

    accuracy: Share
    loss: NonNegativeFloat
    errors: NonNegativeInt
    images: PositiveInt
    calibration_error: Share
    per_class: PerClass


class ScoredImages(Section):
    """The scored images: the dataset's name and the MD5 of the prepared test set."""

    name: str
    test_md5: str


class Run(Section):
    """The model's MLflow run."""

    run_id: str
    experiment_id: str | None


class Metrics(Section):
    """The content of reports/metrics.json."""

    test: Figures
    dataset: ScoredImages
    mlflow: Run | None = None


class Reading(NamedTuple):
    """The label of a misclassified image, and the network's prediction."""

    label: int
    prediction: int


class Report(NamedTuple):
    """The figures of one trained model on the test set, and its misclassified images by index."""

    metrics: Metrics
    wrong: dict[int, Reading]


def parse_report(metrics_json: bytes, errors_csv: bytes, place: str) -> Report:
    """Parse the two files of a report, which come from `place`.

    Raises PipelineError if one of them does not have evaluate's format, or if they contradict each other.
    """
    metrics = _parse_metrics(metrics_json, f"{paths.METRICS} {place}")
    wrong = _parse_errors(errors_csv, metrics.test, f"{paths.ERRORS} {place}")
    _check_agreement(metrics.test, wrong, place)
    return Report(metrics, wrong)


def _parse_metrics(content: bytes, name: str) -> Metrics:
    try:
        return Metrics.model_validate(json.loads(content))
    except ValidationError as error:
        key, complaint = describe(error)[0]
        raise PipelineError(f"{name}: {key or 'the file'}: {complaint}") from None
    except ValueError as error:  # not JSON, or not text
        raise PipelineError(f"{name} is damaged ({error})") from None


def _parse_errors(content: bytes, test: Figures, name: str) -> dict[int, Reading]:
    try:
        rows = list(csv.reader(content.decode("utf-8").splitlines(), strict=True))
    except (ValueError, csv.Error) as error:
        raise PipelineError(f"{name} is damaged ({error})") from None
    if not rows:
        raise PipelineError(f"{name} is empty")
    if tuple(rows[0]) != COLUMNS:
        raise PipelineError(f"{name}: the first line must be {','.join(COLUMNS)}")
    wrong: dict[int, Reading] = {}
    classes = range(len(test.per_class.images))
    for line, row in enumerate(rows[1:], start=2):
        try:
            index, label, prediction = (int(value) for value in row[:3])
            if len(row) != len(COLUMNS) or label not in classes or prediction not in classes or label == prediction:
                raise ValueError
        except ValueError:
            raise PipelineError(f"{name}: line {line} is not a misclassified image: {','.join(row)!r}") from None
        if not 0 <= index < test.images or index in wrong:
            reason = "is listed twice" if index in wrong else f"is not one of the {test.images:,} test images"
            raise PipelineError(f"{name}: line {line}: image {index} {reason}")
        wrong[index] = Reading(label, prediction)
    if len(wrong) != test.errors:
        raise PipelineError(
            f"{name} lists {len(wrong)} images, but {paths.METRICS} counts {test.errors}: one file is incomplete"
        )
    return wrong


def _check_agreement(test: Figures, wrong: dict[int, Reading], place: str) -> None:
    images = test.per_class.images
    missed = [0] * len(images)
    for reading in wrong.values():
        missed[reading.label] += 1
    recalls = [1 - count / max(total, 1) for count, total in zip(missed, images, strict=True)]
    agree = sum(images) == test.images and len(test.per_class.recall) == len(images)
    agree = agree and abs(test.accuracy - (1 - len(wrong) / test.images)) <= ROUNDING
    pairs = zip(test.per_class.recall, recalls, images, strict=False)
    if not agree or any(abs(reported - counted) > ROUNDING for reported, counted, total in pairs if total):
        raise PipelineError(f"{paths.METRICS} {place} contradicts {paths.ERRORS} there: the accuracies differ")
