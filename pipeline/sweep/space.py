"""Sweeps as files in sweeps/: the settings that a sweep searches, and what it looks for.

They are not in conf/, of which DVC compares every file before it runs a stage.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from optuna.trial import Trial
from pydantic import (
    AfterValidator,
    Discriminator,
    Field,
    NonNegativeInt,
    PositiveInt,
    Tag,
    ValidationError,
    model_validator,
)

from pipeline.core.config import Section
from pipeline.core.errors import PipelineError, first_line
from pipeline.core.files import parse_yaml
from pipeline.core.validation import describe

FOLDER = Path("sweeps")
Objective = Literal["val_accuracy", "val_loss", "fit_seconds", "parameters"]
OBJECTIVES: tuple[Objective, ...] = get_args(Objective)
MAXIMIZED = {"val_accuracy"}
PER_EPOCH = {"val_accuracy", "val_loss"}
Number = int | float
LARGEST = {int: 1e15, float: 1e300}  # Optuna computes with floats, which are exact for these integers
Condition = dict[str, Any]  # the key applies if other keys have these values; a list holds several allowed values


class Range(Section):
    """Numbers from `low` to `high`, both included. They are integers if both ends are."""

    low: Number
    high: Number
    log: bool = False  # as many values per factor as per other factor, instead of per difference
    step: Number | None = None
    when: Condition = Field({})

    @model_validator(mode="after")
    def check(self) -> "Range":
        """Reject an empty range, a logarithm of what is not positive, and ends of different types."""
        if type(self.low) is not type(self.high):
            raise ValueError(f"low is {self.low}, and high is {self.high}: write both with a decimal point, or neither")
        if max(abs(self.low), abs(self.high)) > (largest := LARGEST[type(self.low)]):
            raise ValueError(f"low is {self.low}, and high is {self.high}: numbers may be at most {largest:.0e}")
        if self.low >= self.high:
            raise ValueError(f"low is {self.low}, and high is {self.high}: high must be larger")
        if self.log and self.low <= 0:
            raise ValueError(f"low is {self.low}, but a log scale requires a number above 0")
        if self.log and self.step is not None:
            raise ValueError("a range has either a log scale or a step")
        if self.step is not None and not 0 < self.step <= self.high - self.low:
            raise ValueError(f"step is {self.step}: it must be above 0 and at most {self.high - self.low}")
        return self

    def suggest(self, trial: Trial, key: str) -> Number:
        """Let Optuna choose a number."""
        low, high, step = self.low, self.high, self.step
        if isinstance(low, int) and isinstance(high, int) and isinstance(step, int | None):
            return trial.suggest_int(key, low, high, step=step or 1, log=self.log)
        return trial.suggest_float(key, low, high, step=step, log=self.log)

    @property
    def ends(self) -> list[Any]:
        """Values that must be valid."""
        return [self.low, self.high]

    def has(self, value: Any) -> bool:
        """Whether a value is in the range."""
        return isinstance(value, int | float) and self.low <= value <= self.high


class Choices(Section):
    """Values of any type, such as names of networks or lists of layer sizes."""

    choices: Annotated[list[Any], Field(min_length=1)]
    when: Condition = Field({})

    @model_validator(mode="after")
    def check(self) -> "Choices":
        """Reject values that Optuna cannot store, and equal ones, such as 1 and true."""
        try:
            categories = list(map(as_category, self.choices))
            json.dumps(categories)
        except (TypeError, ValueError, RecursionError):
            raise ValueError("choices may be text, numbers, true, false, null, lists and mappings") from None
        for number, category in enumerate(categories):
            if category in categories[:number]:
                raise ValueError(f"two choices are equal: {self.choices[number]!r}")
        return self

    def suggest(self, trial: Trial, key: str) -> Any:
        """Let Optuna choose a value."""
        categories = list(map(as_category, self.choices))
        return self.choices[categories.index(trial.suggest_categorical(key, categories))]

    @property
    def ends(self) -> list[Any]:
        """Values that must be valid."""
        return self.choices

    def has(self, value: Any) -> bool:
        """Whether a value is one of the choices."""
        return value in self.choices


def kind_of(values: Any) -> str:
    """The class of a key's values, so that errors are about that class alone."""
    held = values if isinstance(values, dict) else vars(values) if isinstance(values, Section) else {}
    return Choices.__name__ if "choices" in held else Range.__name__


Values = Annotated[
    Annotated[Range, Tag(Range.__name__)] | Annotated[Choices, Tag(Choices.__name__)], Discriminator(kind_of)
]


def as_category(value: Any) -> Any:
    """A choice as Optuna stores it: it has no lists, so these become text."""
    return json.dumps(value) if isinstance(value, list | dict) else value


def check_objectives(objectives: list[Objective]) -> list[Objective]:
    """Reject an objective that is named twice."""
    if len(set(objectives)) != len(objectives):
        raise ValueError("an objective is named twice")
    return objectives


