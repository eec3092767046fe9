from pathlib import Path

import numpy as np
import pytest

from pipeline.dataset import Split
from pipeline.errors import PipelineError
from pipeline.evaluate.evaluation import predict
from pipeline.train.network import build_network
from tests.conftest import configured


def test_answers_that_are_no_numbers_are_no_answers(tmp_path: Path) -> None:
    """Finite weights can make them, too."""
    network = build_network(configured(tmp_path).model, (8, 8), 10)
    network.set_weights([np.full_like(values, 1e30) for values in network.get_weights()])
    images = np.zeros((5, 8, 8), np.uint8)
    images[:3] = 255
    with pytest.raises(
        PipelineError, match=r"models/model\.keras predicts NaN or infinity for \d of 5 test images: lower"
    ):
        predict(network, Split(images, np.zeros(5, np.uint8)))
