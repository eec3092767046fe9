"""Build the objects that a configuration names. The configuration is untrusted: it must not run code or read files."""

import importlib
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import keras

from pipeline.core.backends import load_backend
from pipeline.core.cluster import find_cluster
from pipeline.core.errors import PipelineError, first_line, is_disconnected, is_exhausted, without_secrets
from pipeline.core.targets import TARGET_KEY, targets
from pipeline.stages.train.archive import is_keras

PARTS: dict[str, type] = {  # the type of a nested object, by the ending of its key; other keys hold layers
    "_regularizer": keras.regularizers.Regularizer,
    "_initializer": keras.initializers.Initializer,
    "_constraint": keras.constraints.Constraint,
    "learning_rate": keras.optimizers.schedules.LearningRateSchedule,
    "inner_optimizer": keras.optimizers.Optimizer,
}
KINDS = (keras.Layer, keras.optimizers.Optimizer, *PARTS.values())
# Layers that call a given function, run a given model, or read a given file.
OUTSIDE = {"Lambda", "TFSMLayer", "TorchModuleWrapper", "JaxLayer", "FlaxLayer"}
OUTSIDE |= {"TextVectorization", "StringLookup", "IntegerLookup"}

COLOR = re.compile(r"\x1b\[\d*m")
# Starts of lines that do not name the cause of an error.
EMPTY = ("Exception encountered", "Graph execution error", "Detected at node", "File ", "<stack traces")
QUANTIZED, FLOAT8 = keras.dtype_policies.QuantizedDTypePolicy, keras.dtype_policies.QuantizedFloat8DTypePolicy
LONGEST = 300  # characters of an error message

Layers = Callable[..., list[keras.Layer]]


def builder(function: Layers) -> Layers:
    """Allow a configuration's `builder` to name this function, which returns layers."""
    function.builds_layers = True  # type: ignore[attr-defined]
    return function


def build(spec: dict[str, Any], key: str) -> Any:
    """Call the class or builder that `_target_` names, with the other entries as arguments.

    Every target, at any depth, is checked before the first one is called.
    Raises PipelineError, naming `key`, if a target does not exist, is not allowed, or rejects its arguments.
    """
    found = {target: find_target(target, key) for target in targets(spec)}
    check_nodes(spec, key, found)
    own = {part.__name__: part for part in found.values() if not part.__module__.startswith("keras.")}
    with explained(f"{key}: {spec[TARGET_KEY]} cannot be built"), keras.saving.custom_object_scope(own):
        return construct(spec, found)


def construct(node: Any, found: dict[str, Any]) -> Any:
    """Return `node` with every mapping that has a `_target_` replaced by the object it describes, innermost first."""
    if isinstance(node, dict):
        values = {name: construct(value, found) for name, value in node.items() if name != TARGET_KEY}
        return found[node[TARGET_KEY]](**values) if TARGET_KEY in node else values
    return [construct(value, found) for value in node] if isinstance(node, list) else node


def find_target(target: str, key: str) -> Any:
    """Import the class or builder that a `_target_` names. Raises PipelineError if it is not allowed."""
    module, _, name = target.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise PipelineError(f"{key}: {target} cannot be built: {first_line(error)}") from None
    home = getattr(found, "__module__", "")
    known = isinstance(found, type) and issubclass(found, KINDS) and home.startswith(("keras.", module))
    if not known and not (getattr(found, "builds_layers", False) and home == module):
        raise PipelineError(
            f"{key}: {target} is not allowed: it must be a layer, optimizer, schedule, initializer, regularizer or "
            "constraint, or a function marked with @builder (pipeline.stages.train.components)"
        )
    if home.startswith("keras.") and found.__name__ in OUTSIDE:
        raise PipelineError(f"{key}: {target} is not allowed: it can run code or read files")
    return found


def check_nodes(node: Any, place: str, found: dict[str, Any], name: str = "") -> None:
    """Raise PipelineError if a nested object has the wrong type, or a mapping has special keys besides `_target_`."""
    if isinstance(node, dict):
        foreign = [key for key in map(str, node) if key != TARGET_KEY and (key == "class_name" or key.startswith("_"))]
        if foreign:
            raise PipelineError(f"{place}: {foreign[0]} is not allowed: give only {TARGET_KEY} and its arguments")
        target = node.get(TARGET_KEY)
        expected = next((kind for ending, kind in PARTS.items() if name.endswith(ending)), keras.Layer)
        if name and target and not (isinstance(found[target], type) and issubclass(found[target], expected)):
            raise PipelineError(f"{place}: {name}: must be of type {expected.__name__}, not {target}")
        for inner, child in node.items():
            check_nodes(child, place, found, str(inner))
    elif isinstance(node, list):
        for child in node:
            check_nodes(child, place, found, name)


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Turn errors of Keras or its backend into a PipelineError that starts with `what`, but not exhausted memory."""
    builtin = (ValueError, TypeError, AttributeError, LookupError, ArithmeticError, RuntimeError, ImportError, re.error)
    errors: tuple[type[Exception], ...] = (*builtin, *load_backend().errors)
    try:
        yield
    except errors as error:
        if is_exhausted(error) or (find_cluster() and is_disconnected(error)):
            raise
        raise PipelineError(f"{what}: {cause(error)}") from None


def cause(error: Exception) -> str:
    """The first informative line of an error message, without terminal colors."""
    lines = [COLOR.sub("", line).strip() for line in str(error).splitlines()]
    said = next((line for line in lines if line and not line.startswith(EMPTY)), first_line(error))
    return without_secrets(said)[:LONGEST]


def check_layer(layer: Any, key: str) -> None:
    """Raise PipelineError if `layer` is not a layer, cannot be trained, or cannot be loaded from a saved network."""
    if not isinstance(layer, keras.Layer):
        raise PipelineError(f"{key}: {type(layer).__name__} is not a Keras layer")
    foreign = [type(part).__name__ for part in layer._flatten_layers() if not is_keras(part)]
    if foreign:
        raise PipelineError(
            f"{key}: {foreign[0]} is not a built-in Keras layer, and a saved network can contain no others"
        )
    policies = [part.dtype_policy for part in layer._flatten_layers()]
    fixed = [policy.name for policy in policies if isinstance(policy, QUANTIZED) and not isinstance(policy, FLOAT8)]
    if fixed:
        raise PipelineError(f"{key}: dtype {fixed[0]}: Keras does not train quantized weights")


def check_names(layers: list[tuple[str, keras.Layer]], reserved: set[str], prefix: str) -> None:
    """Raise PipelineError if two layers share a name, or a name is reserved."""
    seen: set[str] = set()
    for key, layer in layers:
        if layer.name in reserved or layer.name.startswith(prefix):
            raise PipelineError(f"{key}: name: {layer.name} is reserved")
        if layer.name in seen:
            raise PipelineError(f"{key}: name: two layers are called {layer.name}")
        seen.add(layer.name)
