"""The verdict on models of two thousand images with a known answer."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.commands.gate.report import Misclassification, Report
from pipeline.commands.gate.results import Results, configuration_of, with_record
from pipeline.commands.gate.verdict import Verdict, judge
from pipeline.core.config import Gate, SeedNoise
from pipeline.core.records import ClassRecall, ComparedEvaluation, ComparedFigures, ScoredImages
from pipeline.repository.reading import in_folder

IMAGES = 1000  # of each of two classes; even indices are of class 0
GATE = Gate(base="", alpha=0.05, floor={"tiny": 0.9}, loss_rise=0.1, calibration_rise=0.01, seed_noise={})
QUIET: dict[str, Any] = {"seeds": 20, "accuracy_std": 0.001, "accuracy_disagreement": 0.002}
QUIET |= {"recall_std": [0.001, 0.001], "recall_disagreement": [0.002, 0.002]}
LEARNED = {"model": {"name": "mlp"}, "optimizer": {"name": "adam"}, "training": {"epochs": 20}}


def report(wrong: set[int], loss: float = 0.1, calibration: float = 0.01) -> Report:
    missed = [len([index for index in wrong if index % 2 == label]) for label in range(2)]
    test = ComparedFigures(
        accuracy=1 - len(wrong) / (2 * IMAGES),
        loss=loss,
        errors=len(wrong),
        images=2 * IMAGES,
        calibration_error=calibration,
        per_class=ClassRecall(recall=[1 - count / IMAGES for count in missed], images=[IMAGES, IMAGES]),
    )
    misclassified = {index: Misclassification(index % 2, 1 - index % 2) for index in wrong}
    return Report(ComparedEvaluation(test=test, dataset=ScoredImages(name="tiny", test_md5="0")), misclassified)


def results(*reports: Report, noise: dict[str, Any] | None = None) -> Results:
    return Results(
        "here", list(reports), {"recipe": "baseline"}, {}, SeedNoise.model_validate(noise) if noise else None
    )


def outcomes(verdict: Verdict) -> dict[str, str]:
    return {check.name.split()[0]: check.outcome for check in verdict.checks}


def verdict_on(candidate: Results, baseline: Results) -> Verdict:
    return judge(candidate, baseline, GATE)


def test_the_same_model_passes_everything() -> None:
    found = verdict_on(results(report({1, 2, 3})), results(report({1, 2, 3})))
    assert found.passed
    assert set(outcomes(found).values()) == {"pass"}
    assert found.figures["accuracy_change"] == 0


def test_an_accuracy_below_the_floor_is_stopped() -> None:
    assert judge(results(report(set(range(200)))), None, GATE).passed, "90 % of 90 %"
    assert not judge(results(report(set(range(201)))), None, GATE).passed
    unknown = judge(results(report({1})), None, GATE.model_copy(update={"floor": {}}))
    assert outcomes(unknown) == {"floor": "–"}


def test_the_two_tests_split_alpha() -> None:
    # McNemar's p value of 5 to 0 is 1/32, between alpha / 2 and alpha; of 6 to 0 it is 1/64, below both.
    assert outcomes(verdict_on(results(report({0, 1, 2, 3, 4})), results(report(set()))))["accuracy"] == "pass"
    assert outcomes(verdict_on(results(report({0, 1, 2, 3, 4, 5})), results(report(set()))))["accuracy"] == "FAIL"


def test_a_drop_in_one_class_is_stopped_at_equal_accuracy() -> None:
    found = verdict_on(results(report(set(range(0, 40, 2)))), results(report(set(range(1, 40, 2)))))
    assert outcomes(found) == {
        "floor": "pass",
        "accuracy": "pass",
        "recall": "FAIL",
        "test": "pass",
        "calibration": "pass",
    }
    assert next(check.name for check in found.checks if check.outcome == "FAIL") == "recall of 0"
    assert not found.passed


def test_a_class_is_judged_by_its_own_spread() -> None:
    candidate, baseline = report(set(range(0, 40, 2))), report(set(range(1, 40, 2)))
    trading = QUIET | {"recall_std": [0.02, 0.02], "recall_disagreement": [0.04, 0.04]}
    assert verdict_on(results(candidate, noise=trading), results(baseline, noise=trading)).passed
    assert not verdict_on(results(candidate, noise=QUIET), results(baseline, noise=QUIET)).passed


def test_loss_and_calibration_only_warn() -> None:
    found = verdict_on(results(report({1}, loss=0.3, calibration=0.1)), results(report({1})))
    assert (outcomes(found)["test"], outcomes(found)["calibration"]) == ("warn", "warn")
    assert found.passed
    found = verdict_on(results(report({1}, loss=0.19, calibration=0.019)), results(report({1})))
    assert set(outcomes(found).values()) == {"pass"}


def test_the_record_comes_from_the_baseline(tmp_path: Path) -> None:
    recipe = tmp_path / "conf" / "recipe" / "baseline.yaml"
    assert with_record(results(report({1})), in_folder(tmp_path), "there").noise is None
    recipe.parent.mkdir(parents=True)
    record = QUIET | {"configuration": configuration_of(results(report({1})))}
    recipe.write_text(yaml.safe_dump({"gate": {"seed_noise": {"tiny": record}}}), encoding="utf-8")
    assert with_record(results(report({1})), in_folder(tmp_path), "there").noise == SeedNoise.model_validate(record)
    other_classes = record | {"recall_std": [0.1], "recall_disagreement": [0.1]}
    for content in ({"tiny": other_classes}, {"other": record}, {"tiny": {"seeds": 9}}, {"tiny": QUIET}, None):
        recipe.write_text(yaml.safe_dump({"gate": {"seed_noise": content}}), encoding="utf-8")
        assert with_record(results(report({1})), in_folder(tmp_path), "there").noise is None


@pytest.mark.parametrize(
    "changed",
    [
        {"training": {"epochs": 2}},
        {"model": {"name": "mlp", "members": 2}},
        {"optimizer": {"name": "adam", "learning_rate": 0.1}},
        {"training": None},
    ],
)
def test_a_record_applies_only_to_its_settings_and_test_images(tmp_path: Path, changed: dict[str, Any]) -> None:
    learned = results(report({1}))._replace(composed={"recipe": "baseline", "seed": 1} | LEARNED)
    recipe = tmp_path / "conf" / "recipe" / "baseline.yaml"
    recipe.parent.mkdir(parents=True)
    record = QUIET | {"configuration": configuration_of(learned)}
    recipe.write_text(yaml.safe_dump({"gate": {"seed_noise": {"tiny": record}}}), encoding="utf-8")
    another_seed = learned._replace(composed=learned.composed | {"seed": 2, "versions": {"keras": "4"}})
    assert with_record(another_seed, in_folder(tmp_path), "there").noise is not None
    otherwise = learned._replace(composed=learned.composed | changed)
    assert with_record(otherwise, in_folder(tmp_path), "there").noise is None
    first = learned.first
    other_images = first._replace(
        metrics=first.metrics.model_copy(update={"dataset": ScoredImages(name="tiny", test_md5="1")})
    )
    assert with_record(learned._replace(reports=[other_images]), in_folder(tmp_path), "there").noise is None


def test_the_notes_state_the_source_of_the_seed_noise() -> None:
    (note,) = verdict_on(results(report({1}), noise=QUIET), results(report({1}))).notes
    assert (
        "here has one seed, and the baseline has no record of seed noise for recipe baseline on tiny with its" in note
    )
    assert "McNemar's test alone decides" in note
    notes = verdict_on(results(report({1}), report({2})), results(report({1}), noise=QUIET)).notes
    assert notes == [
        "the seed noise of here is estimated from its 2 seeds",
        "the seed noise of here is estimated from the record of recipe baseline "
        "(standard deviation 0.10 points over 20 seeds)",
    ]


def test_lucky_seeds_do_not_compensate_for_a_bad_model() -> None:
    found = judge(results(report(set(range(300))), report({1}), report({1})), None, GATE)
    assert not found.passed, "85 % in the working tree, 95 % on average"


def test_several_seeds_per_side_are_compared_by_their_own_spread() -> None:
    baseline = [report(set(range(100 + shift))) for shift in (0, 2, 4)]
    worse = [report(set(range(200 + shift))) for shift in (0, 2, 4)]
    noisy = [report(set(range(errors))) for errors in (20, 200, 110)]
    found = verdict_on(results(*worse), results(*baseline))
    assert outcomes(found)["accuracy"] == "FAIL"
    assert found.figures["runs"] == found.figures["baseline_runs"] == 3
    accuracy = next(check for check in found.checks if check.name == "accuracy")
    assert (accuracy.baseline, accuracy.candidate) == ("94.90 ± 0.10 %", "89.90 ± 0.10 %")
    assert outcomes(verdict_on(results(*noisy), results(*baseline)))["accuracy"] == "pass"
