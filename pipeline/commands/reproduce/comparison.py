"""Compare the results in a clone with what the commit promises."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import yaml

from pipeline.commands.gate.results import Results, check_comparable, gate_of, read_results, with_record
from pipeline.commands.gate.verdict import judge
from pipeline.commands.reproduce.clone import Clone
from pipeline.commands.reproduce.promise import Promise, check_committed
from pipeline.commands.reproduce.records import compare_records
from pipeline.core import paths
from pipeline.core.errors import PipelineError, first_line
from pipeline.core.files import parse_yaml
from pipeline.core.machine import describe_machine
from pipeline.core.records import Evaluation, Metrics, metrics_of
from pipeline.repository.dvc import LOCK, Output, all_outputs, code_of, outputs, read_lock
from pipeline.repository.reading import at_commit, in_folder, read_yaml

Outcome = Literal["same", "tolerated", "DIFFERS", "–"]
TRAINED = ("train", "evaluate")  # stages whose outputs depend on the processor
DRAWN = ".png"  # its compression may depend on the processor, too
PROMISED = (".keras", ".csv", DRAWN)  # of TRAINED; other files contain times, and the ID of their MLflow run
RECORDS = (str(paths.EVALUATION), str(paths.METRICS))  # in git, so that their fields can be compared
MEMORY = re.compile(r", [\d.]+ GiB")
FIGURES = ("accuracy", "errors", "loss", "calibration_error")
NO_FLOOR = "floor"  # the check of the gate that does not compare


class Row(NamedTuple):
    """One line of the comparison: an output, or a figure of the test set."""

    name: str
    outcome: Outcome
    promised: str
    reproduced: str
    remark: str = ""


class Comparison(NamedTuple):
    """All rows, and notes on what was required."""

    promise: Promise
    rows: list[Row]
    notes: list[str]

    @property
    def reproduced(self) -> bool:
        """Whether nothing differs that must not."""
        return not self.different

    @property
    def different(self) -> list[str]:
        """The outputs and figures that differ, although they must not."""
        return [row.name for row in self.rows if row.outcome == "DIFFERS"]

    @property
    def verdict(self) -> str:
        """The result in one line."""
        commit, outcomes = self.promise.commit[:7], [row.outcome for row in self.rows]
        if self.different:
            return f"NOT REPRODUCED: {commit}: {', '.join(self.different)}"
        counted = f"{outcomes.count('same')} outputs and figures are equal"
        if near := outcomes.count("tolerated"):
            return f"REPRODUCED within the tolerance: {commit}: {counted}; {near} are not, as is allowed"
        return f"REPRODUCED: {commit}: {counted}"


class Requirement(NamedTuple):
    """What the outputs of training and evaluation must be: equal, or within a tolerance."""

    equal: bool
    tolerable: bool  # whether the two models are within the tolerance
    notes: list[str]


def compare(promise: Promise, clone: Clone) -> Comparison:
    """Compare a clone's results with the promise, output by output and figure by figure.

    Raises PipelineError if the clone has no dvc.lock.
    """
    lock = read_lock(in_folder(clone.root), "in the clone")
    found = all_outputs(lock)
    promised, reproduced, unread = results_of(promise, clone)
    required = require(promise, outputs(lock), promised, reproduced, clone)
    rows = [output_row(path, promise, found, required, clone) for path in dict.fromkeys([*promise.outputs, *found])]
    rows += stage_rows(lock["stages"], rows, found)
    if promised and reproduced:
        rows += figure_rows(promised, reproduced, required)
    notes = ["–: not compared, because it contains times and the ID of its run", *required.notes, *unread]
    notes += [f"{LOCK} is older than the code: {', '.join(changed)}"] if (changed := other_code(promise, lock)) else []
    comparison = Comparison(promise, rows, notes)
    if promise.folder != Path() and not comparison.reproduced:
        notes.append(
            f"if the change is intended, `make reproduce PROMISE={promise.folder} UPDATE=1` renews the promise"
        )
    return comparison


def other_code(promise: Promise, lock: dict[str, Any]) -> list[str]:
    """The code that has changed since the promised results were made."""
    before, after = (
        {path: digest for stage in code_of(each).values() for path, digest in stage["code"].items()}
        for each in (promise.lock, lock)
    )
    return sorted(path for path, digest in before.items() if after.get(path, digest) != digest)


def output_row(path: str, promise: Promise, found: dict[str, Output], required: Requirement, clone: Clone) -> Row:
    """Compare one output by its digest, or a record in git by its fields."""
    promised, made = promise.outputs.get(path), found.get(path)
    shown = (promised.md5[:7] if promised else "", made.md5[:7] if made else "")
    if complaint := complaint_about(promised, made) or check_committed(promise, path, clone.root):
        return Row(path, "DIFFERS", *shown, complaint)
    if made is None or promised == made:  # it is not None, which mypy does not know
        return Row(path, "same", *shown)
    if path in RECORDS:
        return Row(path, *record_outcome(path, promise, required, clone, shown))
    if made.stage in TRAINED and not path.endswith(PROMISED):
        return Row(path, "–", *shown)
    if made.stage not in TRAINED and not path.endswith(DRAWN):
        return Row(path, "DIFFERS", *shown, "must be equal on every machine")
    return Row(path, outcome(False, required), *shown)


def complaint_about(promised: Output | None, made: Output | None) -> str:
    """Why an output cannot be compared with its promise; empty if it can."""
    if promised is None:
        return f"written, but {LOCK} does not promise it"
    if made is None:
        return "not written"
    return "" if promised.stage == made.stage else f"an output of {made.stage}, but promised as one of {promised.stage}"


def record_outcome(
    path: str, promise: Promise, required: Requirement, clone: Clone, shown: tuple[str, str]
) -> tuple[Outcome, str, str, str]:
    """Compare a record field by field: its outcome, its digests, and the fields that differ."""
    read = in_folder(clone.root)
    try:
        differences = compare_records(promise.read(Path(path)) or b"", read(Path(path)) or b"")
    except ValueError as error:
        return "DIFFERS", *shown, f"not a record ({first_line(error)})"
    if path == str(paths.METRICS) and contradictory(promise):
        return "DIFFERS", *shown, f"contradicts {paths.EVALUATION} {promise.place}"
    same = not differences.fields
    found = outcome(same, required) if differences.explicable else "DIFFERS"
    return found, *shown, "equal but for times and the ID of its run" if same else f"differs in {differences}"


def contradictory(promise: Promise) -> bool:
    """Whether metrics.json has other figures than evaluation.json: no tolerance allows that."""
    contents = (promise.read(path) or b"" for path in (paths.EVALUATION, paths.METRICS))
    try:
        return metrics_of(Evaluation.parse(next(contents), "")) != Metrics.parse(next(contents), "")
    except PipelineError:  # of an earlier version
        return False


def stage_rows(stages: Iterable[str], rows: list[Row], found: dict[str, Output]) -> list[Row]:
    """A row for each stage of which nothing was compared."""
    compared = {found[row.name].stage for row in rows if row.name in found and row.outcome != "–"}
    return [
        Row(stage, "DIFFERS", "", "", "none of its outputs was compared") for stage in stages if stage not in compared
    ]


def figure_rows(promised: Results, reproduced: Results, required: Requirement) -> list[Row]:
    """Compare the figures of the test set."""
    before, after = (results.first.metrics.test.model_dump() for results in (promised, reproduced))
    return [
        Row(f"test {name}", outcome(before[name] == after[name], required), f"{before[name]:g}", f"{after[name]:g}")
        for name in FIGURES
    ]


def outcome(same: bool, required: Requirement) -> Outcome:
    """The outcome for an output or a figure that depends on the processor."""
    return "same" if same else "tolerated" if required.tolerable and not required.equal else "DIFFERS"


def results_of(promise: Promise, clone: Clone) -> tuple[Results | None, Results | None, list[str]]:
    """The promised and the reproduced results in the gate's format, and why one is None, as of an earlier version."""
    composed = read_yaml(in_folder(clone.root), paths.COMPOSED, "in the clone")
    found, notes = [], []
    for read, name, place in (
        (promise.read, "the promise", promise.place),
        (in_folder(clone.root), "the reproduction", "in the clone"),
    ):
        results, reason = None, f"there is no {paths.EVALUATION} {place}"
        try:
            results = read_results(read, name, place)
        except PipelineError as error:
            reason = str(error)
        found.append(results and results._replace(composed=composed))
        notes += [] if results else [f"the figures of the test set are compared only as fields of records: {reason}"]
    return found[0], found[1], notes


