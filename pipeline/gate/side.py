"""The two sides of the comparison: the candidate in the working tree and the baseline that it would replace."""

import re
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from pipeline import paths
from pipeline.config import Gate, SeedNoise, configuration_digest
from pipeline.errors import PipelineError
from pipeline.gate.report import Report, parse_report
from pipeline.repository import (
    Reader,
    at_commit,
    check_lock,
    commit_of,
    experiments,
    in_folder,
    is_shallow,
    merge_base,
    read_lock,
    read_yaml,
    recipe_of,
    seed_of,
)

COMMIT_ID = re.compile("[0-9a-f]{40}|[0-9a-f]{64}")  # SHA-1 or SHA-256


class Side(NamedTuple):
    """A trained model, and further runs of its recipe with other seeds."""

    name: str  # as messages show it: 'the working tree', 'origin/main at 1a2b3c4'
    reports: list[Report]  # the model's own report first
    composed: dict[str, Any]
    lock: dict[str, Any]
    noise: SeedNoise | None = None  # the recorded seed noise of its recipe on its dataset

    @property
    def first(self) -> Report:
        """The report of the model itself."""
        return self.reports[0]

    @property
    def recipe(self) -> str:
        """The name of the recipe."""
        return str(self.composed.get("recipe", "unknown"))


class Baseline(NamedTuple):
    """The side to compare with, a reader of its files and, if the side is missing, the reason."""

    side: Side | None
    read: Reader
    note: str


def read_candidate() -> Side:
    """The side of the working tree. Raises PipelineError if its reports are missing or damaged."""
    side = read_side(in_folder(Path()), "the working tree", "in the working tree")
    if side is None:
        raise PipelineError(f"{paths.METRICS} is missing in the working tree: run `dvc repro`")
    return side


def read_baseline(base: str, candidate: Side) -> Baseline:
    """The baseline: the merge base with a revision, or a folder.

    Its side is missing if the repository has no commits, the merge base has no reports, or the candidate's dataset and
    test images are new. Raises PipelineError if git does not know the revision, the folder has no reports, or the
    reports are damaged.
    """
    folder = Path(base)
    if commit_of(base) is None and folder.is_dir():
        side = read_side(in_folder(folder), base, f"in {base}")
        if side is None:
            raise PipelineError(
                f"{folder / paths.METRICS} is missing: --base must name a folder that contains reports/"
            )
        return Baseline(side, in_folder(folder), "")
    if commit_of("HEAD") is None:
        return Baseline(None, in_folder(Path()), "the repository has no commits yet")
    commit = merge_base(base)
    return read_commit(commit, base, f"at {commit[:7]}, the merge base with {base}", candidate)


def lost_baseline(before: str) -> Baseline | None:
    """A baseline without a side, if the commit before a push never existed or no longer exists.

    None if git has the commit, if the rest of the history may contain it, or if `before` is not a full commit ID.
    """
    if not COMMIT_ID.fullmatch(before) or commit_of(before) is not None:
        return None
    if not before.strip("0"):
        return Baseline(None, in_folder(Path()), "the branch is new: no commit precedes this push")
    if is_shallow():
        return None  # the rest of the history may contain it
    return Baseline(
        None,
        in_folder(Path()),
        f"git does not have commit {before[:7]}: a force-push replaced it, or it was not fetched",
    )


def read_commit(commit: str, name: str, place: str, candidate: Side) -> Baseline:
    """The baseline at a commit, which messages call `name`. Raises PipelineError if its reports are damaged."""
    read = at_commit(commit)
    side = read_side(read, f"{name} at {commit[:7]}", place, committed=True)
    if side is None:
        return Baseline(None, read, f"{paths.METRICS} does not exist yet {place}")
    ours, theirs = candidate.first.metrics.dataset, side.first.metrics.dataset
    known = ours.test_md5 == theirs.test_md5 or read(paths.CONF / "dataset" / f"{ours.name}.yaml") is not None
    if ours.name != theirs.name and not known:
        return Baseline(None, read, f"dataset {ours.name} does not exist yet {place}")
    return Baseline(side, read, "")


