"""The objects that a configuration may name: every `_target_` in it, at any depth."""

import re
import sys
from collections.abc import Iterator
from typing import Any

TARGET_KEY = "_target_"
KERAS_PARTS = r"layers|optimizers(\.schedules)?|initializers|regularizers|constraints"
ALLOWED_TARGET = re.compile(rf"keras\.(Sequential|({KERAS_PARTS})\.\w+)|pipeline\.stages\.train(\.\w+){{2,}}")


def targets(node: Any) -> Iterator[Any]:
    """Yield every `_target_` in a configuration, at any depth."""
    if isinstance(node, dict) and node.get(TARGET_KEY) is not None:
        yield node[TARGET_KEY]
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from targets(child)


def check_targets(node: Any) -> Any:
    """Return `node` if every `_target_` in it, at any depth, has an allowed name; the class is checked on import."""
    for target in targets(node):
        if not (isinstance(target, str) and ALLOWED_TARGET.fullmatch(target)):
            raise ValueError(
                f"{TARGET_KEY} {target!r} is not allowed: it must name an object in keras.layers, optimizers, "
                "initializers, regularizers or constraints, or in pipeline.stages.train, whose changes DVC tracks"
            )
    return node


def check_component(node: dict[str, Any]) -> dict[str, Any]:
    """Return `node` if it has a `_target_` and all its targets are allowed."""
    if TARGET_KEY not in node:
        raise ValueError(f"has no {TARGET_KEY}: set it to a class or function, such as keras.layers.Dense")
    check_targets(node)
    return node


def check_learning_rate(value: Any) -> Any:
    """Return `value` if it is a positive learning rate, or a schedule that starts at 0 or above."""
    scheduled = isinstance(value, dict)
    start = check_component(value).get("initial_learning_rate", 0) if scheduled else value
    number = isinstance(start, int | float) and not isinstance(start, bool) and 0 <= start <= sys.float_info.max
    if not number or (start == 0 and not scheduled):
        raise ValueError("a learning rate must be a number greater than 0, or a schedule with a _target_")
    return value
