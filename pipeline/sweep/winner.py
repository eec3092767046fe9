"""From the best trial to a change of params.yaml or a new recipe, so that a model always comes from `dvc repro`."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from ruamel.yaml import YAML

from pipeline.core import paths
from pipeline.core.config import flatten
from pipeline.core.errors import PipelineError
from pipeline.core.files import replacing, write_text
from pipeline.stages.compose.composition import options, without_null
from pipeline.sweep.settings import merged

DEFAULT_RECIPE = "baseline"  # of conf/config.yaml


def edits(params: Mapping[str, Any], current: Mapping[str, Any]) -> dict[str, Any]:
    """The dotted keys of `params` that differ from the current content of params.yaml."""
    known = dict(flatten(dict(current)))
    return {key: value for key, value in flatten(dict(params)) if known.get(key, ...) != value}


def apply(params: Mapping[str, Any]) -> None:
    """Write values into params.yaml, and keep its comments."""
    round_trip = YAML()
    content = round_trip.load(paths.PARAMS.read_text(encoding="utf-8")) or {}
    put(content, params)
    with replacing(paths.PARAMS) as temporary, temporary.open("w", encoding="utf-8") as file:
        round_trip.dump(content, file)


def check_recipe(name: str) -> None:
    """Raise PipelineError if a new recipe cannot have this name."""
    if not re.fullmatch("[a-z][a-z0-9_-]{0,40}", name):
        raise PipelineError(f"--recipe {name}: use lowercase letters, digits, _ and -")
    if recipe_file(name).exists():
        raise PipelineError(f"--recipe {name}: {recipe_file(name)} exists: choose another name, or remove it")


def recipe_file(name: str) -> Path:
    """The file of a recipe."""
    return paths.CONF / "recipe" / f"{name}.yaml"


def write_recipe(name: str, params: Mapping[str, Any], comment: str) -> None:
    """Write settings as a recipe that extends theirs, with a comment at its top."""
    groups = [group for group in options(paths.CONF) if group != "recipe"]
    given = {
        key: {"name": value} if key in groups and isinstance(value, str) else value for key, value in params.items()
    }
    values = without_null(merged(given))
    extended = values.pop("recipe", DEFAULT_RECIPE)
    values.pop("seed", None)
    chosen = {group: values[group].pop("name") for group in groups if "name" in values.get(group, {})}
    defaults = [extended, *({f"override /{group}": option} for group, option in chosen.items())]
    content = {"defaults": defaults, "recipe": name} | without_null(values)
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    write_text(recipe_file(name), f"# @package _global_\n# {comment}\n{text}")


def put(content: Any, values: Mapping[str, Any]) -> None:
    """Set nested values in place, so that the comments beside them stay."""
    for key, value in values.items():
        if isinstance(value, Mapping) and isinstance(content.get(key), Mapping):
            put(content[key], value)
        else:
            content[key] = value
