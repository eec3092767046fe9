"""Record the seed noise of a recipe: how much its runs differ if only the seed does."""

from pathlib import Path
from typing import Any

import numpy as np
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedSeq

from pipeline.commands.gate.results import Results, configuration_of, with_other_seeds
from pipeline.commands.gate.significance import Wrong
from pipeline.commands.gate.verdict import align
from pipeline.core import paths
from pipeline.core.config import SeedNoise
from pipeline.core.errors import PipelineError
from pipeline.core.files import replacing
from pipeline.repository.reading import in_folder, read_yaml

ENOUGH = 10  # seeds
DIGITS = 5
OWN = ("recipe", "dataset", "seed")  # values that params.yaml may set while a recipe is measured


def record_noise(results: Results) -> str:
    """Write a recipe's seed noise into its file and return a summary of one line.

    Raises PipelineError if there are too few seeds, or if params.yaml overrides the recipe.
    """
    results = with_other_seeds(results)
    if len(results.reports) < ENOUGH:
        raise PipelineError(
            f"recipe {results.recipe} has {len(results.reports)} of the {ENOUGH} seeds that a record needs: "
            f"run `make seeds N={ENOUGH}` first"
        )
    params = read_yaml(in_folder(Path()), paths.PARAMS, "in the working tree")
    changing = [key for key, value in params.items() if key not in OWN and says_something(value)]
    if changing:
        raise PipelineError(f"{paths.PARAMS} overrides recipe {results.recipe}: remove {', '.join(changing)}")
    path, dataset = paths.CONF / "recipe" / f"{results.recipe}.yaml", results.first.metrics.dataset.name
    noise = measure_noise(results)
    write_noise(path, dataset, noise)
    return (
        f"{path}: the accuracy of recipe {results.recipe} on {dataset} has a standard deviation of "
        f"{100 * noise.accuracy_std:.3f} points over {noise.seeds} seeds. Run `dvc repro`, then commit the file"
    )


def says_something(value: Any) -> bool:
    """Whether a value of params.yaml, or any value nested in it, is not null."""
    return any(map(says_something, value.values())) if isinstance(value, dict) else value is not None


def measure_noise(results: Results) -> SeedNoise:
    """The seed-to-seed variation of accuracy and of each class's recall."""
    pair, test = align(results, results), results.first.metrics.test
    classes = [
        spread(pair.candidate[:, pair.labels == label], max(images, 1))
        for label, images in enumerate(test.per_class.images)
    ]
    std, disagreement = spread(pair.candidate, test.images)
    return SeedNoise(
        seeds=len(results.reports),
        configuration=configuration_of(results),
        accuracy_std=std,
        accuracy_disagreement=disagreement,
        recall_std=[std for std, _ in classes],
        recall_disagreement=[disagreement for _, disagreement in classes],
    )


def spread(wrong: Wrong, images: int) -> tuple[float, float]:
    """The standard deviation of the error rate over runs, and the mean fraction of images that two runs disagree on."""
    std = np.std(wrong.sum(axis=1) / images, ddof=1)
    disagreement = 2 * wrong.var(axis=0, ddof=1).sum() / images  # the mean of first ^ second over all pairs of runs
    return round(float(std), DIGITS), round(float(disagreement), DIGITS)


def write_noise(path: Path, dataset: str, noise: SeedNoise) -> None:
    """Set gate.seed_noise of a dataset in a recipe's file; keep all other content, comments included."""
    yaml = YAML()
    yaml.width = 120
    yaml.indent(mapping=2, sequence=4, offset=2)
    recipe = yaml.load(path)
    values = noise.model_dump()
    for key in ("recall_std", "recall_disagreement"):
        values[key] = CommentedSeq(values[key])
        values[key].fa.set_flow_style()
    recipe.setdefault("gate", {}).setdefault("seed_noise", {})[dataset] = values
    with replacing(path) as temporary:
        yaml.dump(recipe, temporary)
