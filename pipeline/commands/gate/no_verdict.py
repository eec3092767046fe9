"""The report of a failed comparison. Imports nothing that a broken environment may lack."""

import contextlib
import traceback
from pathlib import Path

from pipeline.core.errors import PipelineError, without_secrets

LONGEST = 200  # characters of an unexpected error to show
MARKER = "<!-- digits-pipeline: gate -->"  # identifies the workflow's own comment on a pull request

BEGINNINGS = (MARKER.encode(), b"### Gate: ")  # of reports of this version and of earlier versions


def reason_of(error: BaseException) -> str:
    """The reason why there is no verdict, in one line; of an unexpected error, also print the traceback."""
    if isinstance(error, PipelineError):
        return str(error)
    if isinstance(error, OSError):
        return f"{error.filename or 'cannot write'}: {error.strerror or error}"
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    traceback.print_exception(error)
    return f"unexpected error {without_secrets(repr(error))[:LONGEST]}: see the traceback in the log"


def not_compared(reason: str) -> str:
    """A report that states why there is no verdict."""
    return f"{MARKER}\n\n### Gate: not compared\n\n{reason}\n"


def remove_report(path: Path) -> None:
    """Remove an earlier report and its picture, so that nobody mistakes its verdict for the current one."""
    if path.is_file() and path.read_bytes().startswith(BEGINNINGS):
        for earlier in (path, path.with_suffix(".png")):
            earlier.unlink(missing_ok=True)


def write_reason(path: Path, reason: str) -> None:
    """Write a report that states why there is no verdict, if `path` is writable."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(not_compared(reason), encoding="utf-8", errors="backslashreplace")
