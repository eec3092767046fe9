"""Run one comparison, from the working tree to the verdict."""

from typing import NamedTuple

from pipeline.commands.gate.results import (
    Baseline,
    Results,
    check_comparable,
    gate_of,
    read_baseline,
    read_candidate,
    recipe_of,
    with_other_seeds,
    with_record,
)
from pipeline.commands.gate.verdict import Verdict, judge
from pipeline.core import paths
from pipeline.core.config import Gate
from pipeline.core.errors import PipelineError
from pipeline.repository.dvc import check_current
from pipeline.repository.git import check_repository


class Comparison(NamedTuple):
    """A verdict, with the results of both models and notes on the comparison."""

    verdict: Verdict
    candidate: Results
    baseline: Results | None
    notes: list[str]

    @property
    def title(self) -> str:
        """The comparison in one line."""
        word = "PASS" if self.verdict.passed else "FAIL"
        return f"{word}: {self.candidate.name} against {self.baseline.name if self.baseline else 'the floor alone'}"

    @property
    def newly_wrong(self) -> list[int]:
        """Indices of the images that only the candidate misclassifies."""
        return _only(self.candidate, self.baseline) if self.baseline else []

    @property
    def newly_right(self) -> list[int]:
        """Indices of the images that only the baseline misclassifies."""
        return _only(self.baseline, self.candidate) if self.baseline else []


def current_candidate() -> Results:
    """The results in the working tree. Raises PipelineError if its reports are not current."""
    check_repository()
    candidate = read_candidate()
    check_current()
    return candidate


def compare_with(base: str | None, candidate: Results) -> Comparison:
    """Compare the candidate with the baseline of `base`, by default gate.base of its configuration.

    Raises PipelineError if the two cannot be compared.
    """
    return compare_to(read_baseline(base or own_gate(candidate).base, candidate), candidate)


def own_gate(candidate: Results) -> Gate:
    """The candidate's gate settings. Raises PipelineError if they are missing or invalid."""
    own = gate_of(candidate)
    if own is None:
        raise PipelineError(f"{paths.COMPOSED} has no valid gate settings: run `dvc repro`")
    return own


def compare_to(found: Baseline, candidate: Results) -> Comparison:
    """Compare the candidate with a baseline. Raises PipelineError if the two cannot be compared."""
    own, (baseline, read, note) = own_gate(candidate), found
    if baseline is None:
        dataset = candidate.first.metrics.dataset.name
        if dataset not in own.floor:
            raise PipelineError(f"{note}, and the dataset has no floor: add gate.floor.{dataset} to conf/config.yaml")
        return Comparison(
            judge(candidate, None, own), candidate, None, [f"no baseline: {note}, so only the floor applies"]
        )
    notes = []
    if recipe_of(candidate) == recipe_of(baseline):
        notes.append(
            "code and configuration are those of the baseline, except for the seed: runs with other seeds do not count"
        )
    else:
        candidate, baseline = with_other_seeds(candidate), with_other_seeds(baseline)
    check_comparable(candidate, baseline)
    candidate, baseline = (with_record(results, read, f"in {baseline.name}") for results in (candidate, baseline))
    gate, whose = settings(own, baseline)
    return Comparison(judge(candidate, baseline, gate), candidate, baseline, [*notes, *whose])


def settings(own: Gate, baseline: Results) -> tuple[Gate, list[str]]:
    """The settings to judge by, and a note if the two commits have different settings.

    The baseline's settings apply if it has any, so that a change cannot loosen the settings that judge it.
    """
    gate = gate_of(baseline)
    if gate is None:
        return own, [f"{baseline.name} has no gate settings in the current format: those of this change apply"]
    beside = {"base": own.base, "seed_noise": own.seed_noise}
    if gate.model_copy(update=beside) == own:
        return gate, []
    return gate, [f"judged by the gate settings of {baseline.name}: those of this change apply once it is merged"]


def _only(first: Results, second: Results) -> list[int]:
    return sorted(first.first.wrong.keys() - second.first.wrong.keys())