def require(
    promise: Promise, found: dict[str, str], promised: Results | None, reproduced: Results | None, clone: Clone
) -> Requirement:
    """Decide what is required of this machine's model, and whether the tolerance allows the model that it made."""
    here, deterministic = MEMORY.sub("", describe_machine()), is_deterministic(clone)
    there = MEMORY.sub("", promise.machine) or "an unknown machine"
    same_kind = promise.device == "cpu" and here == there
    same_model = all(
        found.get(path) == out.md5 for path, out in promise.outputs.items() if path.endswith(paths.MODEL.suffix)
    )
    equal = same_kind and (deterministic or same_model)
    where = f"promised on {there}" + f" ({promise.device.upper()})" * bool(promise.device)
    notes = [where + ("; this machine is of the same kind" if same_kind else f"; this machine is {here}")]
    if equal:
        return Requirement(True, False, [*notes, "models, pictures and figures must be equal"])
    why = "training.deterministic is false, so equal models are not promised" if same_kind else "models may differ"
    tolerable, reason = within_tolerance(promise, promised, reproduced)
    return Requirement(False, tolerable, [*notes, f"{why}; {reason}"])


def is_deterministic(clone: Clone) -> bool:
    """Whether the reproduced configuration promises equal models on one kind of machine."""
    try:
        return parse_yaml((clone.root / paths.COMPOSED).read_bytes())["training"]["deterministic"] is True
    except (OSError, yaml.YAMLError, LookupError, TypeError):
        return False


def within_tolerance(promise: Promise, promised: Results | None, reproduced: Results | None) -> tuple[bool, str]:
    """Whether the gate finds neither of the two models worse than the other, and the reason."""
    if promised is None or reproduced is None:
        return False, "its reports cannot be compared"
    gate = gate_of(reproduced)
    if gate is None:
        return False, "its configuration has no gate in the current format, which sets the tolerance"
    try:
        check_comparable(reproduced, promised)
    except PipelineError as error:
        return False, str(error)
    read = at_commit(promise.commit)
    first, second = (with_record(each, read, promise.place) for each in (promised, reproduced))
    checks = [*judge(second, first, gate).checks, *judge(first, second, gate).checks]
    outside = [f"{each.name} ({each.remark})" for each in checks if each.outcome in ("warn", "FAIL")]
    outside = [each for each in outside if not each.startswith(NO_FLOOR)]
    if outside:
        return False, f"outside the tolerance: {'; '.join(outside)}"
    return True, f"within the tolerance: {checks[1].remark}"
