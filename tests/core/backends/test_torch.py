"""Training on PyTorch. Keras has one backend per process, so `make test-torch` runs the tests marked `torch`."""

import re
import sys
from typing import Any

import keras
import numpy as np
import pytest

from pipeline.core.backends import load_backend
from pipeline.core.backends.base import Backend
from pipeline.stages.train.augmentation import inverse_maps
from tests.conftest import Project
from tests.core.backends.test_jax import IMPORTED

RANDOM = np.random.default_rng(0)
TORCH = {"KERAS_BACKEND": "torch", "DEVICE": "cpu"}
AUGMENTED = [{"_target_": "pipeline.stages.train.augmentation.RandomAffine", "rotation": 10.0, "shift": 1.0}]


@pytest.mark.torch
@pytest.mark.parametrize(("height", "width"), [(28, 28), (5, 9), (1, 7)])
def test_resampling_matches_keras(height: int, width: int) -> None:
    """Rotate, scale, shear and shift images beyond their edges."""
    images = RANDOM.integers(0, 256, (50, height, width)).astype(np.float32)
    amounts = (RANDOM.uniform(-1, 1, 50).astype(np.float32) * most for most in (0.5, 0.3, 0.3, 0.2, 4, 4))
    angle, x, y, shear, shift_x, shift_y = (keras.ops.array(each) for each in amounts)
    maps = inverse_maps(angle, 1 + x, 1 + y, shear, shift_x, shift_y, height, width)
    backend = load_backend()
    assert type(backend).resample is not Backend.resample
    mine = backend.resample(keras.ops.array(images), maps)
    theirs = keras.ops.convert_to_numpy(Backend.resample(backend, keras.ops.array(images), maps))
    assert theirs.any()
    np.testing.assert_allclose(keras.ops.convert_to_numpy(mine), theirs, atol=2e-3)


@pytest.mark.torch
@pytest.mark.parametrize("other", ["tensorflow", "jax"])
def test_a_network_predicts_the_same_on_another_backend(trained: Project, other: str) -> None:
    """In both directions. No process imports a backend that it does not use."""
    losses: dict[str, Any] = {}
    for trainer, evaluator in (("torch", other), (other, "torch")):
        for name in (trainer, evaluator):
            settings = {"KERAS_BACKEND": name, "DEVICE": "cpu"}
            stages = ("train", "evaluate") if name == trainer else ("evaluate",)
            for stage in stages:
                output = trained.succeed(sys.executable, "-c", IMPORTED % stage, **settings)
                assert f"imported: {sorted(['keras', name])}" in output
            evaluation = trained.report("evaluation.json")
            assert evaluation["training"]["backend"] == trainer
            losses[name] = evaluation["test"]["loss"]
        assert evaluation["test"]["accuracy"] > 0.8
        assert losses[trainer] == pytest.approx(losses[evaluator], rel=1e-5)


@pytest.mark.torch
def test_training_with_augmentation_is_reproducible(trained: Project) -> None:
    trained.params(recipe="smoke", seed=2, training={"epochs": 2, "augmentation": AUGMENTED, "deterministic": True})
    trained.succeed("python", "-m", "pipeline.stages.compose")
    digests = []
    for _ in range(2):
        trained.succeed(sys.executable, "-m", "pipeline.stages.train", **TORCH)
        digests.append(trained.report("../models/run.json")["model_md5"])
    assert digests[0] == digests[1]


@pytest.mark.torch
@pytest.mark.parametrize(
    ("settings", "training", "message"),
    [
        ({"DEVICE": "gpu"}, {}, r"train: DEVICE=gpu, but torch sees no GPU: .*; or use DEVICE=cpu"),
        ({}, {"xla": True}, r"train: training.xla: true: Keras does not support XLA on PyTorch; set auto or false"),
    ],
)
def test_what_is_not_supported_is_one_line(
    trained: Project, settings: dict[str, str], training: dict[str, Any], message: str
) -> None:
    trained.params(recipe="smoke", training=training)
    trained.succeed("python", "-m", "pipeline.stages.compose")
    result = trained.run(
        sys.executable, "-m", "pipeline.stages.train", **(TORCH | {"CUDA_VISIBLE_DEVICES": ""} | settings)
    )
    assert result.returncode == 1
    assert re.fullmatch(message, result.stdout.strip().splitlines()[-1])
    assert "Traceback" not in result.stdout
