from pathlib import Path

import numpy as np
import pytest

from pipeline.core.config import configuration_digest
from pipeline.core.dataset import Split
from pipeline.core.errors import PipelineError
from pipeline.stages.evaluate.evaluation import known_noise, predict
from pipeline.stages.train.network import build_network
from tests.conftest import configured


def test_predictions_that_are_not_finite_raise(tmp_path: Path) -> None:
    """Finite weights can produce them as well."""
    network = build_network(configured(tmp_path).model, (8, 8), 10)
    network.set_weights([np.full_like(values, 1e30) for values in network.get_weights()])
    images = np.zeros((5, 8, 8), np.uint8)
    images[:3] = 255
    with pytest.raises(
        PipelineError, match=r"models/model\.keras predicts NaN or infinity for \d of 5 test images: lower"
    ):
        predict(network, Split(images, np.zeros(5, np.uint8)))


@pytest.mark.parametrize(("epochs", "images", "counts"), [(20, "a", True), (21, "a", False), (20, "b", False)])
def test_seed_noise_applies_only_to_the_settings_and_images_it_was_measured_with(
    tmp_path: Path, epochs: int, images: str, counts: bool
) -> None:
    config = configured(tmp_path)
    noise = config.gate.seed_noise["mnist"]
    composed = config.model_dump(by_alias=True, mode="json")
    noise = noise.model_copy(update={"configuration": configuration_digest(composed, "a")})
    gate = config.gate.model_copy(update={"seed_noise": {config.dataset.name: noise}})
    training = config.training.model_copy(update={"epochs": epochs})
    assert (known_noise(config.model_copy(update={"gate": gate, "training": training}), images) is not None) == counts
