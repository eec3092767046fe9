"""The results of the two models to compare: the candidate in the working tree and the baseline it would replace."""

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from pipeline.commands.gate.report import Report, parse_report
from pipeline.core import paths
from pipeline.core.config import Gate, SeedNoise, configuration_digest
from pipeline.core.errors import PipelineError
from pipeline.repository.dvc import check_lock, code_of, experiments, is_consistent, outputs, read_lock
from pipeline.repository.git import commit_of, is_shallow, merge_base
from pipeline.repository.reading import Reader, at_commit, in_folder, read_evaluation, read_yaml

SEED = "seed"
JUDGING = "gate"  # section of the settings that affect the verdict, but not the figures
COMMIT_ID = re.compile("[0-9a-f]{40}|[0-9a-f]{64}")  # SHA-1 or SHA-256


class Results(NamedTuple):
    """The results of a trained model, and of further runs of its recipe with other seeds."""

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
    """The results to compare with, a reader of their commit's files and, if the results are missing, the reason."""

    results: Results | None
    read: Reader
    note: str


def read_candidate() -> Results:
    """The results in the working tree. Raises PipelineError if its reports are missing or damaged."""
    results = read_results(in_folder(Path()), "the working tree", "in the working tree")
    if results is None:
        raise PipelineError(f"{paths.EVALUATION} is missing in the working tree: run `dvc repro`")
    return results


def read_baseline(base: str, candidate: Results) -> Baseline:
    """The baseline: the merge base with a revision, or a folder.

    The results are missing if the repository has no commits, the merge base has no reports, or the candidate's dataset
    and test images are new. Raises PipelineError if git does not know the revision, the folder has no reports, or the
    reports are damaged.
    """
    folder = Path(base)
    if commit_of(base) is None and folder.is_dir():
        results = read_results(in_folder(folder), base, f"in {base}")
        if results is None:
            raise PipelineError(
                f"{folder / paths.EVALUATION} is missing: --base must name a folder that contains reports/"
            )
        return Baseline(results, in_folder(folder), "")
    if commit_of("HEAD") is None:
        return Baseline(None, in_folder(Path()), "the repository has no commits yet")
    commit = merge_base(base)
    return read_commit(commit, base, f"at {commit[:7]}, the merge base with {base}", candidate)


