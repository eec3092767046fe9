"""The typed schema of composed.yaml, and the function that loads it."""

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveInt,
    ValidationError,
    model_validator,
)

from pipeline import paths
from pipeline.errors import PipelineError, first_line
from pipeline.files import parse_yaml, text_digest

TARGET_KEY = "_target_"
DECIDING = ("model", "optimizer", "training")  # sections of composed.yaml that identify a record of seed noise
KERAS_PARTS = r"layers|optimizers(\.schedules)?|initializers|regularizers|constraints"
ALLOWED_TARGET = re.compile(rf"keras\.(Sequential|({KERAS_PARTS})\.\w+)|pipeline\.train(\.\w+){{2,}}")


def targets(node: Any) -> Iterator[Any]:
    """Yield every `_target_` in a configuration, at any depth."""
    if isinstance(node, dict) and node.get(TARGET_KEY) is not None:
        yield node[TARGET_KEY]
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from targets(child)


def flatten(values: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted keys and values of nested mappings and lists, such as ('model.layers.0.units', 512)."""
    items = values.items() if isinstance(values, dict) else enumerate(values)
    for key, value in items:
        if isinstance(value, dict | list):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def configuration_digest(composed: Mapping[str, Any], test_md5: str) -> str:
    """Digest of the model, optimizer and training settings in composed.yaml, and of the test images."""
    settings = flatten({key: composed.get(key) for key in DECIDING})
    return text_digest(repr([*sorted(map(str, settings)), test_md5]))


def check_targets(node: Any) -> Any:
    """Return `node` if every `_target_` in it, at any depth, has an allowed name; the class is checked on import."""
    for target in targets(node):
        if not (isinstance(target, str) and ALLOWED_TARGET.fullmatch(target)):
            raise ValueError(
                f"{TARGET_KEY} {target!r} is not allowed: it must name an object in keras.layers, optimizers, "
                "initializers, regularizers or constraints, or in pipeline.train, whose changes DVC tracks"
            )
    return node


def check_learning_rate(value: Any) -> Any:
    """Return `value` if it is a positive learning rate, or a schedule that starts at 0 or above."""
    scheduled = isinstance(value, dict)
    start = check_component(value).get("initial_learning_rate", 0) if scheduled else value
    number = isinstance(start, int | float) and not isinstance(start, bool) and math.isfinite(start)
    if not number or start < 0 or (start == 0 and not scheduled):
        raise ValueError("a learning rate must be a number greater than 0, or a schedule with a _target_")
    return value


def check_component(node: dict[str, Any]) -> dict[str, Any]:
    """Return `node` if it has a `_target_` and all its targets are allowed."""
    if TARGET_KEY not in node:
        raise ValueError(f"has no {TARGET_KEY}: set it to a class or function, such as keras.layers.Dense")
    check_targets(node)
    return node


Component = Annotated[dict[str, Any], AfterValidator(check_component)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Section(BaseModel):
    """A section of the configuration: immutable; unknown keys and values of another type are errors."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class RemoteFile(Section):
    """A file of a dataset: its name at the source, its SHA-256, and its size in bytes."""

    name: str
    sha256: Sha256
    size: PositiveInt = 1 << 30  # default: the most bytes to download


class IdxFiles(Section):
    """The four files of a dataset in MNIST's format."""

    train_images: RemoteFile
    train_labels: RemoteFile
    test_images: RemoteFile
    test_labels: RemoteFile


class About(Section):
    """The description of a dataset in the model card."""

    title: str
    url: Annotated[str, Field(pattern=r"^https?://")]
    license: str
    description: str


class IdxDataset(Section):
    """A dataset published as four gzipped IDX files."""

    source: Literal["idx"]
    name: str
    classes: PositiveInt
    files: IdxFiles
    mirrors: list[Annotated[str, Field(pattern=r"^https?://")]]
    about: About | None = None


class PackagedFiles(Section):
    """The file of a dataset that ships with scikit-learn."""

    package: RemoteFile


class PackagedDataset(Section):
    """A dataset that ships with scikit-learn; its last `test_count` images are the test set."""

    source: Literal["scikit-learn"]
    name: str
    classes: PositiveInt
    test_count: PositiveInt
    files: PackagedFiles
    about: About | None = None


class Model(Section):
    """A network: a list of layers, or a builder that returns layers. Both can refer to extra keys."""

    model_config = ConfigDict(extra="allow")

    name: str
    layers: list[Component] = []
    builder: Component | None = None
    members: PositiveInt = 1
    test_time_shift: NonNegativeInt = 0

    @model_validator(mode="after")
    def check_body(self) -> "Model":
        """Require either layers or a builder, with allowed targets."""
        if bool(self.layers) == bool(self.builder):
            raise ValueError("a model needs either layers or a builder")
        check_targets(self.model_extra)
        return self


class Optimizer(Section):
    """A Keras optimizer; extra keys are its arguments."""

    model_config = ConfigDict(extra="allow")

    name: str
    target: str = Field(alias=TARGET_KEY)
    learning_rate: Annotated[Any, AfterValidator(check_learning_rate)]

    @model_validator(mode="before")
    @classmethod
    def check_target(cls, values: Any) -> Any:
        """Require an allowed optimizer."""
        return check_targets(values)


Xla = Literal["auto", True, False]  # compile the training step with XLA


class Training(Section):
    """The training hyperparameters and the choice of validation set."""

    epochs: PositiveInt
    batch_size: PositiveInt
    warm_up: Annotated[float, Field(ge=0, lt=1)]
    decay: Literal["none", "cosine"]
    label_smoothing: Annotated[float, Field(ge=0, lt=1)]
    augmentation: list[Component]
    hard_example_fraction: Annotated[float, Field(gt=0, le=1)]
    full_epochs: PositiveInt
    validation_fraction: Annotated[float, Field(ge=0, lt=1)]
    validate_on: Literal["validation", "test", "none"]
    early_stopping: PositiveInt | None
    keep_best_epoch: bool
    precision: Literal["auto", "float32", "mixed_bfloat16", "mixed_float16"]
    recalibrate: bool
    xla: Xla
    steps_per_execution: PositiveInt
    deterministic: bool

    @model_validator(mode="after")
    def check_schedule(self) -> "Training":
        """Reject a warm-up without a decay."""
        if self.warm_up and self.decay == "none":
            raise ValueError(f"warm_up is {self.warm_up}, but decay is none: set training.decay=cosine, or warm_up=0")
        return self

    @model_validator(mode="after")
    def check_honesty(self) -> "Training":
        """Reject model selection on the test set, and a `validation_fraction` that contradicts `validate_on`."""
        selects = [name for name in ("early_stopping", "keep_best_epoch") if getattr(self, name)]
        if selects and self.validate_on != "validation":
            raise ValueError(
                f"{' and '.join(selects)} would select on "
                f"{'the test images' if self.validate_on == 'test' else 'nothing'}: "
                "set training.validate_on=validation and training.validation_fraction above 0"
            )
        if self.validate_on == "validation" and not self.validation_fraction:
            raise ValueError(
                "validation_fraction is 0, so the validation set is empty: "
                "set training.validation_fraction above 0, or training.validate_on=none"
            )
        if self.validate_on != "validation" and self.validation_fraction:
            raise ValueError(
                f"validation_fraction is {self.validation_fraction}, but validate_on is {self.validate_on}, so the "
                "held-out images are not used: set training.validation_fraction=0, or training.validate_on=validation"
            )
        return self


Share = Annotated[float, Field(ge=0, le=1)]


class SeedNoise(Section):
    """Seed-to-seed variation of one recipe on one dataset, measured over `seeds` runs.

    `python -m pipeline.gate --record` measures it and writes it to the recipe's file.
    """

    seeds: Annotated[int, Field(ge=10)]
    configuration: str = ""  # digest of the settings and test images of these runs
    accuracy_std: Share
    accuracy_disagreement: Share  # fraction of the images that only one of two runs misclassifies
    recall_std: list[Share]  # per class, as is recall_disagreement
    recall_disagreement: list[Share]


class Gate(Section):
    """The criteria by which a candidate counts as worse than the baseline."""

    base: str
    alpha: Annotated[float, Field(gt=0, lt=0.5)]
    floor: dict[str, Share]
    loss_rise: Annotated[float, Field(ge=0)]
    calibration_rise: Share
    seed_noise: dict[str, SeedNoise]  # by dataset


class Config(Section):
    """The complete configuration of a run: the content of composed.yaml."""

    recipe: str
    versions: dict[str, str] = {}  # of Keras and TensorFlow, as pinned in requirements.txt
    seed: Annotated[int, Field(ge=0, lt=2**31)]
    dataset: Annotated[IdxDataset | PackagedDataset, Field(discriminator="source")]
    model: Model
    optimizer: Optimizer
    training: Training
    gate: Gate

    @model_validator(mode="after")
    def check_schedule(self) -> "Config":
        """Reject two schedules for one learning rate."""
        if isinstance(self.optimizer.learning_rate, dict) and self.training.decay != "none":
            raise ValueError(
                f"optimizer.learning_rate is a schedule, and training.decay is {self.training.decay}: "
                "set training.decay=none and training.warm_up=0, or make the learning rate a number"
            )
        return self


def describe(error: ValidationError) -> list[tuple[str, str]]:
    """List the key and the message of each error, such as ('training.epochs', "got 'a'; input …")."""
    complaints = {}
    for item in error.errors(include_url=False):
        key = ".".join(str(part) for part in item["loc"] if part not in ("idx", "scikit-learn"))
        message = item["msg"].removeprefix("Value error, ")
        held = item["input"]
        if item["type"] == "missing":
            message = "is missing"
        elif item["type"] == "extra_forbidden":
            message = "is not a known key"
        elif not isinstance(held, dict | BaseModel):
            message = f"got {held!r}; {message[0].lower()}{message[1:]}"
        complaints[key] = message
    return list(complaints.items())


def parse_config(values: Any, origin: dict[str, str], fallback: str) -> Config:
    """Validate composed values. `origin` maps dotted keys to the files that set them; other keys are from `fallback`.

    Raises PipelineError with one line per invalid value: its file, key, value, and what is allowed.
    """

    def file_of(key: str) -> str:
        return next((file for name, file in origin.items() if f"{name}.".startswith(f"{key}.")), fallback)

    try:
        return Config.model_validate(values)
    except ValidationError as error:
        lines = [f"{file_of(key)}: {key or 'the file'}: {message}" for key, message in describe(error)]
        raise PipelineError("\n".join(lines)) from None


def load_config(path: Path = paths.COMPOSED) -> Config:
    """Load composed.yaml. Raises PipelineError if it is missing or invalid."""
    remedy = f"{path} is generated from conf/ and {paths.PARAMS}: run `dvc repro compose` to restore it"
    try:
        values = parse_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise PipelineError(f"{path} is missing. {remedy}.") from None
    except yaml.YAMLError as error:
        raise PipelineError(f"{path} is not YAML ({first_line(error)}). {remedy}.") from None
    try:
        return parse_config(values, {}, str(path))
    except PipelineError as error:
        raise PipelineError(f"{error}. {remedy}.") from None
