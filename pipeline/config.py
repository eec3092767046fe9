"""The typed configuration: what composed.yaml may hold, and how a stage reads it."""

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
DECIDING = ("model", "optimizer", "training")  # keys of composed.yaml: what a record of seed noise was measured with
KERAS_PARTS = r"layers|optimizers(\.schedules)?|initializers|regularizers|constraints"
ALLOWED_TARGET = re.compile(rf"keras\.(Sequential|({KERAS_PARTS})\.\w+)|pipeline\.train(\.\w+){{2,}}")


def targets(node: Any) -> Iterator[Any]:
    """Every `_target_` in a configuration, at any depth."""
    if isinstance(node, dict) and node.get(TARGET_KEY) is not None:
        yield node[TARGET_KEY]
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from targets(child)


def flatten(values: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and values of nested mappings and lists: ('model.layers.0.units', 512)."""
    items = values.items() if isinstance(values, dict) else enumerate(values)
    for key, value in items:
        if isinstance(value, dict | list):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def configuration_digest(composed: Mapping[str, Any], test_md5: str) -> str:
    """A digest of the model, optimizer and training settings of a composed.yaml and of the test images."""
    settings = flatten({key: composed.get(key) for key in DECIDING})
    return text_digest(repr([*sorted(map(str, settings)), test_md5]))


def check_targets(node: Any) -> Any:
    """Return `node` unchanged if every `_target_` in it, at any depth, may be one: the class is looked at later."""
    for target in targets(node):
        if not (isinstance(target, str) and ALLOWED_TARGET.fullmatch(target)):
            raise ValueError(
                f"{TARGET_KEY} {target!r} is not allowed: it must name something in keras.layers, optimizers, "
                "initializers, regularizers or constraints, or below pipeline.train, where DVC sees it change"
            )
    return node


def check_learning_rate(value: Any) -> Any:
    """Return a learning rate that is above zero, or a schedule that starts at zero or above."""
    scheduled = isinstance(value, dict)
    start = check_component(value).get("initial_learning_rate", 0) if scheduled else value
    number = isinstance(start, int | float) and not isinstance(start, bool) and math.isfinite(start)
    if not number or start < 0 or (start == 0 and not scheduled):
        raise ValueError("a learning rate must be a number greater than 0, or a schedule with a _target_")
    return value


def check_component(node: dict[str, Any]) -> dict[str, Any]:
    """Return `node` unchanged if it says what to build."""
    if TARGET_KEY not in node:
        raise ValueError(f"has no {TARGET_KEY}: name what to build, such as keras.layers.Dense")
    check_targets(node)
    return node


Component = Annotated[dict[str, Any], AfterValidator(check_component)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Section(BaseModel):
    """A part of the configuration: unknown keys and values of another type are errors, and nothing changes later."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class RemoteFile(Section):
    """A file by its name at the source, the SHA-256 of its bytes, and how many there are."""

    name: str
    sha256: Sha256
    size: PositiveInt = 1 << 30  # or the most that is ever read of one whose size is not given


class IdxFiles(Section):
    """The four files of a dataset in MNIST's format."""

    train_images: RemoteFile
    train_labels: RemoteFile
    test_images: RemoteFile
    test_labels: RemoteFile


class About(Section):
    """What a model card says of a dataset."""

    title: str
    url: Annotated[str, Field(pattern=r"^https?://")]
    licence: str
    description: str


class IdxDataset(Section):
    """A dataset that is published as four gzipped IDX files."""

    source: Literal["idx"]
    name: str
    classes: PositiveInt
    files: IdxFiles
    mirrors: list[Annotated[str, Field(pattern=r"^https?://")]]
    about: About | None = None


class PackagedFiles(Section):
    """The one file of a dataset inside scikit-learn."""

    package: RemoteFile


class PackagedDataset(Section):
    """A dataset that ships inside scikit-learn: its last `test_count` images are the test set."""

    source: Literal["scikit-learn"]
    name: str
    classes: PositiveInt
    test_count: PositiveInt
    files: PackagedFiles
    about: About | None = None


class Model(Section):
    """A network: layers in a row, or a builder that returns layers. Other keys are knobs that these refer to."""

    model_config = ConfigDict(extra="allow")

    name: str
    layers: list[Component] = []
    builder: Component | None = None
    members: PositiveInt = 1
    test_time_shift: NonNegativeInt = 0

    @model_validator(mode="after")
    def check_body(self) -> "Model":
        """Ask for one body, of allowed parts."""
        if bool(self.layers) == bool(self.builder):
            raise ValueError("a model needs either layers or a builder")
        check_targets(self.model_extra)
        return self


class Optimizer(Section):
    """A Keras optimizer; other keys are its arguments."""

    model_config = ConfigDict(extra="allow")

    name: str
    target: str = Field(alias=TARGET_KEY)
    learning_rate: Annotated[Any, AfterValidator(check_learning_rate)]

    @model_validator(mode="before")
    @classmethod
    def check_target(cls, values: Any) -> Any:
        """Ask for an allowed optimizer."""
        return check_targets(values)


Xla = Literal["auto", True, False]  # whether XLA compiles the training


class Training(Section):
    """How the network learns, and what is watched while it does."""

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
        """Refuse a rise of the learning rate that nothing follows."""
        if self.warm_up and self.decay == "none":
            raise ValueError(f"warm_up is {self.warm_up}, but decay is none: set training.decay=cosine, or warm_up=0")
        return self

    @model_validator(mode="after")
    def check_honesty(self) -> "Training":
        """Refuse to select anything on the test images, and to hold out other images than are watched."""
        selects = [name for name in ("early_stopping", "keep_best_epoch") if getattr(self, name)]
        if selects and self.validate_on != "validation":
            raise ValueError(
                f"{' and '.join(selects)} would select on "
                f"{'the test images' if self.validate_on == 'test' else 'nothing'}: "
                "set training.validate_on=validation and training.validation_fraction above 0"
            )
        if self.validate_on == "validation" and not self.validation_fraction:
            raise ValueError(
                "validation_fraction is 0, so there is nothing to watch: "
                "set training.validation_fraction above 0, or training.validate_on=none"
            )
        if self.validate_on != "validation" and self.validation_fraction:
            raise ValueError(
                f"validation_fraction is {self.validation_fraction}, but validate_on is {self.validate_on}, so images "
                "would be held out for nothing: set training.validation_fraction=0, or training.validate_on=validation"
            )
        return self


Share = Annotated[float, Field(ge=0, le=1)]


class SeedNoise(Section):
    """How far runs of one recipe on one dataset differ when only the seed does, measured over `seeds` runs.

    `python -m pipeline.gate --record` measures it and writes it into the recipe's file.
    """

    seeds: Annotated[int, Field(ge=10)]
    configuration: str = ""  # a digest of the settings and the test images that it was measured with
    accuracy_std: Share
    accuracy_disagreement: Share  # of the images, those that one of two runs gets wrong
    recall_std: list[Share]  # per class, as the next
    recall_disagreement: list[Share]


class Gate(Section):
    """When a model counts as worse than the one it is compared with."""

    base: str
    alpha: Annotated[float, Field(gt=0, lt=0.5)]
    floor: dict[str, Share]
    loss_rise: Annotated[float, Field(ge=0)]
    calibration_rise: Share
    seed_noise: dict[str, SeedNoise]  # by dataset


class Config(Section):
    """Everything that a run is configured to be: the content of composed.yaml."""

    recipe: str
    versions: dict[str, str] = {}  # of the packages that compute, as requirements.txt pins them
    seed: Annotated[int, Field(ge=0, lt=2**31)]
    dataset: Annotated[IdxDataset | PackagedDataset, Field(discriminator="source")]
    model: Model
    optimizer: Optimizer
    training: Training
    gate: Gate

    @model_validator(mode="after")
    def check_schedule(self) -> "Config":
        """Refuse two schedules for one learning rate."""
        if isinstance(self.optimizer.learning_rate, dict) and self.training.decay != "none":
            raise ValueError(
                f"optimizer.learning_rate is a schedule, and training.decay is {self.training.decay}: "
                "set training.decay=none and training.warm_up=0, or make the learning rate a number"
            )
        return self


def describe(error: ValidationError) -> list[tuple[str, str]]:
    """The key and the complaint of each thing that is wrong, such as ('training.epochs', "holds 'a'; input …")."""
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
            message = f"holds {held!r}; {message[0].lower()}{message[1:]}"
        complaints[key] = message
    return list(complaints.items())


def parse_config(values: Any, origin: dict[str, str], fallback: str) -> Config:
    """Check composed values once; `origin` names, per dotted key, the file that set it.

    Raises PipelineError with one line per value that is wrong: its file, its key, what it holds and what is allowed.
    """

    def file_of(key: str) -> str:
        return next((file for name, file in origin.items() if f"{name}.".startswith(f"{key}.")), fallback)

    try:
        return Config.model_validate(values)
    except ValidationError as error:
        lines = [f"{file_of(key)}: {key or 'the file'}: {message}" for key, message in describe(error)]
        raise PipelineError("\n".join(lines)) from None


def load_config(path: Path = paths.COMPOSED) -> Config:
    """Read composed.yaml. Raises PipelineError if it is missing, or if it was edited into something invalid."""
    remedy = f"{path} is written from conf/ and {paths.PARAMS}: run `dvc repro compose` to have it back"
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
