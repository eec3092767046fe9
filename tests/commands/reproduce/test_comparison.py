"""What is required of a model on which machine, with committed results that were tampered with."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pipeline.commands.reproduce.clone import Clone, surroundings
from pipeline.commands.reproduce.comparison import Comparison, compare
from pipeline.commands.reproduce.promise import read_promise
from pipeline.core.files import md5
from pipeline.core.machine import describe_machine
from tests.commands.reproduce.command import replace
from tests.conftest import Project, copy

Change = Callable[[Path], None]
Compare = Callable[..., Comparison]


@pytest.fixture
def compared(committed: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Compare:
    """Compare a commit with a clone of the same results, after changes of either."""
    clone = copy(committed, tmp_path / "clone")
    monkeypatch.chdir(committed.root)

    def run(promised: Change = unchanged, made: Change = unchanged) -> Comparison:
        promised(committed.root)
        committed.succeed("git", "commit", "-qam", "changed", "--allow-empty")
        made(clone.root)
        return compare(read_promise("HEAD", Path()), Clone(clone.root, tmp_path))

    return run


def unchanged(root: Path) -> None:
    """No change."""


def another_model(root: Path) -> None:
    """As if the training had given other weights with the same predictions."""
    set_digest(root, "models/model.keras", "a" * 32)


def another_deterministic_model(root: Path) -> None:
    another_model(root)
    replace(root / "composed.yaml", "deterministic: false", "deterministic: true")


def another_machine(root: Path) -> None:
    """As if the committed results came from a processor without the widest instructions."""
    card = root / "reports" / "model_card.md"
    text = card.read_text(encoding="utf-8")
    assert f". {describe_machine()}; Python " in text, "the card names the machine where the promise is read from it"
    card.write_text(re.sub(r" \([^()]*\), \d+ cores", " (AVX2), 64 cores", text), encoding="utf-8")
    set_digest(root, "reports/model_card.md", md5(card))


def set_digest(root: Path, path: str, digest: str) -> None:
    """Set the digest of an output in dvc.lock."""
    lock = root / "dvc.lock"
    found = re.compile(rf"(path: {re.escape(path)}\n      hash: md5\n      md5: )\w+(\.dir)?")
    text, count = found.subn(rf"\g<1>{digest}", lock.read_text(encoding="utf-8"))
    assert count
    lock.write_text(text, encoding="utf-8")


def of(comparison: Comparison, outcome: str) -> set[str]:
    return {row.name for row in comparison.rows if row.outcome == outcome}


def test_equal_results_are_reproduced(compared: Compare) -> None:
    found = compared()
    assert found.reproduced
    assert of(found, "same") == {row.name for row in found.rows}
    assert found.verdict.startswith("REPRODUCED: ")
    assert "this machine is of the same kind" in found.notes[1]


def test_a_deterministic_configuration_promises_the_same_bytes_on_the_same_kind_of_machine(compared: Compare) -> None:
    found = compared(made=another_deterministic_model)
    assert (found.reproduced, of(found, "DIFFERS")) == (False, {"models/model.keras"})


def test_without_determinism_the_model_may_differ_within_the_tolerance(compared: Compare) -> None:
    found = compared(made=another_model)
    assert (found.reproduced, of(found, "tolerated")) == (True, {"models/model.keras"})
    assert "training.deterministic is false" in found.notes[-1]
    assert found.verdict.startswith("REPRODUCED within the tolerance: ")


def test_another_processor_may_give_another_model(compared: Compare) -> None:
    found = compared(another_machine, another_deterministic_model)
    assert (found.reproduced, of(found, "tolerated")) == (True, {"models/model.keras"})
    assert "promised on " in found.notes[1]
    assert " (AVX2), 64 cores, Linux (CPU); this machine is " in found.notes[1]


def test_data_are_equal_on_every_machine(compared: Compare) -> None:
    found = compared(another_machine, lambda root: set_digest(root, "data/raw", "d" * 32))
    assert (found.reproduced, of(found, "DIFFERS")) == (False, {"data/raw"})


def test_a_promise_that_is_older_than_the_code_is_told(compared: Compare) -> None:
    found = compared(made=lambda root: set_digest(root, "pipeline/stages/train", "c" * 32))
    assert (found.reproduced, found.notes[-1]) == (True, "dvc.lock is older than the code: pipeline/stages/train")


def test_an_output_that_no_stage_writes_is_named(compared: Compare) -> None:
    found = compared(made=lambda root: replace(root / "dvc.lock", "models/history.csv", "models/curves.csv"))
    (row,) = [row for row in found.rows if row.outcome == "DIFFERS"]
    assert (row.name, row.remark) == ("models/history.csv", "not written")


def test_the_pipeline_uses_the_promised_device_and_instructions(committed: Project, compared: Compare) -> None:
    compared(another_machine)
    found = surroundings(Clone(committed.root, committed.root), "/bin/python", read_promise("HEAD", Path()))
    assert (found["DEVICE"], found["ONEDNN_MAX_CPU_ISA"]) == ("cpu", "AVX2")


def test_a_worse_model_is_outside_the_tolerance(compared: Compare) -> None:
    """The clone's model misclassifies 100 images more, all of which the promised one gets right."""

    def spoil(root: Path) -> None:
        another_model(root)
        spoil_reports(root, 100)

    found = compared(another_machine, spoil)
    assert not found.reproduced
    assert of(found, "DIFFERS") >= {"models/model.keras", "test accuracy", "test errors"}
    assert "outside the tolerance: accuracy (-" in found.notes[-1]


def test_a_better_model_is_outside_the_tolerance(compared: Compare) -> None:
    """A model that reproduces another one is not better than it."""

    def spoil(root: Path) -> None:
        another_machine(root)
        another_model(root)
        spoil_reports(root, 100)

    found = compared(spoil)
    assert not found.reproduced
    assert "outside the tolerance: accuracy (-" in found.notes[-1]


def spoil_reports(root: Path, count: int) -> None:
    """Make the reports those of a model that misclassifies further images."""
    evaluation, errors = root / "reports" / "evaluation.json", root / "reports" / "errors.csv"
    found = json.loads(evaluation.read_text(encoding="utf-8"))
    rows = errors.read_text(encoding="utf-8").splitlines()
    with np.load(root / "data" / "prepared" / "test.npz") as file:
        labels = file["labels"]
    known = {int(row.split(",")[0]) for row in rows[1:]}
    new = [index for index in range(len(labels)) if index not in known][:count]
    rows += [f"{index},{labels[index]},{(labels[index] + 1) % 10},0.9" for index in new]
    missed = np.bincount([int(row.split(",")[1]) for row in rows[1:]], minlength=10)
    found["test"] |= {"errors": len(rows) - 1, "accuracy": 1 - (len(rows) - 1) / len(labels)}
    found["test"]["per_class"]["recall"] = list(1 - missed / np.bincount(labels))
    errors.write_text("\n".join(rows) + "\n", encoding="utf-8")
    evaluation.write_text(json.dumps(found), encoding="utf-8")
    for path in (evaluation, errors):
        set_digest(root, str(path.relative_to(root)), md5(path))
