"""Building what the configuration names, and nothing else: it may come from somebody else, and must not run code."""

from collections.abc import Callable
from typing import Any

import keras
from hydra.errors import HydraException
from hydra.utils import get_object, instantiate

from pipeline.config import TARGET_KEY, targets
from pipeline.errors import PipelineError, first_line
from pipeline.train.archive import is_keras

KINDS = (
    *(keras.Layer, keras.optimizers.Optimizer, keras.optimizers.schedules.LearningRateSchedule),
    *(keras.initializers.Initializer, keras.regularizers.Regularizer, keras.constraints.Constraint),
)
# These call a function that they are given, or run a model that they read from a file.
OUTSIDE = {"Lambda", "TFSMLayer", "TorchModuleWrapper", "JaxLayer", "FlaxLayer"}

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
    target = spec[TARGET_KEY]
    try:
        for name in targets(spec):
            check_target(name, key)
        return instantiate(spec, _convert_="all")
    except (HydraException, ValueError, TypeError, ImportError, AttributeError) as error:
        raise PipelineError(f"{key}: {target} cannot be built: {first_line(error.__cause__ or error)}") from None


def check_target(target: str, key: str) -> None:
    """Raise PipelineError unless `target` is a class that networks and optimizers are made of, or a marked builder."""
    found = get_object(target)
    if isinstance(found, type) and issubclass(found, KINDS):
        if found.__name__ in OUTSIDE:
            raise PipelineError(f"{key}: {target} is not allowed: it runs code from elsewhere")
    elif not getattr(found, "builds_layers", False):
        raise PipelineError(
            f"{key}: {target} is not allowed: it is no layer, optimizer, schedule, initializer, regularizer or "
            "constraint, and no function that is marked as a builder (@builder of pipeline.train.components)"
        )


def check_layer(layer: Any, key: str) -> None:
    """Raise PipelineError if this is no layer, or one that cannot be read from a saved network."""
    if not isinstance(layer, keras.Layer):
        raise PipelineError(f"{key}: {type(layer).__name__} is no Keras layer")
    foreign = [type(part).__name__ for part in layer._flatten_layers() if not is_keras(part)]
    if foreign:
        raise PipelineError(f"{key}: {foreign[0]} is no layer of Keras's own, and a saved network can hold no others")
