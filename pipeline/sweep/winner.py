"""From the best trial to a change of params.yaml or a new recipe, so that a model always comes from `dvc repro`."""

import io
import itertools
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from ruamel.yaml import YAML
from ruamel.yaml.scalarstring import DoubleQuotedScalarString

from pipeline.core import paths
from pipeline.core.errors import PipelineError
from pipeline.core.files import replacing, write_text
from pipeline.stages.compose.composition import options, read_params, without_null
from pipeline.sweep.space import merged

DEFAULT_RECIPE = "baseline"  # of conf/config.yaml


def edits(params: Mapping[str, Any], current: Mapping[str, Any]) -> dict[str, str]:
    """The dotted keys of `params` with other values than in the current content of params.yaml, as YAML."""
    known, wanted = dict(leaves(current)), dict(leaves(params))
    changed = {key: json.dumps(value) for key, value in wanted.items() if known.get(key, ...) != value}
    pairs = itertools.product(known, wanted)
    replaced = {key for key, other in pairs if other.startswith(f"{key}.") or key.startswith(f"{other}.")}
    return changed | {key: "(remove)" for key in known if key not in wanted and key not in replaced}


def leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The dotted keys of nested mappings, and their values; a list is one value."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def apply(params: Mapping[str, Any], base: Mapping[str, Any]) -> None:
    """Write the content of params.yaml, and keep its comments.

    Raises PipelineError if the file is no longer as when the study was started, or if it cannot be changed in place.
    """
    text = paths.PARAMS.read_text(encoding="utf-8")
    if changed := edits(read_params(paths.PARAMS), base):
        raise PipelineError(
            f"{paths.PARAMS} has changed since the study was started ({', '.join(changed)}): restore it, or write "
            "a recipe with --recipe"
        )
    round_trip, output = YAML(), io.StringIO()
    content = round_trip.load(text)
    if content is None:  # comments alone
        output.write(f"{text}{yaml.safe_dump(dict(params), sort_keys=False, allow_unicode=True)}")
    else:
        put(content, params)
        round_trip.dump(content, output)
    with replacing(paths.PARAMS) as temporary:
        temporary.write_text(output.getvalue(), encoding="utf-8")
        if read_params(temporary) != params:
            raise PipelineError(f"{paths.PARAMS} has anchors, so that it must be changed by hand as listed above")


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
    """Make nested values equal in place, so that the comments beside them stay."""
    for key in [key for key in content if key not in values]:
        del content[key]
    for key, value in values.items():
        if isinstance(value, Mapping) and isinstance(content.get(key), Mapping):
            put(content[key], value)
        elif key not in content or content[key] != value:
            content[key] = quoted(value)


def quoted(value: Any) -> Any:
    """A value with quoted texts: Hydra reads YAML 1.1, in which `on` is true, and ruamel.yaml writes YAML 1.2."""
    if isinstance(value, Mapping):
        return {key: quoted(each) for key, each in value.items()}
    if isinstance(value, list):
        return [quoted(each) for each in value]
    plain = not isinstance(value, str) or value == yaml.safe_load(value)
    return value if plain else DoubleQuotedScalarString(value)
