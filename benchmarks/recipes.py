"""Accuracy and training time of each recipe, compared with plain scripts for the same task."""

import json
import math
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.command import ROOT, clone, epoch_seconds, repro, run
from benchmarks.figures import Figures, add
from pipeline.core.config import Config
from pipeline.core.dataset import load_split
from pipeline.core.paths import COMPOSED, TRAIN
from pipeline.core.validation import load_config

MATRIX = 2048  # rows and columns of the matrices whose product measures the machine's peak
PRECISIONS = ("float32", "bfloat16")


class Recipe(NamedTuple):
    """A recipe, given by its options in params.yaml, and trained with seeds 1 to `seeds`."""

    params: dict[str, Any]
    seeds: int


class Peer(NamedTuple):
    """A plain script that trains `times` times for `epochs` epochs."""

    epochs: int
    times: int


WIDE = {"name": "convnet", "convolutions": [24, 48, 48, 48], "kernels": [5, 3, 3, 3], "units": 128, "dropout": 0.2}
RECIPES = {
    "baseline": Recipe({"recipe": "baseline"}, 5),
    "notebook": Recipe({"recipe": "notebook"}, 5),
    "fast": Recipe({"recipe": "fast"}, 10),
    "quick": Recipe({"recipe": "quick"}, 5),
    "quick_wider": Recipe({"recipe": "quick", "model": WIDE, "training": {"epochs": 11}}, 5),
    "champion": Recipe({"recipe": "champion"}, 5),
    "tiny": Recipe({"recipe": "tiny"}, 5),
}
SCRIPTS = {"notebook": Peer(20, 3), "keras_convnet": Peer(15, 1), "torch_convnet": Peer(14, 1)}


def measure_recipes(folder: Path, data: Path, python: str, torch: str | None) -> Figures:
    """Train recipes and scripts alternately, each its number of times; `torch` is a Python interpreter with PyTorch."""
    interpreters = dict.fromkeys(SCRIPTS, python) | {"torch_convnet": torch}
    figures: Figures = {}
    projects: dict[str, Path] = {}
    for round_ in range(max(job.seeds for job in RECIPES.values())):
        for precision in PRECISIONS:
            add(figures, f"matrix_product_{precision}", multiply(precision), "GFLOP/s")
        scripts = {
            name: run_script(name, interpreter, data, peer.epochs)
            for name, peer in SCRIPTS.items()
            if round_ < peer.times and (interpreter := interpreters[name])
        }
        for name, measured in scripts.items():
            for figure, (value, unit) in measured.items():
                add(figures, f"script_{name}_{figure}", value, unit)
        for name, recipe in RECIPES.items():
            if round_ < recipe.seeds:
                project = projects.setdefault(name, folder / name)
                measured = run_recipe(project, recipe.params | {"seed": round_ + 1}, data)
                measured |= compare(measured, scripts.get("notebook"))
                measured |= shares_of_peak(project, measured["fit_seconds"][0], figures)
                for figure, (value, unit) in measured.items():
                    add(figures, f"{name}_{figure}", value, unit)
                accuracy, seconds = measured["accuracy"][0], measured["fit_seconds"][0]
                print(f"round {round_ + 1}: {name} {100 * accuracy:.2f} %, {seconds:.1f} s", flush=True)
    return figures


Measured = dict[str, tuple[float, str]]


def run_script(name: str, python: str, data: Path, epochs: int) -> Measured:
    """Run a script and return its accuracy, seconds and memory."""
    finished = run([python, "-m", f"benchmarks.peers.{name}", str(data), str(epochs)], ROOT)
    measured = json.loads(finished.output.splitlines()[-1])
    print(f"script {name}: {100 * measured['accuracy']:.2f} %, {sum(measured['epoch_seconds']):.1f} s", flush=True)
    return {
        "accuracy": (measured["accuracy"], "share"),
        "fit_seconds": (sum(measured["epoch_seconds"]), "s"),
        "epoch_seconds": (statistics.median(measured["epoch_seconds"][1:]), "s"),
        "whole_seconds": (finished.seconds, "s"),
        "peak_mib": (finished.peak_mib, "MiB"),
    }


def run_recipe(project: Path, params: dict[str, Any], data: Path) -> Measured:
    """Run `dvc repro` in a clone, made if missing, and return the recipe's accuracy, seconds and memory."""
    if not project.exists():
        clone(project)
    outcome = repro(project, data, params)
    facts = outcome.train
    return {
        "accuracy": (outcome.test["accuracy"], "share"),
        "loss": (outcome.test["loss"], "nats"),
        "fit_seconds": (facts["seconds"]["fit"], "s"),
        "epoch_seconds": (statistics.median(epoch_seconds(project) or [facts["fit_seconds"]]), "s"),
        "train_seconds": (sum(facts["seconds"].values()), "s"),
        "peak_mib": (facts["peak_memory_mib"], "MiB"),
    }


def compare(measured: Measured, script: Measured | None) -> Measured:
    """Ratios of a recipe's seconds to those of the notebook's script in the same round."""
    if script is None:
        return {}
    pairs = {"epoch_ratio": ("epoch_seconds",) * 2, "fit_ratio": ("fit_seconds",) * 2}
    pairs |= {"train_ratio": ("train_seconds", "whole_seconds")}
    return {name: (measured[ours][0] / script[theirs][0], "ratio") for name, (ours, theirs) in pairs.items()}


def multiply(precision: str, times: int = 20) -> float:
    """Billions of operations per second in the product of two square matrices, the best of `times`."""
    import tensorflow

    left, right = (tensorflow.cast(tensorflow.random.normal((MATRIX, MATRIX)), precision) for _ in range(2))
    product: Callable[[Any, Any], Any] = tensorflow.function(tensorflow.matmul)
    seconds = []
    for _ in range(times):
        begun = time.perf_counter()
        product(left, right).numpy()
        seconds.append(time.perf_counter() - begun)
    return 2 * MATRIX**3 / min(seconds) / 1e9


def shares_of_peak(project: Path, fit_seconds: float, figures: Figures) -> Measured:
    """Fraction of the machine's peak that the matrix products of a training reach, without validation."""
    from pipeline.stages.train.fitting import epoch_size

    config = load_config(project / COMPOSED)
    images = len(load_split(project / TRAIN).images)
    seen = sum(epoch_size(images, config.training, number) for number in range(1, config.training.epochs + 1))
    speed = seen * operations(config) / fit_seconds / 1e9
    peaks = {precision: figures[f"matrix_product_{precision}"][0][-1] for precision in PRECISIONS}
    return {f"matrix_share_{precision}": (speed / peak, "ratio") for precision, peak in peaks.items()}


def operations(config: Config) -> int:
    """Additions and multiplications in the matrix products of an update, per image.

    A layer multiplies its kernel by its input, then the gradient of its output by the input and by the kernel; the
    first layer does not need the last product. A multiply-add counts as two operations (Kaplan et al. 2020,
    arXiv:2001.08361, section 2.1: six per weight).
    """
    from pipeline.stages.train.network import build_network, members_of

    members = members_of(build_network(config.model, (28, 28), config.dataset.classes))
    products = [list(multiplications(member)) for member in members]
    return sum(2 * (3 * sum(layers) - layers[0]) for layers in products)


def multiplications(member: Any) -> Iterator[int]:
    """Multiplications of two numbers per image, for each layer with a kernel."""
    for layer in member.layers:
        if hasattr(layer, "kernel"):
            positions = layer.output.shape[1:-1]
            yield math.prod(layer.kernel.shape) * math.prod(positions)
