"""Search for a better configuration: train many, and print the best and how to adopt it.

NAME is a file of sweeps/. Run the same command again to continue an interrupted sweep, or in several terminals to
share its trials. Trials train on the training images and are compared on held-out ones; the test set is not read.
Environment variables: SWEEP_STORAGE (a database for several machines), and those of the train stage.
"""

import argparse
import importlib.util
import re
import threading

from pipeline.commands.parser import one_line_errors
from pipeline.core.errors import PipelineError
from pipeline.core.process.stage import check_backend
from pipeline.core.process.surroundings import settle
from pipeline.core.process.worker import end_with_parent
from pipeline.sweep.shares import divide


def positive(text: str) -> int:
    """A number above 0 from the command line."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text} is not a number above 0")
    return int(text)


def count(text: str) -> int:
    """A number from the command line that can be 0."""
    return 0 if text == "0" else positive(text)


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
    parser.add_argument(
        "--jobs", type=positive, help="trials side by side (default: one for each GPU, or for each core, up to 4)"
    )
    parser.add_argument("--cores", type=positive, help="cores of each trial (default: an equal share; on a cluster, 1)")
    parser.add_argument("--gpus", type=count, help="GPUs of each trial: 0 for none (default: 1, if there are any)")
    parser.add_argument("--ray", metavar="ADDRESS", help="train on the Ray cluster at HOST:PORT, or auto")
    parser.add_argument("--choose", type=count, metavar="TRIAL", help="take this trial instead of the best one")
    parser.add_argument("--apply", action="store_true", help="write the best settings into params.yaml")
    parser.add_argument("--recipe", help="write the best settings as conf/recipe/RECIPE.yaml")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)  # of a cluster: only train
    arguments = parser.parse_args()
    with one_line_errors("sweep", "interrupted: the same command continues the sweep"):
        if importlib.util.find_spec("optuna") is None:
            raise PipelineError("Optuna is not installed: pip install -r requirements-sweep.txt installs it")
        check_backend()
        from pipeline.sweep.database import database_errors  # imports Optuna

        with database_errors():
            run(arguments)


def run(arguments: argparse.Namespace) -> None:
    """Run the sweep on this machine or on a cluster, or a worker of a cluster."""
    from pipeline.sweep.command import play_finals, prepare, recorded, train, train_by_ray  # import Optuna
    from pipeline.sweep.conclusion import conclude, hand_over
    from pipeline.sweep.study import check_choice

    study = arguments.study or arguments.name
    shares = [] if arguments.ray else divide(arguments.jobs, arguments.cores, arguments.gpus)
    if arguments.worker:
        threading.Thread(target=end_with_parent, daemon=True).start()
    search = prepare(arguments.name, study, arguments.trials, arguments.recipe, arguments.choose)
    if arguments.worker:
        train(search, shares)
        play_finals(search, shares)
        return
    with recorded(search):
        if arguments.ray:
            from pipeline.sweep.cluster import Workers, worker_command

            workers = Workers(arguments.jobs, arguments.cores or 1, arguments.gpus or 0)
            command = worker_command(arguments.name, study, arguments.trials, workers.gpus)
            train_by_ray(arguments.ray, search, command, workers)
        else:
            train(search, shares)
        check_choice(search.study, search.sweep, arguments.choose, ended=True)
        winner = conclude(search, play_finals(search, shares), arguments.choose)
    hand_over(search, winner, arguments.apply, arguments.recipe)


if __name__ == "__main__":
    main()
