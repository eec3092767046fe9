"""What is required of a model on which machine, with committed results that were tampered with."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

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
    found = re.compile(rf"(path: {re.escape(path)}\n *hash: md5\n *md5: )\w+(\.dir)?")
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
    assert {row.name: row.remark for row in found.rows if row.outcome == "DIFFERS"} == {
        "models/history.csv": "not written",
        "models/curves.csv": "written, but dvc.lock does not promise it",
    }


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


def change_record(name: str, change: Callable[[dict[str, Any]], Any]) -> Change:
    """Change a record in reports/ and its digest in dvc.lock: as a forged promise."""

    def run(root: Path) -> None:
        path = root / "reports" / name
        record = json.loads(path.read_text(encoding="utf-8"))
        change(record)
        path.write_text(json.dumps(record), encoding="utf-8")
        set_digest(root, f"reports/{name}", md5(path))

    return run


def replace_with_accuracy(record: dict[str, Any]) -> None:
    record.clear()
    record["test"] = {"accuracy": 0.9999}


FORGED: dict[str, Callable[[dict[str, Any]], Any]] = {  # and the fields that a message names
    "test.confusion_matrix": lambda record: record["test"].update(confusion_matrix=[[1]]),
    "test.accuracy_low": lambda record: record["test"].update(accuracy_low=0.5),
    "test.per_class.precision": lambda record: record["test"]["per_class"].update(precision=[1]),
    "training.epochs": lambda record: record["training"].update(epochs=True),
    "more": replace_with_accuracy,
}


@pytest.mark.parametrize("field", FORGED)
def test_a_forged_evaluation_differs(compared: Compare, field: str) -> None:
    found = compared(change_record("evaluation.json", FORGED[field]))
    assert not found.reproduced
    (row,) = [row for row in found.rows if row.name == "reports/evaluation.json"]
    assert row.outcome == "DIFFERS"
    assert row.remark.startswith("differs in ")
    assert row.remark.endswith(field)


@pytest.mark.parametrize("machine", [unchanged, another_machine])
@pytest.mark.parametrize("values", [{"accuracy": 0.99}, {"ci_low": 0.5}, {"params": 1}])
def test_forged_metrics_differ(compared: Compare, machine: Change, values: dict[str, Any]) -> None:
    """Also where the tolerance allows other metrics, because they are not those of the evaluation."""

    def forge(root: Path) -> None:
        machine(root)
        change_record("metrics.json", lambda record: record.update(values))(root)

    found = compared(forge, another_model)
    assert of(found, "DIFFERS") == {"reports/metrics.json"}
    assert any(row.remark.startswith("contradicts reports/evaluation.json at ") for row in found.rows)


def test_a_record_without_the_figures_is_told(compared: Compare) -> None:
    found = compared(change_record("evaluation.json", replace_with_accuracy))
    assert any("are compared only as fields of records: reports/evaluation.json at " in note for note in found.notes)


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"[" * 100_000])
def test_an_unreadable_record_differs(compared: Compare, content: bytes) -> None:
    def spoil(root: Path) -> None:
        (root / "reports" / "metrics.json").write_bytes(content)
        set_digest(root, "reports/metrics.json", md5(root / "reports" / "metrics.json"))

    found = compared(spoil)
    assert (found.reproduced, of(found, "DIFFERS")) == (False, {"reports/metrics.json"})


def test_times_and_the_run_may_differ(compared: Compare) -> None:
    def later(record: dict[str, Any]) -> None:
        record["training"]["fit_seconds"] += 1
        record["mlflow"]["run_id"] = "f" * 32

    found = compared(change_record("evaluation.json", later))
    assert (found.reproduced, of(found, "same")) == (True, {row.name for row in found.rows})


def test_what_the_processor_does_not_explain_is_not_tolerated(compared: Compare) -> None:
    def promised(root: Path) -> None:
        another_machine(root)
        change_record("metrics.json", lambda record: record.update(params=1))(root)
        change_record("evaluation.json", lambda record: record["test"].update(loss=record["test"]["loss"] + 1e-6))(root)

    found = compared(promised, another_model)
    assert of(found, "tolerated") == {"models/model.keras", "reports/evaluation.json", "test loss"}
    assert of(found, "DIFFERS") == {"reports/metrics.json"}


REPORTS = ["evaluation.json", "errors.csv", "metrics.json", "model_card.md"]


@pytest.mark.parametrize("name", REPORTS)
def test_a_report_that_is_not_in_git_differs(compared: Compare, name: str) -> None:
    found = compared(lambda root: (root / "reports" / name).unlink())
    assert (found.reproduced, of(found, "DIFFERS")) == (False, {f"reports/{name}"})


def change_lock(change: Callable[[dict[str, Any]], Any]) -> Change:
    """Change the stages in dvc.lock."""

    def run(root: Path) -> None:
        lock = yaml.safe_load((root / "dvc.lock").read_text(encoding="utf-8"))
        change(lock["stages"])
        (root / "dvc.lock").write_text(yaml.safe_dump(lock, sort_keys=False), encoding="utf-8")

    return run


INCOMPLETE: dict[str, tuple[Callable[[dict[str, Any]], Any], set[str]]] = {
    "no stages after fetch": (
        lambda stages: [stages.pop(name) for name in ("preprocess", "train", "evaluate")],
        {"models/model.keras", "data/prepared/test.npz", "reports/errors.csv"},
    ),
    "no outputs of train": (lambda stages: stages["train"].update(outs=[]), {"models/model.keras", "models/run.json"}),
    "data as an output of train": (
        lambda stages: stages["train"]["outs"].extend(stages["preprocess"]["outs"]),
        {"data/prepared/test.npz"},
    ),
}


@pytest.mark.parametrize("name", INCOMPLETE)
def test_an_incomplete_promise_is_not_reproduced(compared: Compare, name: str) -> None:
    change, differing = INCOMPLETE[name]
    found = compared(change_lock(change))
    assert not found.reproduced
    assert differing <= of(found, "DIFFERS")


def test_something_of_every_stage_is_compared(compared: Compare) -> None:
    """Also if a version of train had only an output with times."""

    def only_the_run(stages: dict[str, Any]) -> None:
        stages["train"]["outs"] = [out for out in stages["train"]["outs"] if out["path"] == "models/run.json"]

    def another_run(root: Path) -> None:
        change_lock(only_the_run)(root)
        set_digest(root, "models/run.json", "a" * 32)

    found = compared(change_lock(only_the_run), another_run)
    (row,) = [row for row in found.rows if row.outcome == "DIFFERS"]
    assert (row.name, row.remark) == ("train", "none of its outputs was compared")


def test_the_evaluation_of_an_earlier_version_is_compared(compared: Compare) -> None:
    """It was reports/metrics.json, and had fewer fields."""

    def earlier(root: Path) -> None:
        (root / "reports" / "evaluation.json").rename(root / "reports" / "metrics.json")
        change_record("metrics.json", lambda record: record["training"].pop("precision"))(root)
        left_out = "reports/evaluation.json"
        change_lock(lambda stages: stages["evaluate"]["outs"].remove(out_of(stages, left_out)))(root)

    found = compared(earlier, earlier)
    assert (found.reproduced, of(found, "same")) == (True, {row.name for row in found.rows})
    assert "test accuracy" in of(found, "same")
    found = compared(change_record("metrics.json", lambda record: record["test"].update(accuracy_high=1.0)))
    assert of(found, "DIFFERS") == {"reports/metrics.json"}


def out_of(stages: dict[str, Any], path: str) -> dict[str, Any]:
    """The entry of an output of evaluate in dvc.lock."""
    (found,) = [out for out in stages["evaluate"]["outs"] if out["path"] == path]
    return dict(found)
