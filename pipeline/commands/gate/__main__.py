"""Test whether this model is worse than the one it would replace. Compares reports/ with those of the merge base.

Exit status: 0 not worse, 1 worse, 2 not comparable. Runs with other seeds (`make seeds N=5`) count for both models.
conf/config.yaml has the settings; docs/gate.md says what the gate can detect.
"""

import argparse
import sys
from pathlib import Path

from pipeline.commands.gate.no_verdict import reason_of, remove_report, write_reason
from pipeline.commands.parser import command_parser

NO_COMPARISON = 2


def report_path(text: str) -> Path:
    """The file that --markdown names; if it is a symbolic link to a file, that file."""
    path = Path(text)
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} is a folder")
    return path.resolve() if path.is_file() else path


def main() -> int:
    """Parse the command line and run the gate. An error of the gate itself is not a regression: status 2."""
    parser = command_parser("gate", __doc__)
    against = parser.add_mutually_exclusive_group()
    against.add_argument("--base", metavar="REV", help="git revision or folder to compare with (default: gate.base)")
    against.add_argument(
        "--before",
        metavar="ID",
        help="commit before a push, for CI; if it does not exist, only the floor applies",
    )
    parser.add_argument(
        "--markdown", metavar="FILE", type=report_path, help="write a report to FILE, and a picture beside it"
    )
    parser.add_argument("--picture-url", metavar="URL", help="address of the picture for readers of the report")
    parser.add_argument("--json", action="store_true", help="print the verdict as JSON")
    parser.add_argument(
        "--record", action="store_true", help="only write the measured seed noise into the recipe's file"
    )
    arguments = parser.parse_args()
    return decide(arguments)


def decide(arguments: argparse.Namespace) -> int:
    """Run the gate and return its exit status. If it fails, write the reason to standard error and to --markdown."""
    try:
        from pipeline.core.process.surroundings import settle

        settle()
        if arguments.markdown:
            remove_report(arguments.markdown)
        from pipeline.commands.gate.command import run

        return run(arguments)
    except (Exception, KeyboardInterrupt) as error:
        reason = reason_of(error)
    print(f"gate: {reason}", file=sys.stderr)
    if arguments.markdown:
        write_reason(arguments.markdown, reason)
    return NO_COMPARISON


if __name__ == "__main__":
    sys.exit(main())
