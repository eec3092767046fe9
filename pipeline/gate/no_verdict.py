"""The report where nothing was compared. Imports nothing that a broken environment may lack."""

import contextlib
from pathlib import Path

MARKER = "<!-- digits-pipeline: gate -->"  # by which the workflow finds its own comment on a pull request

BEGINNINGS = (MARKER.encode(), b"### Gate: ")  # of reports of this version, and of earlier ones


def not_compared(reason: str) -> str:
    """A report that says why."""
    return f"{MARKER}\n\n### Gate: not compared\n\n{reason}\n"


def remove_report(path: Path) -> None:
    """Remove an earlier report of the gate and its picture: its verdict must not be taken for a later one's."""
    if path.is_file() and path.read_bytes().startswith(BEGINNINGS):
        for earlier in (path, path.with_suffix(".png")):
            earlier.unlink(missing_ok=True)


def write_reason(path: Path, reason: str) -> None:
    """Write a report that says why, if it can be written."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(not_compared(reason), encoding="utf-8", errors="backslashreplace")
