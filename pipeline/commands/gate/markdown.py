"""Tables in Markdown, for pull requests and MLflow's descriptions."""

from collections.abc import Iterable, Sequence
from typing import Any


def markdown_table(header: Sequence[str], rows: Iterable[Iterable[Any]]) -> str:
    """A table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(map(one_line, row))} |" for row in lines)


def one_line(value: Any) -> str:
    """One line of Markdown. A report may quote a file of the pull request: it must not add HTML or call other users."""
    line = " ".join(str(value).replace("|", "\\|").split())
    return line if line.startswith("`") else line.replace("<", "&lt;").replace("@", "&#64;")
