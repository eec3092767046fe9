"""The part of the configuration that each stage uses.

DVC compares these files instead of the keys of composed.yaml, because it shows every key that a stage depends on as a
column of `dvc exp show`.
"""

from typing import Any

USED = {  # dotted keys of composed.yaml by stage
    "fetch": ("dataset",),
    "preprocess": (
        *("dataset.name", "dataset.classes", "seed"),
        *("training.validation_fraction", "training.validate_on"),
    ),
    "train": ("versions", "dataset.classes", "seed", "model", "optimizer", "training"),
    "evaluate": ("versions", "recipe", "dataset", "gate.seed_noise"),
}


def settings_of(stage: str, composed: dict[str, Any]) -> dict[str, Any]:
    """Select the values of the composed configuration that a stage uses."""
    return {key: value_of(composed, key) for key in USED[stage]}


def value_of(composed: dict[str, Any], key: str) -> Any:
    """The value of a dotted key."""
    node: Any = composed
    for part in key.split("."):
        node = node[part]
    return node
