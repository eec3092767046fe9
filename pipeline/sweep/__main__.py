"""Search for a better configuration: train many, and print the best and how to adopt it.

NAME is a file of sweeps/. Run the same command again to continue an interrupted sweep, or in several terminals to
share its trials. Trials train on the training images and are compared on held-out ones; the test set is not read.
Environment variables: SWEEP_STORAGE (a database for several machines), and those of the train stage.
"""

import argparse
import importlib.util
import re

from pipeline.commands.parser import one_line_errors
from pipeline.core.errors import PipelineError
from pipeline.core.process.stage import check_backend
from pipeline.core.process.surroundings import settle


def positive(text: str) -> int:
    """A number above 0 from the command line."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text} is not a number above 0")
    return int(text)


def study_name(text: str) -> str:
    """A name from the command line that can also be that of a folder."""
    if not re.fullmatch(r"[a-zA-Z0-9][\w.-]{0,60}", text, re.ASCII):
        raise argparse.ArgumentTypeError(f"{text!r}: use letters, digits, _, - and .")
    return text


def main() -> None:
    """Parse the command line and run the sweep."""
    settle()
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.sweep", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", help="a file of sweeps/, such as mlp")
    parser.add_argument("--study", type=study_name, help="another name for the study, to start anew (default: NAME)")
    parser.add_argument("--trials", type=positive, help="number of trials, instead of the file's")
    parser.add_argument("--jobs", type=positive, default=1, help="trials side by side, which share the cores")
    parser.add_argument("--apply", action="store_true", help="write the best settings into params.yaml")
    parser.add_argument("--recipe", help="write the best settings as conf/recipe/RECIPE.yaml")
    arguments = parser.parse_args()
    with one_line_errors("sweep", "interrupted: the same command continues the sweep"):
        if importlib.util.find_spec("optuna") is None:
            raise PipelineError("Optuna is not installed: pip install -r requirements-sweep.txt installs it")
        check_backend()
        from pipeline.sweep.command import conclude, play_finals, prepare, run  # import Optuna

        found = prepare(arguments.name, arguments.study or arguments.name, arguments.trials, arguments.recipe)
        run(found, arguments.jobs)
        finals = play_finals(found, arguments.jobs)
        conclude(found, finals, arguments.apply, arguments.recipe)


if __name__ == "__main__":
    main()
