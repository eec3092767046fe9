"""The typed schema of composed.yaml."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveInt,
    model_validator,
)

from pipeline.core.files import text_digest
from pipeline.core.targets import TARGET_KEY, check_component, check_learning_rate, check_targets

DECIDING = ("model", "optimizer", "training")  # sections of composed.yaml that identify a record of seed noise


def flatten(values: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted keys and values of nested mappings and lists, such as ('model.layers.0.units', 512)."""
    items = values.items() if isinstance(values, dict) else enumerate(values)
    for key, value in items:
        if isinstance(value, dict | list):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def configuration_digest(composed: Mapping[str, Any], test_md5: str) -> str:
    """Digest of the model, optimizer and training settings in composed.yaml, and of the test images.

    Parts of this project count under their earlier module names, so that earlier records of seed noise stay valid.
    """
    settings = flatten({key: composed.get(key) for key in DECIDING})
    texts = sorted(str(setting).replace("pipeline.stages.train.", "pipeline.train.") for setting in settings)
    return text_digest(repr([*texts, test_md5]))


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

    `python -m pipeline.commands.gate --record` measures it and writes it to the recipe's file.
    """

    seeds: Annotated[int, Field(ge=10, le=2**31)]
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
