"""XLA compilation, on a CPU and on a GPU that TensorFlow lists."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import tensorflow as tf

from pipeline.core.backends import load_backend
from pipeline.core.dataset import Split
from pipeline.core.errors import PipelineError
from pipeline.stages.compose.composition import options
from pipeline.stages.train.checkpoint import Checkpoint
from pipeline.stages.train.fitting import fit
from pipeline.stages.train.training import set_up
from tests.conftest import CONF, configured

RANDOM = np.random.default_rng(0)
LABELS = RANDOM.integers(0, 10, 96).astype(np.uint8)
IMAGES = RANDOM.integers(0, 256, (96, 28, 28)).astype(np.uint8)
TRAIN, VALIDATION = Split(IMAGES[:64], LABELS[:64]), Split(IMAGES[64:], LABELS[64:])
SHORT = {"epochs": 1, "batch_size": 32, "steps_per_execution": 1, "precision": "float32"}
SHORT |= {"validation_fraction": 0.3, "validate_on": "validation"}
QUICKLY_COMPILED = {"baseline", "champion", "quick"}
STILL = {"_target_": "pipeline.stages.train.augmentation.RandomAffine"}  # XLA does not support it; it changes no image
FLATTEN = {"_target_": "keras.layers.Flatten"}
NETWORK = {"name": "convnet", "convolutions": [4, 4], "kernels": [3, 3], "units": 8, "dropout": 0.0, "members": 2}


@pytest.fixture
def _gpu() -> Iterator[None]:
    """Make TensorFlow list a GPU, even if the machine has none."""
    gpus = [tf.config.PhysicalDevice("/physical_device:GPU:0", "GPU")]
    with (
        mock.patch.object(tf.config, "list_physical_devices", return_value=gpus),
        mock.patch.object(tf.config, "get_visible_devices", return_value=gpus),
    ):
        yield


def train(tmp_path: Path, **params: Any) -> tuple[Any, list[np.ndarray]]:
    """Train, and return the learner and the weights of the network."""
    config = configured(tmp_path, **params)
    network, learner = set_up(config, TRAIN, VALIDATION, "cpu")
    (epoch,) = fit(learner, TRAIN, VALIDATION, config, Checkpoint(tmp_path / "c"), lambda _: None)
    assert np.isfinite([epoch["loss"], epoch["val_loss"]]).all()
    learner.give_weights_to(network)
    return learner, network.get_weights()


def compiled(learner: Any) -> bool:
    """Whether XLA compiles the network."""
    names = {type(layer).__name__ for layer in learner.layers}
    return bool(learner.jit_compile) or "Compiled" in names


@pytest.mark.usefixtures("_gpu")
@pytest.mark.parametrize(
    "recipe",
    [
        name if name in QUICKLY_COMPILED else pytest.param(name, marks=pytest.mark.slow)
        for name in options(CONF)["recipe"]
    ],
)
def test_every_recipe_trains_with_xla_on_a_gpu(tmp_path: Path, recipe: str) -> None:
    learner, _ = train(tmp_path, recipe=recipe, training=SHORT)
    assert compiled(learner)


@pytest.mark.parametrize("setting", ["auto", False])
def test_xla_is_off_without_a_gpu(tmp_path: Path, setting: Any) -> None:
    learner, _ = train(tmp_path, recipe="fast", training=SHORT | {"xla": setting})
    assert not compiled(learner)


def test_xla_is_off_for_a_hidden_gpu(tmp_path: Path) -> None:
    gpus = [tf.config.PhysicalDevice("/physical_device:GPU:0", "GPU")]
    with mock.patch.object(tf.config, "list_physical_devices", return_value=gpus):  # DEVICE=cpu hides it
        learner, _ = train(tmp_path, recipe="fast", training=SHORT)
    assert not compiled(learner)


def test_augmentation_outside_xla_gives_the_same_weights(tmp_path: Path) -> None:
    (one, expected), (other, learned) = (
        train(tmp_path, model=NETWORK, training=SHORT | {"augmentation": [STILL], "xla": xla}) for xla in (False, True)
    )
    assert (compiled(one), compiled(other), bool(other.jit_compile)) == (False, True, False)
    for mine, theirs in zip(learned, expected, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("params", "obstacle"),
    [
        (
            {"model": {"name": "mlp", "layers": [{"_target_": "keras.layers.RandomRotation", "factor": 0.1}, FLATTEN]}},
            "keras.layers.RandomRotation",
        ),
        (
            {
                "model": {"name": "mlp", "layers": [FLATTEN, {"_target_": "keras.layers.ActivityRegularization"}]},
                "training": {"augmentation": [STILL]},
            },
            "activity regularizers together with this augmentation",
        ),
        ({"training": {"deterministic": True}}, "setting"),
    ],
)
def test_an_obstacle_to_xla_is_named(tmp_path: Path, params: dict[str, Any], obstacle: str) -> None:
    name = "training.deterministic" if obstacle == "setting" else obstacle
    message = f"training.xla: true: XLA on TensorFlow does not support {name}; set auto or false"
    training = SHORT | {"xla": True} | params.pop("training", {})
    with (
        mock.patch.object(load_backend(), "_deterministic", obstacle == "setting"),
        pytest.raises(PipelineError, match=re.escape(message)),
    ):
        train(tmp_path, training=training, **params)
