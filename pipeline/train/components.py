"""Building what the configuration names, and nothing else: it may come from somebody else, and must not run code."""

import importlib
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import keras

from pipeline.backends import load_backend
from pipeline.config import TARGET_KEY, targets
from pipeline.errors import PipelineError, first_line, without_secrets
from pipeline.train.archive import is_keras

PARTS: dict[str, type] = {  # what may stand under a key that ends like this; under any other a layer
    "_regularizer": keras.regularizers.Regularizer,
    "_initializer": keras.initializers.Initializer,
    "_constraint": keras.constraints.Constraint,
    "learning_rate": keras.optimizers.schedules.LearningRateSchedule,
    "inner_optimizer": keras.optimizers.Optimizer,
}
KINDS = (keras.Layer, keras.optimizers.Optimizer, *PARTS.values())
# These call a function or run a model that they are given, or read a file that they are told of.
OUTSIDE = {"Lambda", "TFSMLayer", "TorchModuleWrapper", "JaxLayer", "FlaxLayer"}
OUTSIDE |= {"TextVectorization", "StringLookup", "IntegerLookup"}

COLOUR = re.compile(r"\x1b\[\d*m")
# How lines of errors begin that say nothing.
EMPTY = ("Exception encountered", "Graph execution error", "Detected at node", "File ", "<stack traces")
LONGEST = 300  # characters of an error that are shown

Layers = Callable[..., list[keras.Layer]]


def builder(function: Layers) -> Layers:
    """Mark a function as one that a `builder` of the configuration may name: it returns layers."""
    function.builds_layers = True  # type: ignore[attr-defined]
    return function


def build(spec: dict[str, Any], key: str) -> Any:
    """Call what `_target_` names with the other entries as arguments.

    Raises PipelineError, naming `key`, if there is no such thing, if it is not for configurations, or if it refuses its
    arguments. Nothing is called before all that the entries name, at any depth, was looked at.
    """
    found = {target: find_target(target, key) for target in targets(spec)}
    check_nodes(spec, key, found)
    own = {part.__name__: part for part in found.values() if not part.__module__.startswith("keras.")}
    with explained(f"{key}: {spec[TARGET_KEY]} cannot be built"), keras.saving.custom_object_scope(own):
        return construct(spec, found)


def construct(node: Any, found: dict[str, Any]) -> Any:
    """A configuration with everything in it that has a `_target_` made, from the inside out."""
    if isinstance(node, dict):
        values = {name: construct(value, found) for name, value in node.items() if name != TARGET_KEY}
        return found[node[TARGET_KEY]](**values) if TARGET_KEY in node else values
    return [construct(value, found) for value in node] if isinstance(node, list) else node


def find_target(target: str, key: str) -> Any:
    """What a `_target_` names. Raises PipelineError unless it is for configurations."""
    module, _, name = target.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise PipelineError(f"{key}: {target} cannot be built: {first_line(error)}") from None
    home = getattr(found, "__module__", "")
    known = isinstance(found, type) and issubclass(found, KINDS) and home.startswith(("keras.", module))
    if not known and not (getattr(found, "builds_layers", False) and home == module):
        raise PipelineError(
            f"{key}: {target} is not allowed: it is no layer, optimizer, schedule, initializer, regularizer or "
            "constraint, and no function that is marked as a builder (@builder of pipeline.train.components)"
        )
    if home.startswith("keras.") and found.__name__ in OUTSIDE:
        raise PipelineError(f"{key}: {target} is not allowed: it runs code, or reads files, from elsewhere")
    return found


def check_nodes(node: Any, place: str, found: dict[str, Any], name: str = "") -> None:
    """Raise PipelineError if something is named where something of another kind belongs, or in another way."""
    if isinstance(node, dict):
        foreign = [key for key in map(str, node) if key != TARGET_KEY and (key == "class_name" or key.startswith("_"))]
        if foreign:
            raise PipelineError(f"{place}: {foreign[0]} is not allowed: {TARGET_KEY} and arguments say what to build")
        target = node.get(TARGET_KEY)
        expected = next((kind for ending, kind in PARTS.items() if name.endswith(ending)), keras.Layer)
        if name and target and not (isinstance(found[target], type) and issubclass(found[target], expected)):
            raise PipelineError(f"{place}: {name}: {target} is no {expected.__name__}")
        for inner, child in node.items():
            check_nodes(child, place, found, str(inner))
    elif isinstance(node, list):
        for child in node:
            check_nodes(child, place, found, name)


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Say in a line what Keras, or its backend, makes of a configuration inside the block that it cannot work with."""
    builtin = (ValueError, TypeError, AttributeError, LookupError, ArithmeticError, RuntimeError, ImportError, re.error)
    errors: tuple[type[Exception], ...] = (*builtin, *load_backend().errors)
    try:
        yield
    except errors as error:
        raise PipelineError(f"{what}: {cause(error)}") from None


def cause(error: Exception) -> str:
    """The line of an error of Keras or a backend that says something, without colours."""
    lines = [COLOUR.sub("", line).strip() for line in str(error).splitlines()]
    said = next((line for line in lines if line and not line.startswith(EMPTY)), first_line(error))
    return without_secrets(said)[:LONGEST]


def check_layer(layer: Any, key: str) -> None:
    """Raise PipelineError if this is no layer, or one that cannot be read from a saved network."""
    if not isinstance(layer, keras.Layer):
        raise PipelineError(f"{key}: {type(layer).__name__} is no Keras layer")
    foreign = [type(part).__name__ for part in layer._flatten_layers() if not is_keras(part)]
    if foreign:
        raise PipelineError(f"{key}: {foreign[0]} is no layer of Keras's own, and a saved network can hold no others")


def check_names(layers: list[tuple[str, keras.Layer]], reserved: set[str], prefix: str) -> None:
    """Raise PipelineError if two layers have one name, or one has a name that the pipeline gives itself."""
    seen: set[str] = set()
    for key, layer in layers:
        if layer.name in reserved or layer.name.startswith(prefix):
            raise PipelineError(f"{key}: name: the pipeline itself calls a part of the network {layer.name}")
        if layer.name in seen:
            raise PipelineError(f"{key}: name: another layer is called {layer.name}, too")
        seen.add(layer.name)
