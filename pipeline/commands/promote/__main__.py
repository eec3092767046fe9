"""Make the model of dvc.lock the champion in MLflow's model registry, if it passes the gate.

The gate compares the model with the champion. If there is no champion, if git does not know its commit, or with
--without-champion, the gate compares with --base or gate.base. A model that passes becomes a version of the registered
model, which has the name of the dataset. The alias `champion` moves to it, and `previous` to the champion before it.
--rollback swaps the two.
"""

import argparse
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.commands.parser import command_parser, one_line_errors
from pipeline.core.process.surroundings import settle

if TYPE_CHECKING:
    from pipeline.commands.promote.promotion import Standing


def main() -> None:
    """Parse the command line and act on it. Exits with status 1 and an error of one line if nothing is promoted."""
    settle()
    parser = command_parser("promote", __doc__)
    either = parser.add_mutually_exclusive_group()
    parser.add_argument(
        "--without-champion",
        action="store_true",
        help="do not compare with the champion, for example after a change of the test images",
    )
    either.add_argument(
        "--base", metavar="REV", help="git revision or folder to compare with in addition to the champion"
    )
    either.add_argument("--rollback", action="store_true", help="make the previous model the champion again")
    arguments = parser.parse_args()
    if arguments.rollback and arguments.without_champion:
        parser.error("argument --without-champion: not allowed with argument --rollback")
    with one_line_errors("promote", "interrupted; run the same command again to finish"):
        act(arguments)


def act(arguments: argparse.Namespace) -> None:
    """Promote or roll back, and print the new state."""
    from rich.console import Console

    if arguments.rollback:
        from pipeline.commands.promote.promotion import rollback

        table, lines = rollback()
    else:
        table, lines = promote(arguments.base, not arguments.without_champion)
    Console(markup=False).print(table)
    print("\n".join(lines))


def promote(base: str | None, compared: bool) -> "Standing":
    """Promote the model while a worker converts it, because importing Keras takes as long as everything else."""
    from pipeline.commands.promote.checks import check_model
    from pipeline.commands.promote.conversion import convert_model
    from pipeline.core.process.worker import Worker

    digest = check_model()
    with tempfile.TemporaryDirectory() as folder, Worker() as worker:
        try:
            converting = worker.submit(convert_model, Path(folder))
            from pipeline.commands.promote.promotion import promote

            return promote(base, compared, digest, converting)
        finally:
            worker.shutdown(cancel_futures=True)  # do not wait for the conversion if nothing is promoted


if __name__ == "__main__":
    main()