def lost_baseline(before: str) -> Baseline | None:
    """A baseline without results, if the commit before a push never existed or no longer exists.

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


def read_commit(commit: str, name: str, place: str, candidate: Results) -> Baseline:
    """The baseline at a commit, which messages call `name`. Raises PipelineError if its reports are damaged."""
    read = at_commit(commit)
    results = read_results(read, f"{name} at {commit[:7]}", place, committed=True)
    if results is None:
        return Baseline(None, read, f"{paths.EVALUATION} does not exist yet {place}")
    ours, theirs = candidate.first.metrics.dataset, results.first.metrics.dataset
    known = ours.test_md5 == theirs.test_md5 or read(paths.CONF / "dataset" / f"{ours.name}.yaml") is not None
    if ours.name != theirs.name and not known:
        return Baseline(None, read, f"dataset {ours.name} does not exist yet {place}")
    return Baseline(results, read, "")


def read_results(read: Reader, name: str, place: str, committed: bool = False) -> Results | None:
    """The results among some files; None if the evaluation does not exist.

    Raises PipelineError if the reports are damaged or, if `committed`, do not match dvc.lock.
    """
    lock = read_lock(read, place)
    report = read_report(read, lock if committed else None, place)
    if report is not None and committed:
        check_composed(read, lock, place)
    return report and Results(name, [report], read_yaml(read, paths.COMPOSED, place), lock)


def check_composed(read: Reader, lock: dict[str, Any], place: str) -> None:
    """Raise PipelineError if composed.yaml does not match dvc.lock, unless the commit precedes one of them."""
    content = read(paths.COMPOSED)
    if content is not None and str(paths.COMPOSED) in outputs(lock):
        check_lock(lock, paths.COMPOSED, content, place)


def read_report(read: Reader, lock: dict[str, Any] | None, place: str) -> Report | None:
    """The report of one model, checked against dvc.lock if given; None if the evaluation does not exist."""
    found, errors = read_evaluation(read), read(paths.ERRORS)
    if found is None:
        if read(paths.METRICS) is not None:
            raise PipelineError(f"{paths.EVALUATION} is missing {place}, but {paths.METRICS} exists")
        return None
    path, evaluation = found
    if errors is None:
        raise PipelineError(f"{paths.ERRORS} is missing {place}, but {path} exists")
    if lock is not None:
        check_lock(lock, path, evaluation, place)
        check_lock(lock, paths.ERRORS, errors, place)
    return parse_report(evaluation, errors, place, path)


def recipe_of(results: Results) -> str:
    """Code and configuration that determine a model's figures, without the seed: equal for all seeds of a recipe.

    The gate's settings, which the model card reports, are left out: recording seed noise does not make a new recipe.
    """
    settings = {key: value for key, value in results.composed.items() if key not in (SEED, JUDGING)}
    return json.dumps([code_of(results.lock), settings], sort_keys=True)


def seed_of(results: Results) -> str:
    """The seed of a model as text: a damaged file can contain a list."""
    return json.dumps(results.composed.get(SEED))


def with_other_seeds(results: Results) -> Results:
    """The results, plus a report for each other seed among the DVC experiments with its code and configuration."""
    recipe, seeds, reports = recipe_of(results), {seed_of(results)}, list(results.reports)
    for _, commit in experiments():
        other = read_experiment(commit, recipe)
        if other is not None and seed_of(other) not in seeds:
            seeds.add(seed_of(other))
            reports += other.reports
    return results._replace(reports=reports)


def read_experiment(commit: str, recipe: str) -> Results | None:
    """The results of a DVC experiment; None if it is not a run of this recipe, or has no results.

    Raises PipelineError if its reports are damaged or do not match its dvc.lock.
    """
    read, place = at_commit(commit), f"in the experiment {commit[:7]}"
    try:
        lock, composed = read_lock(read, place), read_yaml(read, paths.COMPOSED, place)
    except PipelineError:  # an experiment with damaged files is not a run of this recipe
        return None
    other = Results(place, [], composed, lock)
    if recipe_of(other) != recipe or not is_consistent(lock):
        return None
    check_composed(read, lock, place)  # only this file has the seed
    report = read_report(read, lock, place)
    return report and other._replace(reports=[report])


def check_comparable(candidate: Results, baseline: Results) -> None:
    """Raise PipelineError unless all reports are of the same test images."""
    known = candidate.first
    for results in (candidate, baseline):
        for report in results.reports:
            ours, theirs = known.metrics.dataset, report.metrics.dataset
            if (ours.name, known.metrics.test.images) != (theirs.name, report.metrics.test.images):
                raise PipelineError(
                    f"different datasets cannot be compared: {ours.name} ({known.metrics.test.images:,} test images) "
                    f"in {candidate.name}, {theirs.name} ({report.metrics.test.images:,}) in {results.name}"
                )
            if ours.test_md5 != theirs.test_md5:
                raise PipelineError(
                    f"different test sets of {ours.name} cannot be compared: MD5 {ours.test_md5[:7]} in "
                    f"{candidate.name}, {theirs.test_md5[:7]} in {results.name}"
                )
            for index in known.wrong.keys() & report.wrong.keys():
                if known.wrong[index].label != report.wrong[index].label:
                    raise PipelineError(
                        f"image {index} has label {known.wrong[index].label} in {paths.ERRORS} of {candidate.name}, "
                        f"but {report.wrong[index].label} in that of {results.name}: one has wrong image indices"
                    )


def gate_of(results: Results) -> Gate | None:
    """The gate settings of a model; None if its commit precedes the gate or has settings in another format."""
    try:
        return Gate.model_validate(results.composed.get("gate"))
    except ValidationError:
        return None


def configuration_of(results: Results) -> str:
    """A digest of a model's settings and test images."""
    return configuration_digest(results.composed, results.first.metrics.dataset.test_md5)


def with_record(results: Results, read: Reader, place: str) -> Results:
    """The results with the recorded seed noise of their recipe, if the record has the same settings and test images.

    The records of both models come from the baseline, so that a change cannot bring the record that judges it.
    """
    metrics = results.first.metrics
    recipe = read_yaml(read, paths.CONF / "recipe" / f"{results.recipe}.yaml", place)
    try:
        noise = SeedNoise.model_validate(recipe["gate"]["seed_noise"][metrics.dataset.name])
    except (KeyError, TypeError, ValidationError):
        return results
    if noise.configuration != configuration_of(results):
        return results
    fits = len(noise.recall_std) == len(noise.recall_disagreement) == len(metrics.test.per_class.images)
    return results._replace(noise=noise) if fits else results
