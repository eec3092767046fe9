"""Make the model of dvc.lock the champion in MLflow's model registry, if the gate lets it.

The gate runs here and now, against the champion; where git does not know its commit, or there is none, against --base
or gate.base. What passes becomes a version of the registered model that is called as the dataset; the alias `champion`
moves to it and `previous` to the one before. --rollback swaps the two back.
"""

import argparse
import sys


def main() -> None:
    """Parse the command line and act on it. Exits with status 1 and one line if nothing is promoted."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.promote", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    either = parser.add_mutually_exclusive_group()
    either.add_argument("--base", metavar="REV", help="what the gate compares with beside the champion")
    either.add_argument("--rollback", action="store_true", help="make the previous model the champion again")
    arguments = parser.parse_args()
    from pipeline.errors import PipelineError

    try:
        act(arguments)
    except PipelineError as error:
        sys.exit(f"promote: {error}")
    except KeyboardInterrupt:
        sys.exit("\npromote: interrupted; the same command finishes the job")
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        sys.exit(f"promote: {where}{error.strerror or error}")


def act(arguments: argparse.Namespace) -> None:
    """Promote or roll back, and say how things stand."""
    from rich.console import Console

    from pipeline.promote.checks import check_model

    digest = None if arguments.rollback else check_model()
    from pipeline.promote.promotion import promote, rollback

    table, lines = rollback() if digest is None else promote(arguments.base, digest)
    Console().print(table)
    print("\n".join(lines))


if __name__ == "__main__":
    main()
