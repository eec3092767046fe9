"""From the best trial to a change of params.yaml, so that a model always comes from `dvc repro`."""

from collections.abc import Mapping
from typing import Any

from ruamel.yaml import YAML

from pipeline.core import paths
from pipeline.core.config import flatten
from pipeline.core.files import replacing


def edits(params: Mapping[str, Any], current: Mapping[str, Any]) -> dict[str, Any]:
    """The dotted keys of `params` that differ from the current content of params.yaml."""
    known = dict(flatten(dict(current)))
    return {key: value for key, value in flatten(dict(params)) if known.get(key, ...) != value}


def apply(params: Mapping[str, Any]) -> None:
    """Write values into params.yaml, and keep its comments."""
    yaml = YAML()
    content = yaml.load(paths.PARAMS.read_text(encoding="utf-8")) or {}
    put(content, params)
    with replacing(paths.PARAMS) as temporary, temporary.open("w", encoding="utf-8") as file:
        yaml.dump(content, file)


def put(content: Any, values: Mapping[str, Any]) -> None:
    """Set nested values in place, so that the comments beside them stay."""
    for key, value in values.items():
        if isinstance(value, Mapping) and isinstance(content.get(key), Mapping):
            put(content[key], value)
        else:
            content[key] = value
