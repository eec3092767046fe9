"""Reproduce a commit's results in a fresh clone, and compare them with what its dvc.lock promises.

The clone gets its own environment, runs `dvc repro` without any cache, and is removed at the end.
Exit status: 0 reproduced, 1 not reproduced, 2 could not be tried. docs/outputs.md says what is compared.
"""

import argparse
import os
import signal
import sys
from pathlib import Path
from typing import Any

from pipeline.commands.gate.no_verdict import reason_of
from pipeline.commands.parser import command_parser
from pipeline.core.paths import project_root

NOT_TRIED = 2


def interrupt(*_: Any) -> None:
    """Treat the signal as Ctrl-C, so that the clone is removed."""
    raise KeyboardInterrupt


def main() -> int:
    """Parse the command line and reproduce."""
    parser = command_parser("reproduce", __doc__)
    parser.add_argument("revision", metavar="REV", nargs="?", default="HEAD", help="git revision (default: HEAD)")
    parser.add_argument(
        "--promise",
        metavar="FOLDER",
        type=Path,
        default=Path(),
        help="folder of the commit with the params.yaml to run, and its dvc.lock and reports/ (default: the project)",
    )
    parser.add_argument(
        "--reuse", action="store_true", help="use this environment if it has the versions that the commit pins"
    )
    parser.add_argument("--update", action="store_true", help="write the results to --promise, and do not compare")
    parser.add_argument("--keep", action="store_true", help="keep the clone")
    parser.add_argument("--json", action="store_true", help="print the comparison as JSON")
    arguments = parser.parse_args()
    root, folder = project_root(), arguments.promise
    arguments.promise = Path(os.path.relpath(folder.resolve(), root))
    if arguments.promise.parts[:1] == ("..",):
        parser.error(f"--promise {folder} is outside the project, {root}")
    if arguments.update and arguments.promise == Path():
        parser.error("--update needs --promise: `dvc repro` writes the project's own dvc.lock")
    return attempt(arguments)


def attempt(arguments: argparse.Namespace) -> int:
    """Reproduce and return the exit status. Any error means that there is no verdict, and is one line."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupt)
    try:
        from pipeline.commands.reproduce.command import run
        from pipeline.core.process.surroundings import settle

        settle()
        return run(arguments)
    except (Exception, KeyboardInterrupt) as error:
        print(f"reproduce: {reason_of(error)}", file=sys.stderr)
        return NOT_TRIED


if __name__ == "__main__":
    sys.exit(main())