def read_side(read: Reader, name: str, place: str, committed: bool = False) -> Side | None:
    """A side from its files; None if reports/metrics.json does not exist.

    Raises PipelineError if the reports are damaged or, if `committed`, do not match dvc.lock.
    """
    lock = read_lock(read, place)
    report = read_report(read, lock if committed else None, place)
    return report and Side(name, [report], read_yaml(read, paths.COMPOSED, place), lock)


def read_report(read: Reader, lock: dict[str, Any] | None, place: str) -> Report | None:
    """The report of one model, checked against dvc.lock if given; None if metrics.json does not exist."""
    metrics, errors = read(paths.METRICS), read(paths.ERRORS)
    if metrics is None:
        return None
    if errors is None:
        raise PipelineError(f"{paths.ERRORS} is missing {place}, but {paths.METRICS} exists")
    if lock is not None:
        check_lock(lock, paths.METRICS, metrics, place)
        check_lock(lock, paths.ERRORS, errors, place)
    return parse_report(metrics, errors, place)


def with_other_seeds(side: Side) -> Side:
    """The side, plus a report for each other seed among the DVC experiments with its code and configuration."""
    recipe, seeds = recipe_of(side.lock), {seed_of(side.lock)}
    reports = list(side.reports)
    for _, commit in experiments():
        place = f"in the experiment {commit[:7]}"
        try:
            lock = read_lock(at_commit(commit), place)
        except PipelineError:  # an experiment with a damaged lock file is not a run of this side
            continue
        if recipe_of(lock) != recipe or seed_of(lock) in seeds:
            continue
        report = read_report(at_commit(commit), lock, place)
        if report is not None:
            seeds.add(seed_of(lock))
            reports.append(report)
    return side._replace(reports=reports)


def check_comparable(candidate: Side, baseline: Side) -> None:
    """Raise PipelineError unless all reports are of the same test images."""
    known = candidate.first
    for side in (candidate, baseline):
        for report in side.reports:
            ours, theirs = known.metrics.dataset, report.metrics.dataset
            if (ours.name, known.metrics.test.images) != (theirs.name, report.metrics.test.images):
                raise PipelineError(
                    f"different datasets cannot be compared: {ours.name} ({known.metrics.test.images:,} test images) "
                    f"in {candidate.name}, {theirs.name} ({report.metrics.test.images:,}) in {side.name}"
                )
            if ours.test_md5 != theirs.test_md5:
                raise PipelineError(
                    f"different test sets of {ours.name} cannot be compared: MD5 {ours.test_md5[:7]} in "
                    f"{candidate.name}, {theirs.test_md5[:7]} in {side.name}"
                )
            for index in known.wrong.keys() & report.wrong.keys():
                if known.wrong[index].label != report.wrong[index].label:
                    raise PipelineError(
                        f"image {index} has label {known.wrong[index].label} in {paths.ERRORS} of {candidate.name}, "
                        f"but {report.wrong[index].label} in that of {side.name}: one of them has wrong image indices"
                    )


def gate_of(side: Side) -> Gate | None:
    """The gate settings of a side; None if its commit precedes the gate or has settings in another format."""
    try:
        return Gate.model_validate(side.composed.get("gate"))
    except ValidationError:
        return None


def configuration_of(side: Side) -> str:
    """A digest of a side's settings and test images."""
    return configuration_digest(side.composed, side.first.metrics.dataset.test_md5)


def with_record(side: Side, read: Reader, place: str) -> Side:
    """The side with the recorded seed noise of its recipe, if the record has the same settings and test images.

    The records of both sides come from the baseline, so that a change cannot bring the record that judges it.
    """
    metrics = side.first.metrics
    recipe = read_yaml(read, paths.CONF / "recipe" / f"{side.recipe}.yaml", place)
    try:
        noise = SeedNoise.model_validate(recipe["gate"]["seed_noise"][metrics.dataset.name])
    except (KeyError, TypeError, ValidationError):
        return side
    if noise.configuration != configuration_of(side):
        return side
    fits = len(noise.recall_std) == len(noise.recall_disagreement) == len(metrics.test.per_class.images)
    return side._replace(noise=noise) if fits else side