class Sweep(Section):
    """A file of sweeps/."""

    objectives: Annotated[list[Objective], Field(min_length=1), AfterValidator(check_objectives)]
    trials: PositiveInt
    minutes: Annotated[Number, Field(gt=0)] | None = None  # after which no trial starts
    finalists: NonNegativeInt = 3  # the best trials, which are trained with further seeds; 0 for none
    seeds: Annotated[int, Field(ge=2)] = 3  # further seeds of each finalist
    limits: dict[Literal["parameters", "fit_seconds"], Annotated[Number, Field(gt=0)]] = Field({})  # of each trial
    pruner: Literal["median", "halving", "none"] = "halving"
    settings: dict[str, Any] = Field({})  # as in params.yaml, for every trial
    space: Annotated[dict[str, Values], Field(min_length=1)]

    @model_validator(mode="after")
    def check_conditions(self) -> "Sweep":
        """Reject conditions on keys that are not above them, and on values that those cannot have."""
        for number, (key, values) in enumerate(self.space.items()):
            if below := next((other for other in [*self.space][:number] if other.startswith(f"{key}.")), None):
                raise ValueError(f"space.{key} would replace {below}: move it above {below}")
            for other, allowed in values.when.items():
                if other not in [*self.space][:number]:
                    raise ValueError(f"space.{key}.when: {other} is not a key of the space above {key}")
                impossible = [each for each in listed(allowed) if not self.space[other].has(each)]
                if impossible or not listed(allowed):
                    raise ValueError(f"space.{key}.when: {other} is never {(impossible or [allowed])[0]!r}")
        return self

    @property
    def directions(self) -> list[Literal["maximize", "minimize"]]:
        """Optuna's name for the direction of each objective."""
        return ["maximize" if name in MAXIMIZED else "minimize" for name in self.objectives]

    @property
    def has_finals(self) -> bool:
        """Whether the best trials are compared over further seeds: by their errors, so there must be one objective."""
        return bool(self.finalists) and len(self.objectives) == 1 and self.objectives[0] in PER_EPOCH

    @property
    def identity(self) -> str:
        """What trials of one study have in common, as text."""
        return json.dumps(self.model_dump(include={"objectives", "settings", "space", "limits"}), sort_keys=True)


def listed(value: Any) -> list[Any]:
    """The values that a condition allows."""
    return value if isinstance(value, list) else [value]


def sweep_names() -> list[str]:
    """The names of the sweeps in sweeps/."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def read_sweep(name: str) -> Sweep:
    """Read a sweep. Raises PipelineError with one line per error: the file, the key, and what is allowed."""
    path = FOLDER / f"{name}.yaml"
    if name not in sweep_names():
        raise PipelineError(f"{FOLDER}/ has no sweep {name!r}, only {', '.join(sweep_names()) or 'none'}")
    try:
        values = parse_yaml(path.read_text(encoding="utf-8"))
        return Sweep.model_validate(values)
    except (yaml.YAMLError, UnicodeError, RecursionError) as error:
        raise PipelineError(f"{path} is not valid YAML: {first_line(error)}") from None
    except ValidationError as error:
        raise PipelineError("\n".join(f"{path}: {simplified(key)}: {text}" for key, text in describe(error))) from None


def simplified(key: str) -> str:
    """A key without the name of the class of its values."""
    return key.replace(f".{Range.__name__}", "").replace(f".{Choices.__name__}", "") or "the file"


def is_active(values: Range | Choices, chosen: Mapping[str, Any]) -> bool:
    """Whether a key applies, given the values of the keys above it."""
    return all(key in chosen and chosen[key] in listed(allowed) for key, allowed in values.when.items())


def suggest(trial: Trial, sweep: Sweep) -> dict[str, Any]:
    """Let Optuna choose a value for each key that applies."""
    chosen: dict[str, Any] = {}
    for key, values in sweep.space.items():
        if is_active(values, chosen):
            chosen[key] = values.suggest(trial, key)
    return chosen


def merged(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Merge nested mappings; later ones win. A group's option by name, as in `model: cnn`, becomes `{name: cnn}`."""
    found: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            held = found.get(key)
            if isinstance(value, dict) and held is not None and not isinstance(held, dict):
                held = {"name": held}
            found[key] = merged(held, value) if isinstance(held, dict) and isinstance(value, dict) else value
    return found


def nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted keys as nested mappings, as in params.yaml."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        for part in reversed(key.split(".")):
            value = {part: value}  # noqa: PLW2901 (from the last part to the first)
        found = merged(found, value)
    return found


def without(values: Mapping[str, Any], keys: Iterable[str]) -> dict[str, Any]:
    """Nested mappings without some dotted keys."""
    found = dict(values)
    for key in keys:
        first, _, rest = key.partition(".")
        if rest and isinstance(found.get(first), Mapping):
            found[first] = without(found[first], [rest])
        elif not rest or (rest == "name" and first in found):  # a group's option by name
            found.pop(first, None)
    return found
