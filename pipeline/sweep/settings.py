"""The configurations of a sweep's trials, and the images on which they train."""

import functools
import itertools
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline.core import paths
from pipeline.core.config import Config, flatten
from pipeline.core.dataset import Split, save_split
from pipeline.core.errors import PipelineError
from pipeline.core.files import parse_yaml, text_digest
from pipeline.core.validation import parse_config
from pipeline.stages.compose.composition import compose_values, options, read_params
from pipeline.stages.preprocess.idx import read_pair
from pipeline.stages.preprocess.split import hold_out
from pipeline.sweep.space import FOLDER, Choices, Range, Sweep, is_active, listed, merged, nested, without
from pipeline.sweep.trial import TRAIN, VALIDATION

SHARED = ("seed", "dataset", "versions", "gate", "recipe", "training.validation_fraction", "training.validate_on")


class Settings:
    """The settings that all trials share, from which each trial's configuration is composed."""

    def __init__(self, name: str, sweep: Sweep, params: Mapping[str, Any] | None = None) -> None:
        """The settings of a sweep with the content of params.yaml, or with that of when the study was started."""
        self.path = FOLDER / f"{name}.yaml"
        self._sweep = sweep
        self.base = dict(read_params(paths.PARAMS) if params is None else params)
        self.shared = merged(self.base, sweep.settings)

    def params(self, chosen: Mapping[str, Any]) -> dict[str, Any]:
        """The content of params.yaml for the chosen values, without keys of the space that were not chosen."""
        searched = not chosen.keys().isdisjoint(self._sweep.space)
        shared = without(self.shared, self._sweep.space) if searched else self.shared
        found = merged(shared, nested(chosen))
        unnamed = {group: {"name": None} for group in options(paths.CONF) if isinstance(found.get(group), dict)}
        return merged(unnamed, found)  # for the recipe's choice

    @functools.cached_property
    def current(self) -> Config:
        """The configuration without a choice. Raises PipelineError if it is invalid."""
        return self.config({})

    def config(self, chosen: Mapping[str, Any]) -> Config:
        """The configuration for the chosen values. Raises PipelineError if it is invalid."""
        return parse_config(compose_values(paths.CONF, self.params(chosen), self.path), {}, str(self.path))

    def check(self) -> str:
        """Compose each end and each choice of the space, and return a digest of the results.

        Raises PipelineError for the first one that is refused.
        """
        for key, values in self._sweep.space.items():
            shared = [
                name for name in SHARED if any(f"{each}.".startswith(f"{name}.") for each in keys_of(key, values))
            ]
            if shared or any(name.startswith(f"{key}.") for name in SHARED):
                raise PipelineError(f"{self.path}: space.{key}: all trials have the same images: set it in `settings`")
        if self.current.training.validate_on != "validation":
            raise PipelineError(
                f"{self.path}: a sweep compares trials on held-out training images: set "
                "training.validate_on=validation and training.validation_fraction above 0 in `settings`"
            )
        return text_digest("".join(map(digest_of, [self.current, *map(self.config, probes(self._sweep))])))


def digest_of(config: Config) -> str:
    """Digest of what a configuration trains."""
    return text_digest(json.dumps(config.model_dump(mode="json", by_alias=True, exclude={"gate"}), sort_keys=True))


def keys_of(key: str, values: Range | Choices) -> set[str]:
    """The dotted keys that a key of the space sets: several if its choices are mappings."""
    return {name for value in values.ends for name, _ in flatten(nested({key: value}))} | {key}


def probes(sweep: Sweep) -> Iterator[dict[str, Any]]:
    """Choices in which each value that must be valid occurs, together with what its conditions require."""
    for key, values in sweep.space.items():
        required = itertools.product(*map(listed, values.when.values()))
        for combination, end in itertools.product(required, values.ends):
            yield completed(sweep, dict(zip(values.when, combination, strict=True)) | {key: end})


def completed(sweep: Sweep, chosen: Mapping[str, Any]) -> dict[str, Any]:
    """Add the keys on which the chosen ones depend, and those that are above them, with their first value."""
    found: dict[str, Any] = {}
    for key, values in sweep.space.items():
        if key in chosen:
            found[key] = chosen[key]
        elif is_active(values, found) and any(key in other.when for other in sweep.space.values()):
            found[key] = values.ends[0]
    return found


def prepare_images(config: Config, folder: Path) -> None:
    """Write the images of all trials: those that preprocess would hold out are for validation.

    The test set is not read. Raises PipelineError if data/raw is missing or has another dataset.
    """
    try:
        fetched = parse_yaml(paths.SETTINGS["fetch"].read_text(encoding="utf-8"))["dataset"]["name"]
    except (OSError, KeyError, TypeError):
        fetched = None
    if fetched != config.dataset.name:
        raise PipelineError(
            f"{paths.RAW} has the dataset {fetched}, but the sweep needs {config.dataset.name}: run `dvc repro fetch` "
            f"with dataset: {config.dataset.name} in {paths.PARAMS}"
        )
    raw = paths.RAW_FILES
    everything = Split(*read_pair(raw["train_images"], raw["train_labels"], config.dataset.classes))
    kept, held_out = hold_out(everything.labels, config.training.validation_fraction, config.seed)
    folder.mkdir(parents=True, exist_ok=True)
    save_split(folder / TRAIN, Split(everything.images[kept], everything.labels[kept]))
    save_split(folder / VALIDATION, Split(everything.images[held_out], everything.labels[held_out]))
