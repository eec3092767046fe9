"""The reproduce command: clone, install, run and compare."""

import argparse
import json
import sys
import time
from pathlib import Path

from rich.console import Console

from pipeline.commands.reproduce.clone import Clone, make_clone, run_pipeline, temporary_folder
from pipeline.commands.reproduce.comparison import compare
from pipeline.commands.reproduce.environment import prepare_python
from pipeline.commands.reproduce.promise import Promise, read_promise, write_promise
from pipeline.commands.reproduce.rendering import for_machines, for_terminal
from pipeline.core import paths
from pipeline.core.process.stopwatch import Stopwatch
from pipeline.repository.git import check_repository, uncommitted

REPRODUCED, DIFFERENT = 0, 1


def run(arguments: argparse.Namespace) -> int:
    """Reproduce a commit, print the comparison and return the exit status. Progress goes to standard error.

    Raises PipelineError if the commit promises nothing, or if it cannot be cloned, installed or run.
    """
    check_repository()
    promise, watch = read_promise(arguments.revision, arguments.promise, arguments.update), Stopwatch(time.time())
    tell(f"{arguments.revision} is {promise.commit[:7]}{ignored_changes()}")
    with temporary_folder(paths.project_root(), arguments.keep) as folder:
        clone = reproduce(promise, folder, arguments.reuse, watch)
        if arguments.update:
            print(write_promise(clone.root, arguments.promise))
            return REPRODUCED
        comparison = compare(promise, clone)
    watch.lap("removal")
    if arguments.json:
        print(json.dumps(for_machines(comparison, watch.seconds), indent=2, ensure_ascii=False))
    else:
        console = Console(markup=False)
        for part in for_terminal(comparison, watch.seconds):
            console.print(part, soft_wrap=True)
    return REPRODUCED if comparison.reproduced else DIFFERENT


def reproduce(promise: Promise, folder: Path, reuse: bool, watch: Stopwatch) -> Clone:
    """Clone the commit into a folder, prepare its environment and run its pipeline."""
    tell(f"step 1 of 3: clone into {folder}")
    clone = make_clone(promise, folder)
    watch.lap("clone")
    tell("step 2 of 3: environment")
    python = prepare_python(clone, promise.backend, reuse)
    watch.lap("environment")
    tell("step 3 of 3: dvc repro")
    run_pipeline(clone, python, promise)
    watch.lap("dvc repro")
    return clone


def ignored_changes() -> str:
    """A remark if the working tree has changes, which the commit does not contain."""
    changed = len(uncommitted("."))
    return f"; {changed} uncommitted change{'s' * (changed > 1)} in the working tree are left out" if changed else ""


def tell(what: str) -> None:
    """Report progress."""
    print(f"reproduce: {what}", file=sys.stderr, flush=True)
