"""What evaluate wrote about one trained model, read and checked."""

import csv
import json
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict, NonNegativeFloat, NonNegativeInt, PositiveInt, ValidationError

from pipeline import paths
from pipeline.config import Share, describe
from pipeline.errors import PipelineError

COLUMNS = ("index", "label", "prediction", "probability")
ROUNDING = 1e-6  # of the shares in metrics.json


class Section(BaseModel):
    """A part of metrics.json, of which the gate reads some keys."""

    model_config = ConfigDict(strict=True, frozen=True)


class PerClass(Section):
    """Recall, and the number of test images, of each class."""

    recall: list[Share]
    images: list[NonNegativeInt]


class Figures(Section):
    """The figures on the test images."""

    accuracy: Share
    loss: NonNegativeFloat
    errors: NonNegativeInt
    images: PositiveInt
    calibration_error: Share
    per_class: PerClass


class ScoredImages(Section):
    """Which images were scored: the dataset's name, and the MD5 of the prepared test set."""

    name: str
    test_md5: str


class Run(Section):
    """Where the model's run is in MLflow."""

    run_id: str
    experiment_id: str | None


class Metrics(Section):
    """The content of reports/metrics.json."""

    test: Figures
    dataset: ScoredImages
    mlflow: Run | None = None


class Reading(NamedTuple):
    """What an image is, and what the network took it for."""

    label: int
    prediction: int


class Report(NamedTuple):
    """One trained model on the test images: its figures, and how it read each image that it got wrong."""

    metrics: Metrics
    wrong: dict[int, Reading]


def parse_report(metrics_json: bytes, errors_csv: bytes, place: str) -> Report:
    """A report out of the bytes of its two files, which come from `place`.

    Raises PipelineError if one of them is not what evaluate writes, or if they contradict each other.
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
        raise PipelineError(f"{name}: its first line must be {','.join(COLUMNS)}")
    wrong: dict[int, Reading] = {}
    classes = range(len(test.per_class.images))
    for line, row in enumerate(rows[1:], start=2):
        try:
            index, label, prediction = (int(value) for value in row[:3])
            if len(row) != len(COLUMNS) or label not in classes or prediction not in classes or label == prediction:
                raise ValueError
        except ValueError:
            raise PipelineError(f"{name}: line {line} is no wrongly read image: {','.join(row)!r}") from None
        if not 0 <= index < test.images or index in wrong:
            reason = "is there twice" if index in wrong else f"is none of the {test.images:,} test images"
            raise PipelineError(f"{name}: line {line}: image {index} {reason}")
        wrong[index] = Reading(label, prediction)
    if len(wrong) != test.errors:
        raise PipelineError(f"{name} lists {len(wrong)} images, {paths.METRICS} says {test.errors}: one is not whole")
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
    if not agree or any(abs(told - counted) > ROUNDING for told, counted, total in pairs if total):
        raise PipelineError(f"{paths.METRICS} {place} says other accuracies than {paths.ERRORS} there gives")
