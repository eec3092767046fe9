"""Make the model of dvc.lock the champion in MLflow's model registry, if the gate lets it.

The gate runs here and now, against the champion; where git does not know its commit, where there is none, or with
--without-champion, against --base or gate.base. What passes becomes a version of the registered model that is called
as the dataset; the alias `champion` moves to it and `previous` to the one before. --rollback swaps the two back.
"""

import argparse
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.surroundings import settle

if TYPE_CHECKING:
    from pipeline.promote.promotion import Standing


def main() -> None:
    """Parse the command line and act on it. Exits with status 1 and one line if nothing is promoted."""
    settle()
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.promote", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    either = parser.add_mutually_exclusive_group()
    parser.add_argument(
        "--without-champion",
        action="store_true",
        help="do not compare with the champion, as after a change of the test images",
    )
    either.add_argument("--base", metavar="REV", help="what the gate compares with beside the champion")
    either.add_argument("--rollback", action="store_true", help="make the previous model the champion again")
    arguments = parser.parse_args()
    if arguments.rollback and arguments.without_champion:
        parser.error("argument --without-champion: not allowed with argument --rollback")
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

    if arguments.rollback:
        from pipeline.promote.promotion import rollback

        table, lines = rollback()
    else:
        table, lines = promote(arguments.base, not arguments.without_champion)
    Console(markup=False).print(table)
    print("\n".join(lines))


def promote(base: str | None, compared: bool) -> "Standing":
    """Promote the model, while a worker converts it: importing Keras for that takes as long as all else."""
    from pipeline.promote.checks import check_model
    from pipeline.promote.conversion import convert_model
    from pipeline.worker import Worker

    digest = check_model()
    with tempfile.TemporaryDirectory() as folder, Worker() as worker:
        try:
            converting = worker.submit(convert_model, Path(folder))
            from pipeline.promote.promotion import promote

            return promote(base, compared, digest, converting)
        finally:
            worker.shutdown(cancel_futures=True)  # whoever is told that nothing is promoted does not wait for it


if __name__ == "__main__":
    main()
