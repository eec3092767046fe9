"""Validate and load composed.yaml; errors name the file, the key, its value and what is allowed."""

from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from pipeline.core import paths
from pipeline.core.config import Config
from pipeline.core.errors import PipelineError, first_line
from pipeline.core.files import parse_yaml


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
