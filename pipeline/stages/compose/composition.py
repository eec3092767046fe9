"""Compose conf/ and params.yaml into one configuration."""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.utils import setup_globals
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from omegaconf.resolvers import oc

from pipeline.core import paths
from pipeline.core.errors import PipelineError, shown
from pipeline.core.files import parse_yaml
from pipeline.core.machine import pinned_versions
from pipeline.core.validation import parse_config
from pipeline.stages.compose.references import check_references, check_texts

HYDRA = re.compile(r"^\s*#\s*@package\s+.*hydra", re.MULTILINE)
HEADER = "# Written by the compose stage from conf/ and params.yaml: edit those, not this.\n"


def options(conf: Path) -> dict[str, list[str]]:
    """Config groups in `conf` and the options of each, such as {'model': ['cnn', 'mlp'], …}."""
    folders = sorted(folder for folder in conf.iterdir() if folder.is_dir())
    return {folder.name: sorted(file.stem for file in folder.glob("*.yaml")) for folder in folders}


def read_params(path: Path) -> dict[str, Any]:
    """Read params.yaml. Raises PipelineError if it is not a YAML mapping."""
    try:
        text = path.read_text(encoding="utf-8")
        check_texts(parse_yaml(text))
        values = OmegaConf.to_container(OmegaConf.load(io.StringIO(text)))
    except FileNotFoundError:
        raise PipelineError(f"{path} is missing: `git checkout {path}` restores it") from None
    except Exception as error:  # PyYAML and OmegaConf raise many kinds for a value that its tag does not allow
        raise PipelineError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise PipelineError(f"{path} must be a mapping of keys to values, such as `recipe: baseline`")
    return {str(key): value for key, value in values.items()}


def compose_config(conf: Path, params: Path, requirements: Path = paths.REQUIREMENTS) -> dict[str, Any]:
    """Compose and validate the configuration, and return it as plain values.

    Raises PipelineError with the file, the key, its value and what is allowed.
    """
    return compose_values(conf, read_params(params), params, requirements)


