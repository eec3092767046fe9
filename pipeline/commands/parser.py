"""The command line of a command, and its errors."""

import argparse
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.core.errors import PipelineError


def command_parser(name: str, description: str | None) -> argparse.ArgumentParser:
    """A parser whose `--help` shows the docstring of a command's module as it is written."""
    return argparse.ArgumentParser(
        prog=f"python -m pipeline.commands.{name}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


@contextmanager
def one_line_errors(name: str, interrupted: str = "interrupted") -> Iterator[None]:
    """End the process after the block, with one line for an error that the user can fix, and exit status 1.

    Such errors are PipelineError, OSError, Ctrl-C, and an output that cannot be written, as on a full disk. A reader
    that closes the pipe, as `head` does, knows why, and gets no line. Any other exception keeps its traceback.
    """
    status: str | int | None = 0
    try:
        yield
    except SystemExit as end:
        status = end.code
    except PipelineError as error:
        status = f"{name}: {error}"
    except KeyboardInterrupt:
        status = f"\n{name}: {interrupted}"
        signal.signal(signal.SIGINT, lambda *_: os._exit(1))  # another Ctrl-C does not wait for threads
    except BrokenPipeError:
        status = 1
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        status = f"{name}: {where}{error.strerror or error}"
    try:
        if sys.stdout:  # None if it was closed
            sys.stdout.flush()  # Python would do it later, and print a traceback
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):
            status = status or f"{name}: standard output: {error.strerror}"
    sys.exit(status)
