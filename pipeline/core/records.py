"""The JSON files that stages exchange and commands read, one typed record for each."""

import json
from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, NonNegativeInt, PositiveInt, ValidationError

from pipeline.core.config import Share
from pipeline.core.errors import PipelineError
from pipeline.core.files import parse_json, write_json
from pipeline.core.validation import describe

RunId = Annotated[str, Field(pattern=r"^[a-zA-Z0-9][a-zA-Z0-9_-]{0,255}$")]  # of MLflow: of a run, or of an experiment
LARGEST_LOSS = 3.5e38  # of float32
MOST_IMAGES = 2**32  # of an IDX file


class Record(BaseModel):
    """A part of a JSON file: immutable. Other types, NaN and infinity are errors; unknown keys are ignored."""

    model_config = ConfigDict(strict=True, frozen=True, allow_inf_nan=False)

    def write(self, path: Path) -> None:
        """Write the record as JSON."""
        write_json(path, self.model_dump())

    @classmethod
    def parse(cls, content: bytes, name: str) -> Self:
        """Parse JSON. Raises PipelineError with the file's `name` if a key is missing or invalid."""
        try:
            values = parse_json(content)
            json.dumps(values, ensure_ascii=False).encode()  # half a surrogate pair could not be written
            return cls.model_validate(values)
        except ValidationError as error:
            key, complaint = describe(error)[0]
            raise PipelineError(f"{name}: {key or 'the file'}: {complaint}") from None
        except (ValueError, RecursionError) as error:  # not JSON, or not text
            raise PipelineError(f"{name} is damaged ({error})") from None

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a stage's file from the working tree. Raises PipelineError if it is missing or damaged."""
        try:
            return cls.parse(path.read_bytes(), str(path))
        except OSError as error:
            raise PipelineError(f"{path} cannot be read ({error.strerror}): run `dvc repro`") from None
        except PipelineError as error:
            raise PipelineError(f"{error}: remove it and run `dvc repro`") from None


class SplitStatistics(Record):
    """Number of images, total and per class, and mean and standard deviation of gray levels scaled to [0, 1]."""

    images: NonNegativeInt
    mean: float
    std: float
    per_class: list[NonNegativeInt]


class Duplicates(Record):
    """Exact duplicates: repeated images within train and within test, and test images that are in train."""

    within_train: NonNegativeInt
    within_test: NonNegativeInt
    test_in_train: NonNegativeInt


class DataStatistics(Record):
    """reports/data/statistics.json, which preprocess writes."""

    dataset: str
    train: SplitStatistics
    validation: SplitStatistics
    test: SplitStatistics
    duplicates: Duplicates


class Provenance(Record):
    """A commit, and the uncommitted changes when the run started."""

    commit: str  # empty without git, or before the first commit
    patch: str  # in git's format; empty if there were no changes
    overrides: list[str] | None  # the changes as Hydra overrides, if only params.yaml changed


class TrainingRun(Record):
    """models/run.json, which train writes."""

    run_id: RunId
    model_md5: str
    device: str
    devices: PositiveInt = 1  # that shared each batch, on all machines together
    backend: str
    precision: str
    parameters: NonNegativeInt
    epochs: PositiveInt
    fit_seconds: NonNegativeFloat
    peak_memory_mib: NonNegativeInt
    machine: str
    versions: str
    environment: str
    provenance: Provenance
    seconds: dict[str, float] = {}  # by part of the stage

    @property
    def hardware(self) -> str:
        """The devices, such as 'cpu' or '4 × gpu'."""
        return self.device if self.devices == 1 else f"{self.devices} × {self.device}"


class ClassRecall(Record):
    """Recall and number of test images of each class."""

    recall: list[Share]
    images: list[NonNegativeInt]


class ClassFigures(ClassRecall):
    """Metrics of each class."""

    precision: list[Share]
    f1: list[Share]


class ComparedFigures(Record):
    """The test metrics that the gate compares, which every version wrote."""

    accuracy: Share
    loss: Annotated[float, Field(ge=0, le=LARGEST_LOSS)]
    errors: NonNegativeInt
    images: Annotated[int, Field(gt=0, le=MOST_IMAGES)]
    calibration_error: Share
    per_class: ClassRecall


class TestFigures(ComparedFigures):
    """All test metrics."""

    __test__ = False  # not a test of pytest

    accuracy_low: Share  # Wilson's 95 % interval
    accuracy_high: Share
    per_class: ClassFigures
    confusion_matrix: list[list[NonNegativeInt]]  # true class (row) and predicted class (column)


class TrainingFigures(Record):
    """The facts about the training that evaluate repeats beside the test metrics."""

    epochs: PositiveInt
    parameters: NonNegativeInt
    fit_seconds: NonNegativeFloat
    device: str
    backend: str
    precision: str


class ScoredImages(Record):
    """The scored images: the dataset's name and the MD5 of the prepared test set."""

    name: str
    test_md5: str


class RunReference(Record):
    """The model's MLflow run."""

    run_id: RunId
    experiment_id: RunId | None


class ComparedEvaluation(Record):
    """What the gate reads of an evaluation, also of those that earlier versions wrote."""

    test: ComparedFigures
    dataset: ScoredImages
    mlflow: RunReference | None = None


class Evaluation(ComparedEvaluation):
    """reports/evaluation.json, which evaluate writes."""

    test: TestFigures
    training: TrainingFigures


class Metrics(Record):
    """reports/metrics.json: the figures that DVC's tables show. The names are short, so that they fit in one line."""

    accuracy: Share
    ci_low: Share  # of the accuracy, at 95 %
    ci_high: Share
    loss: NonNegativeFloat
    ece: Share  # expected calibration error
    errors: NonNegativeInt
    params: NonNegativeInt  # of the network
    fit_s: NonNegativeFloat  # seconds of training


def metrics_of(evaluation: Evaluation) -> Metrics:
    """The figures of an evaluation that DVC's tables show."""
    test, training = evaluation.test, evaluation.training
    return Metrics(
        accuracy=test.accuracy,
        ci_low=test.accuracy_low,
        ci_high=test.accuracy_high,
        loss=test.loss,
        ece=test.calibration_error,
        errors=test.errors,
        params=training.parameters,
        fit_s=training.fit_seconds,
    )