def compose_values(
    conf: Path, given: dict[str, Any], params: Path, requirements: Path = paths.REQUIREMENTS
) -> dict[str, Any]:
    """Compose `conf` with values as in params.yaml, which errors name as the content of `params`."""
    groups = options(conf)
    choices, values = split_choices(given, groups, params)
    check_files(conf)
    try:
        with without_environment(), initialize_config_dir(str(conf.resolve()), version_base="1.3"):
            composed = compose("config", [f"{group}={option}" for group, option in choices.items()])
        with without_environment():
            if isinstance(composed.gate, DictConfig):  # otherwise parse_config reports it
                composed.gate.seed_noise = own_record(conf, str(composed.recipe), groups["recipe"])
            for key in _keys(values):
                check_key(composed, key, params)
            values = without_null(values)
            origin = dict.fromkeys(_keys(values), str(params))
            composed.merge_with(values)
            check_references(OmegaConf.to_container(composed))
            plain = OmegaConf.to_container(composed, resolve=True)
    except (HydraException, OmegaConfBaseException, yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        raise PipelineError(f"cannot compose {conf}/ and {params}: {' '.join(str(error).split())}") from None
    assert isinstance(plain, dict)
    pinned = pinned_versions(requirements)
    versions = {package: [*pinned[package]][-1] for package in ("keras", "tensorflow") if package in pinned}
    found = {str(key): value for key, value in plain.items()} | {"versions": versions}
    return parse_config(found, origin, f"{conf}/").model_dump(by_alias=True)


def check_files(conf: Path) -> None:
    """Raise PipelineError for a file of `conf` that Hydra would read in another way than a mapping of plain YAML."""
    for path in sorted(conf.rglob("*")):
        if path.is_symlink() and path.is_dir():
            raise PipelineError(f"{path} is a link to a folder, in which DVC does not see changes: copy the folder")
        if path.suffix == ".yaml":
            check_for_hydra(path)


def check_for_hydra(path: Path) -> None:
    """Raise PipelineError if a file of conf/ configures Hydra itself, which could make Hydra import a package.

    Anything but plain YAML is also an error, because Hydra's loader accepts more.
    """
    try:
        text = path.read_text(encoding="utf-8")
        values = parse_yaml(text)
        check_texts(values)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise PipelineError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    held = {} if values is None else values  # an empty file
    if not isinstance(held, dict):
        raise PipelineError(f"{path} must be a mapping of keys to values")
    defaults = held.get("defaults") or []
    if not isinstance(defaults, list) or not all(map(is_default, defaults)):
        raise PipelineError(f"{path}: defaults: must be a list of options in conf/, such as `- optimizer: adam`")
    if HYDRA.search(text) or any("hydra" in str(name) or "://" in str(name) for name in [*held, *defaults]):
        raise PipelineError(f"{path}: configures Hydra itself, which is not allowed")


def is_default(entry: Any) -> bool:
    """Whether an entry of a defaults list names files in conf/. `..` leads out of it, where DVC sees no change."""
    named = [entry] if isinstance(entry, str) else []
    if isinstance(entry, dict):
        options = [option for value in entry.values() for option in (value if isinstance(value, list) else [value])]
        named = [*entry, *(option for option in options if option is not None)]
    return bool(named) and all(isinstance(name, str) and ".." not in Path(name).parts for name in named)


@contextmanager
def without_environment() -> Iterator[None]:
    """Reject interpolations that depend on the machine or the time, because composed.yaml is committed."""

    def refuse(*_: str) -> None:
        raise ValueError(f"{paths.COMPOSED} is committed, so it must not depend on one machine's environment (oc.env)")

    for name in ("oc.env", "now", "python_version"):
        OmegaConf.register_new_resolver(name, refuse, replace=True)
    try:
        yield
    finally:
        OmegaConf.register_new_resolver("oc.env", oc.env, replace=True)
        setup_globals()  # registers Hydra's resolvers again


def own_record(conf: Path, recipe: str, recipes: list[str]) -> Any:
    """Seed noise in a recipe's own file: a recipe does not inherit the record of the recipe that it extends."""
    if recipe not in recipes:
        return {}
    values = parse_yaml((conf / "recipe" / f"{recipe}.yaml").read_text(encoding="utf-8"))
    gate = values.get("gate") if isinstance(values, dict) else None
    return (gate.get("seed_noise") if isinstance(gate, dict) else None) or {}


def split_choices(
    given: dict[str, Any], groups: dict[str, list[str]], params: Path
) -> tuple[dict[str, str], dict[str, Any]]:
    """Split the content of params.yaml into options, chosen by name, and values that override them.

    The value of a group is the name of an option, or a mapping with that name under `name`.
    Raises PipelineError if the group has no option of that name.
    """
    choices, values = {}, {}
    for key, value in given.items():
        if key not in groups:
            values[key] = value
            continue
        if isinstance(value, dict) and "name" not in value:  # `-S model=cnn -S +model.dropout=0.3` drops cnn
            raise PipelineError(
                f"{params}: {key}: has values but no name: set {key}.name to one of {', '.join(groups[key])}, "
                "or to null for the recipe's choice"
            )
        picked = value.get("name") if isinstance(value, dict) else value
        if picked is not None and picked not in groups[key]:
            raise PipelineError(
                f"{params}: {key}: {picked!r} is not one of conf/{key}/: {', '.join(groups[key])}"
                f"{_suggestion(str(picked), groups[key])}"
            )
        if picked is not None:
            choices[key] = picked
        if isinstance(value, dict):
            values[key] = {inner: held for inner, held in value.items() if inner != "name"}
    return choices, values


def check_key(composed: DictConfig, key: str, params: Path) -> None:
    """Raise PipelineError if the composed configuration does not have `key`, a dotted key."""
    parts = key.split(".")
    node: Any = composed
    for depth, part in enumerate(parts):
        if not isinstance(node, DictConfig):
            return
        if part not in node:
            known = [str(name) for name in node]
            inside = shown(".".join(parts[:depth])) or "the top level"
            raise PipelineError(
                f"{params}: {shown(key)}: unknown key {part!r}; {inside} has {', '.join(known)}"
                f"{_suggestion(part, known)}"
            )
        node = node[part]


def to_yaml(config: dict[str, Any]) -> str:
    """Text of composed.yaml."""
    return HEADER + yaml.safe_dump(config, sort_keys=False, allow_unicode=True, width=120)


def without_null(values: dict[Any, Any]) -> dict[str, Any]:
    """Nested values without those that are null, and without empty mappings."""
    cleaned = {str(key): without_null(v) if isinstance(v, dict) else v for key, v in values.items()}
    return {key: value for key, value in cleaned.items() if value is not None and value != {}}


def _keys(values: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _keys(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def _suggestion(name: str, known: list[str]) -> str:
    close = get_close_matches(name, known, n=1)
    return f". Did you mean {close[0]!r}?" if close else ""
