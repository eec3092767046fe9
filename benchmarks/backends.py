"""Accuracy, time and memory of the recipes on each Keras backend, on the CPU."""

import json
import statistics
import sys
from pathlib import Path

from benchmarks.command import ROOT, epoch_seconds, run
from benchmarks.figures import Figures, add
from benchmarks.gpu import facts_of, prepare, set_seed, until_fit

RECIPES = ("notebook", "fast", "quick", "champion")
SCRIPT_EPOCHS = 20
SAME_EPOCHS = ("notebook", "baseline")  # recipes whose epochs do the same as the plain script's
EPOCHS = 6


def measure_backends(folder: Path, data: Path, rounds: int, torch: str | None) -> Figures:
    """Train every recipe on every backend, alternately; `torch` is a Python interpreter with PyTorch.

    Seeds 1 to `rounds`. Nothing is compiled yet in the first round, and JAX finds its compiled code in later rounds.
    """
    figures: Figures = {}
    projects = {recipe: prepare(folder / recipe, {"recipe": recipe}, data) for recipe in RECIPES}
    for seed in range(1, rounds + 1):
        for recipe, project in projects.items():
            for backend, python in interpreters(torch).items():
                for name, (value, unit) in train(project, seed, backend, python).items():
                    add(figures, f"{recipe}_{backend}_{name}", value, unit)
    return figures


def measure_epochs(folder: Path, data: Path, rounds: int, torch: str | None) -> Figures:
    """Measure epochs of the script on TensorFlow and of the same training on every backend, alternately."""
    figures: Figures = {}
    projects = {
        name: prepare(folder / f"{name}-epochs", {"recipe": name, "training": {"epochs": EPOCHS}}, data)
        for name in SAME_EPOCHS
    }
    for seed in range(1, rounds + 1):
        theirs = script_epoch_seconds(data)
        add(figures, "script_epoch_seconds", theirs, "s")
        for recipe, project in projects.items():
            for backend, python in interpreters(torch).items():
                train(project, seed, backend, python)
                ours = statistics.median(epoch_seconds(project))
                add(figures, f"{recipe}_{backend}_epoch_seconds", ours, "s")
                add(figures, f"{recipe}_{backend}_epoch_ratio", ours / theirs, "ratio")
    return figures


def measure_fast(folder: Path, data: Path, rounds: int) -> Figures:
    """Compare recipe=fast as a whole with all epochs of the script, alternately, with seeds 1 to `rounds`."""
    figures: Figures = {}
    project = prepare(folder / "fast-whole", {"recipe": "fast"}, data)
    for seed in range(1, rounds + 1):
        whole = SCRIPT_EPOCHS * script_epoch_seconds(data)
        add(figures, "script_seconds", whole, "s")
        for backend, python in interpreters(None).items():
            trained = train(project, seed, backend, python)
            seconds, unit = trained["fit_seconds"]
            add(figures, f"{backend}_seconds", seconds, unit)
            add(figures, f"{backend}_ratio", seconds / whole, "ratio")
            add(figures, f"{backend}_accuracy", *trained["accuracy"])
    return figures


def script_epoch_seconds(data: Path) -> float:
    """Run the plain script on TensorFlow, and return the seconds of an epoch, without the first, which compiles."""
    script = [sys.executable, "-m", "benchmarks.peers.notebook", str(data), str(EPOCHS)]
    plain = json.loads(run(script, ROOT, KERAS_BACKEND="tensorflow").output.splitlines()[-1])
    return statistics.median(plain["epoch_seconds"][1:])


def interpreters(torch: str | None) -> dict[str, str]:
    """The Python interpreter that has each backend; `torch` is one with PyTorch."""
    return {"tensorflow": sys.executable, "jax": sys.executable} | ({"torch": torch} if torch else {})


def train(project: Path, seed: int, backend: str, python: str) -> dict[str, tuple[float, str]]:
    """Run train and evaluate with a seed, which affects everything except the split, and return their figures."""
    set_seed(project, seed)
    settings = {"KERAS_BACKEND": backend, "DEVICE": "cpu"}
    whole = run([python, "-m", "pipeline.stages.train"], project, **settings)
    run([python, "-m", "pipeline.stages.evaluate"], project, **settings)
    facts = facts_of(project)
    test = json.loads((project / "reports" / "evaluation.json").read_text(encoding="utf-8"))["test"]
    print(f"{project.name} on {backend}, seed {seed}: {test['accuracy']:.2%}, {whole.seconds:.1f} s", flush=True)
    return {
        "accuracy": (test["accuracy"], "share"),
        "fit_seconds": (facts["fit_seconds"], "s"),
        "start_seconds": (until_fit(facts), "s"),
        "whole_seconds": (whole.seconds, "s"),
        "peak_mib": (facts["peak_memory_mib"], "MiB"),
    }
