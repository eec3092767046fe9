"""Documents of unusual networks and datasets."""

from pathlib import Path

import numpy as np
import pytest

from pipeline.core import paths
from pipeline.core.config import Config
from pipeline.core.records import DataStatistics, Duplicates, Provenance, SplitStatistics, TrainingRun
from pipeline.stages.evaluate.documents import Findings, model_card, report_page, run_markdown
from pipeline.stages.evaluate.drawing import draw_reliability
from pipeline.stages.evaluate.scoring import mistakes, reliability, score
from tests.conftest import configured

LABELS = np.arange(20, dtype=np.uint8) % 10
IMAGES = np.random.default_rng(1).integers(0, 256, (20, 8, 8), dtype=np.uint8)
NO_VALIDATION = {"validate_on": "none", "validation_fraction": 0.0}
RUN = TrainingRun(
    run_id="1",
    model_md5="2",
    device="cpu",
    backend="tensorflow",
    precision="float32",
    parameters=3,
    epochs=1,
    fit_seconds=1.0,
    peak_memory_mib=1,
    machine="a machine",
    versions="versions",
    environment="",
    provenance=Provenance(commit="", patch="", overrides=None),
)


def part(images: int) -> SplitStatistics:
    return SplitStatistics(images=images, mean=0.5, std=0.1, per_class=[images // 10] * 10)


def documents(config: Config, wrong: int, validation: int) -> tuple[str, str, str]:
    """Model card, report and run description of a network that misclassifies the first `wrong` images."""
    probabilities = np.eye(10, dtype=np.float32)[(LABELS + (np.arange(20) < wrong)) % 10]
    history = {"epoch": [1.0], "loss": [1.0], "accuracy": [0.5]}
    none = Duplicates(within_train=0, within_test=0, test_in_train=0)
    data = DataStatistics(
        dataset="digits", train=part(100), validation=part(validation), test=part(20), duplicates=none
    )
    figures = score(10 * probabilities, probabilities, LABELS)
    findings = Findings(config, RUN, history, data, figures, mistakes(probabilities, LABELS), IMAGES)
    curve = draw_reliability(reliability(probabilities, LABELS), figures.calibration_error)
    return model_card(findings), report_page(findings, curve, ["dvc repro"]), run_markdown(findings)


@pytest.mark.parametrize("wrong", [0, 1, 20])
@pytest.mark.parametrize("training", [NO_VALIDATION, {"validate_on": "test", "validation_fraction": 0.0}, {}])
def test_any_number_of_errors_and_validation_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: int, training: dict[str, object]
) -> None:
    config = configured(tmp_path, recipe="smoke", training=training)
    monkeypatch.chdir(tmp_path)
    paths.SAMPLES_PICTURE.parent.mkdir(parents=True)
    paths.SAMPLES_PICTURE.write_bytes(b"picture")
    card, page, text = documents(config, wrong, 0 if training else 10)
    for document in (card, page, text):
        assert f"{1 - wrong / 20:.2%}" in document
    assert ("None: every test image was classified correctly." in page) == (wrong == 0)
    notes = {
        "none": "No validation set was used",
        "test": "test images served as the validation set",
        "validation": "10 images were held out from training",
    }
    assert notes[config.training.validate_on] in page
    assert "has not been measured for this recipe" in card


@pytest.mark.parametrize(("epochs", "mentioned"), [(2, False), (3, True)])
def test_hard_example_mining_is_mentioned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, epochs: int, mentioned: bool
) -> None:
    training = {"epochs": epochs, "full_epochs": 2, "hard_example_fraction": 0.25}
    config = configured(tmp_path, recipe="smoke", training=training)
    monkeypatch.chdir(tmp_path)
    paths.SAMPLES_PICTURE.parent.mkdir(parents=True)
    paths.SAMPLES_PICTURE.write_bytes(b"picture")
    for document in documents(config, 1, 10)[:2]:
        note = (
            "From epoch 3 on (hard-example mining), the training curves cover only the 25% of images with the highest"
        )
        assert (f"{note} loss." in document) == mentioned


def test_a_dataset_without_metadata(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = configured(tmp_path, recipe="smoke")
    unknown = config.model_copy(update={"dataset": config.dataset.model_copy(update={"about": None})})
    monkeypatch.chdir(tmp_path)
    paths.SAMPLES_PICTURE.parent.mkdir(parents=True)
    paths.SAMPLES_PICTURE.write_bytes(b"picture")
    card, page, _ = documents(unknown, 1, 10)
    for document in (card, page):
        assert "CC BY" not in document
        assert "digits" in document
