"""Is this model worse than the one it would replace? Compares reports/ with those where the work branched off.

Exit status: 0 it is not, 1 it is, 2 the two could not be compared. Runs with other seeds (`make seeds N=5`) count on
both sides. The settings are in conf/config.yaml; docs/gate.md says what they can see.
"""

import argparse
import sys
import traceback
from pathlib import Path

from pipeline.errors import PipelineError, without_secrets
from pipeline.gate.no_verdict import remove_report, write_reason
from pipeline.surroundings import settle

NO_COMPARISON = 2
LONGEST = 200  # characters of an unexpected error


def main() -> int:
    """Parse the command line and act on it. Errors of the gate itself are not regressions: status 2."""
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
    return decide(arguments)


def decide(arguments: argparse.Namespace) -> int:
    """The exit status. If nothing is compared, standard error says why, and so does the report if one is wanted."""
    try:
        if arguments.markdown:
            remove_report(arguments.markdown)
        from pipeline.gate.command import run

        return run(arguments)
    except PipelineError as error:
        reason = str(error)
    except OSError as error:
        reason = f"{error.filename or 'cannot write'}: {error.strerror or error}"
    except KeyboardInterrupt:
        reason = "interrupted"
    except Exception as error:
        traceback.print_exc()
        reason = f"an unexpected error, {without_secrets(repr(error))[:LONGEST]}: the log has the traceback"
    print(f"gate: {reason}", file=sys.stderr)
    if arguments.markdown:
        write_reason(arguments.markdown, reason)
    return NO_COMPARISON


if __name__ == "__main__":
    sys.exit(main())
