"""Validate and load composed.yaml; errors name the file, the key, its value and what is allowed."""

import reprlib
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from pipeline.core import paths
from pipeline.core.config import Config
from pipeline.core.errors import PipelineError, first_line, shown
from pipeline.core.files import parse_yaml
from pipeline.core.settings import settings_of

SHORT = reprlib.Repr()
SHORT.maxstring = SHORT.maxother = SHORT.maxlong = 200  # characters


def describe(error: ValidationError) -> list[tuple[str, str]]:
    """List the key and the message of each error, such as ('training.epochs', "got 'a'; input …")."""
    complaints = {}
    for item in error.errors(include_url=False):
        key = shown(".".join(str(part) for part in item["loc"] if part not in ("idx", "scikit-learn")))
        message = item["msg"].removeprefix("Value error, ")
        held = item["input"]
        if item["type"] == "missing":
            message = "is missing"
        elif item["type"] == "extra_forbidden":
            message = "is not a known key"
        elif not isinstance(held, dict | BaseModel):
            message = f"got {SHORT.repr(held)}; {message[0].lower()}{message[1:]}"
        complaints[key] = message
    return list(complaints.items())


def related(one: str, other: str) -> bool:
    """Whether two dotted keys are equal, or one is inside the other."""
    return f"{one}.".startswith(f"{other}.") or f"{other}.".startswith(f"{one}.")


def parse_config(values: Any, origin: dict[str, str], fallback: str) -> Config:
    """Validate composed values. `origin` maps dotted keys to the files that set them; other keys are from `fallback`.

    Raises PipelineError with one line per invalid value: its file, key, value, and what is allowed.
    """

    def file_of(key: str) -> str:
        return next((file for name, file in origin.items() if related(name, key)), fallback)

    try:
        return Config.model_validate(values)
    except ValidationError as error:
        lines = [f"{file_of(key)}: {key or 'the file'}: {message}" for key, message in describe(error)]
        raise PipelineError("\n".join(lines)) from None


def load_config(path: Path = paths.COMPOSED, stage: str | None = None) -> Config:
    """Load composed.yaml, for a stage or for any other command.

    Raises PipelineError if it is missing or invalid, or if it differs from the settings by which DVC judges the stage.
    """
    generated = f"{path} is generated from conf/ and {paths.PARAMS}:"
    remedy = f"{generated} remove it and run `dvc repro` to restore it"
    try:
        values = parse_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise PipelineError(f"{path} is missing. {generated} run `dvc repro`.") from None
    except (yaml.YAMLError, UnicodeError) as error:
        raise PipelineError(f"{path} is not YAML ({first_line(error)}). {remedy}.") from None
    try:
        config = parse_config(values, {}, str(path))
    except PipelineError as error:
        raise PipelineError(f"{error}. {remedy}.") from None
    if stage is not None:
        check_settings(stage, values)
    return config


def check_settings(stage: str, composed: dict[str, Any]) -> None:
    """Raise PipelineError unless composed/STAGE.yaml has the values of composed.yaml.

    They differ if one of the two was restored or edited, such as by `git checkout`, and only this stage is run: DVC
    would record results of the one under the other.
    """
    path = paths.SETTINGS[stage]
    try:
        recorded = parse_yaml(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeError):
        recorded = None
    if recorded != settings_of(stage, composed):
        raise PipelineError(f"{path} does not match {paths.COMPOSED}: remove both and run `dvc repro`")
