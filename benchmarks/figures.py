"""Named figures, each with all measured values and their unit: as a table, and in docs/bench.json."""

import json
import statistics
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from pipeline.core.files import write_json

Figures = dict[str, tuple[list[float], str]]


def add(figures: Figures, name: str, value: float, unit: str) -> None:
    """Append a value to a figure."""
    figures.setdefault(name, ([], unit))[0].append(value)


def report(path: Path, part: str, figures: Figures, machine: str, commit: str) -> None:
    """Print the table of a part, and replace that part in a file."""
    table = Table("figure", "median", "min", "max", "n", "unit", title=machine, title_justify="left")
    measured: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    summary: dict[str, dict[str, Any]] = {}
    for name, (values, unit) in figures.items():
        spread = {"median": statistics.median(values), "min": min(values), "max": max(values)}
        spread |= {"mean": statistics.mean(values), "std": statistics.stdev(values)} if len(values) > 1 else {}
        rounded = {key: float(f"{value:.5g}") for key, value in spread.items()}
        summary[name] = rounded | {"n": len(values), "unit": unit, "commit": commit}
        shown = [f"{rounded[key]:g}" for key in ("median", "min", "max")]
        table.add_row(name, *shown, str(len(values)), unit)
    Console(width=120).print(table)
    write_json(path, measured | {part: {"machine": machine, "figures": summary}})
