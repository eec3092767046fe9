"""Render the comparison for the terminal and for machines."""

from collections.abc import Iterator
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from pipeline.commands.reproduce.comparison import Comparison

COLORS = {"same": "green", "tolerated": "yellow", "DIFFERS": "bold red", "–": "dim"}


def for_terminal(comparison: Comparison, seconds: dict[str, float]) -> Iterator[RenderableType]:
    """Yield the comparison as a table, then remarks, notes, times and the verdict, in one line each."""
    table = Table()
    for title in ("output", "outcome", "promised", "reproduced"):
        table.add_column(title, no_wrap=True)
    for row in comparison.rows:
        table.add_row(row.name, Text(row.outcome, COLORS[row.outcome]), row.promised, row.reproduced)
    yield table
    yield from (Text(f"{row.name}: {row.remark}") for row in comparison.rows if row.remark)
    yield from map(Text, comparison.notes)
    yield Text(", ".join(f"{name} {value:.0f} s" for name, value in seconds.items()))
    yield Text(comparison.verdict, "green" if comparison.reproduced else "bold red")


def for_machines(comparison: Comparison, seconds: dict[str, float]) -> dict[str, Any]:
    """The comparison as plain values."""
    return {
        "reproduced": comparison.reproduced,
        "verdict": comparison.verdict,
        "commit": comparison.promise.commit,
        "rows": [row._asdict() for row in comparison.rows],
        "notes": comparison.notes,
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
    }
