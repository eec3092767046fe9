"""Is this model worse than the one it would replace? Compares reports/ with those where the work branched off.

Exit status: 0 it is not, 1 it is, 2 the two could not be compared. Runs with other seeds (`make seeds N=5`) count on
both sides. The settings are in conf/config.yaml; docs/gate.md says what they can see.
"""

import argparse
import sys
import traceback
from pathlib import Path

from pipeline.surroundings import settle

NO_COMPARISON = 2


def main() -> int:
    """Parse the command line and act on it; whatever goes wrong here is no regression there, and so is status 2."""
    settle()
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.gate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    against = parser.add_mutually_exclusive_group()
    against.add_argument(
        "--base", metavar="REV", help="a git revision or a folder to compare with (default: gate.base)"
    )
    against.add_argument(
        "--before",
        metavar="ID",
        help="the commit before a push, for CI; where there is none any more, the floor decides",
    )
    parser.add_argument("--markdown", metavar="FILE", type=Path, help="write a report, and a picture beside it")
    parser.add_argument("--picture-url", metavar="URL", help="where readers of the report will find the picture")
    parser.add_argument("--json", action="store_true", help="print the verdict for machines")
    parser.add_argument("--record", action="store_true", help="only write what seeds change into the recipe's file")
    arguments = parser.parse_args()
    try:
        return decide(arguments)
    except Exception:
        traceback.print_exc()
        return NO_COMPARISON


def decide(arguments: argparse.Namespace) -> int:
    """The exit status. A line on standard error, and in the report if one is wanted, says why nothing is compared."""
    from pipeline.errors import PipelineError
    from pipeline.files import write_text
    from pipeline.gate.command import run

    try:
        return run(arguments)
    except PipelineError as error:
        print(f"gate: {error}", file=sys.stderr)
        if arguments.markdown:  # else an earlier verdict stays there
            write_text(arguments.markdown, f"### Gate: not compared\n\n{error}\n")
    except OSError as error:
        print(f"gate: {error.filename or 'cannot write'}: {error.strerror or error}", file=sys.stderr)
    return NO_COMPARISON


if __name__ == "__main__":
    sys.exit(main())
