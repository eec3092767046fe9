"""Sweeps that the tests write."""

from typing import Any

import yaml

from tests.conftest import Project

SWEEP: dict[str, Any] = {
    "objectives": ["val_accuracy"],
    "trials": 3,
    "finalists": 0,
    "pruner": "none",
    "settings": {"recipe": "smoke", "training": {"validation_fraction": 0.2}},
    "space": {"model.dropout": {"low": 0.0, "high": 0.5}},
}


def write(project: Project, name: str, **changes: Any) -> None:
    """Write a sweep of a few small trials on `digits`."""
    text = yaml.safe_dump(SWEEP | changes, sort_keys=False)
    (project.root / "sweeps" / f"{name}.yaml").write_text(text, encoding="utf-8")
