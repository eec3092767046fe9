"""Time from a configuration change to its result, relative to the import time of Keras, the minimum of one process."""

import sys
from itertools import count
from pathlib import Path
from statistics import median

from benchmarks.command import clone, repro, run
from benchmarks.figures import Figures, add

# TensorFlow imports JAX if it is installed: the test environment has JAX, the pipeline's own environment does not.
IMPORT = [sys.executable, "-c", "import sys; sys.modules['jax'] = None; import keras"]
STAGES = ("compose", "preprocess", "evaluate")
IDENTITY = ["-c", "user.name=benchmark", "-c", "user.email=benchmark@localhost"]
LABEL_SMOOTHING = 0.1  # of recipe=fast; each idea uses a different value


def measure_idea(folder: Path, data: Path, rounds: int) -> Figures:
    """Time a Keras import, `dvc repro`, single stages and promote for `rounds` changes to how recipe=fast trains."""
    figures: Figures = {}
    project = clone(folder / "idea")
    smoothing = (round(LABEL_SMOOTHING + number / 10_000, 4) for number in count())
    repro(project, data, idea(next(smoothing)))
    for number in range(rounds):
        keras = run(IMPORT, folder).seconds
        add(figures, "keras_import_seconds", keras, "s")
        outcome = repro(project, data, idea(next(smoothing)))
        own = {name: seconds for name, seconds in outcome.train["seconds"].items() if name != "fit"}
        taken = {"idea": outcome.seconds, "train_without_fit": sum(own.values())}
        taken |= {stage: run([sys.executable, "-m", f"pipeline.stages.{stage}"], project).seconds for stage in STAGES}
        run(["dvc", "commit", "--force"], project)
        run(["git", *IDENTITY, "commit", "-qam", "an idea"], project)
        taken["promote"] = run([sys.executable, "-m", "pipeline.commands.promote", "--base", "HEAD"], project).seconds
        for name, seconds in taken.items():
            add(figures, f"{name}_seconds", seconds, "s")
            add(figures, f"{name}_ratio", seconds / keras, "ratio")
        add(figures, "idea_fit_seconds", outcome.train["seconds"]["fit"], "s")
        print(f"idea {number + 1} of {rounds}: {outcome.seconds:.1f} s, importing Keras {keras:.1f} s", flush=True)
    return figures


def idea(smoothing: float) -> dict[str, object]:
    """Content of params.yaml for recipe=fast with another label smoothing."""
    return {"recipe": "fast", "seed": 1, "training": {"label_smoothing": smoothing}}


def measure_tests(folder: Path) -> Figures:
    """Time the test suite as `make test` runs it."""
    figures: Figures = {}
    keras = [run(IMPORT, folder).seconds for _ in range(2)]
    seconds = run([sys.executable, "-m", "pytest", "-p", "no:cacheprovider"], clone(folder / "tests")).seconds
    keras += [run(IMPORT, folder).seconds for _ in range(2)]
    for imported in keras:
        add(figures, "test_keras_import_seconds", imported, "s")
    add(figures, "test_seconds", seconds, "s")
    add(figures, "test_ratio", seconds / median(keras), "ratio")
    return figures
