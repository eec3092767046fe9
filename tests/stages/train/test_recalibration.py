from pathlib import Path

import keras
import numpy as np
import pytest

from pipeline.stages.train.network import build_network, members_of
from pipeline.stages.train.recalibration import recalibrate
from tests.conftest import configured

IMAGES = np.random.default_rng(0).integers(0, 256, (300, 8, 8)).astype(np.uint8)


@pytest.fixture(params=[1, 2])
def network(tmp_path: Path, request: pytest.FixtureRequest) -> keras.Model:
    """An untrained network, whose running averages are far from the statistics of its layers' inputs."""
    keras.utils.set_random_seed(1)
    model = {"name": "convnet", "convolutions": [16, 16], "kernels": [3, 3], "units": 32, "members": request.param}
    return build_network(configured(tmp_path, model=model).model, (8, 8), 10)


def normalized(network: keras.Model) -> list[np.ndarray]:
    """Outputs of each batch normalization, channels last."""
    return [
        keras.Model(member.input, layer.output).predict(IMAGES, verbose=0)
        for member in members_of(network)
        for layer in member.layers
        if isinstance(layer, keras.layers.BatchNormalization)
    ]


def test_every_layer_gives_mean_0_and_variance_1_on_images_without_augmentation(network: keras.Model) -> None:
    recalibrate(network, IMAGES)
    outputs = normalized(network)
    assert len(outputs) == 3 * len(members_of(network))
    for output in outputs:
        axes = tuple(range(output.ndim - 1))
        varied = output.var(axes) > 0.5  # epsilon dominates in channels that hardly vary
        assert varied.any()
        np.testing.assert_allclose(output.mean(axes), 0, atol=1e-3)
        assert (output.var(axes) <= 1.001).all()
    for member in members_of(network):  # compare with moments computed by NumPy
        for layer in member.layers:
            if isinstance(layer, keras.layers.BatchNormalization):
                values = keras.Model(member.input, layer.input).predict(IMAGES, verbose=0).astype(np.float64)
                axes = tuple(range(values.ndim - 1))
                np.testing.assert_allclose(layer.moving_mean, values.mean(axes), rtol=1e-4, atol=1e-6)
                np.testing.assert_allclose(layer.moving_variance, values.var(axes), rtol=1e-3, atol=1e-6)


def test_learned_weights_do_not_change(network: keras.Model) -> None:
    before = [weight.numpy() for weight in network.trainable_weights]
    predicted = network.predict(IMAGES, verbose=0)
    recalibrate(network, IMAGES)
    for weight, value in zip(network.trainable_weights, before, strict=True):
        np.testing.assert_array_equal(weight.numpy(), value)
    assert np.abs(network.predict(IMAGES, verbose=0) - predicted).max() > 0.01


def test_a_network_without_batch_normalization_does_not_change(tmp_path: Path) -> None:
    network = build_network(configured(tmp_path).model, (8, 8), 10)
    before = network.get_weights()
    recalibrate(network, IMAGES)
    for mine, theirs in zip(network.get_weights(), before, strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_images_sorted_by_class_work_as_well(network: keras.Model) -> None:
    dark, light = np.zeros((9_000, 8, 8), np.uint8), np.full((9_000, 8, 8), 255, np.uint8)
    recalibrate(network, np.concatenate([dark, light]))
    (first, *_) = (layer for layer in members_of(network)[0].layers if isinstance(layer, keras.layers.Conv2D))
    reached = keras.Model(members_of(network)[0].input, first.output).predict(np.stack([dark[0], light[0]]), verbose=0)
    (normalization, *_) = (
        layer for layer in members_of(network)[0].layers if isinstance(layer, keras.layers.BatchNormalization)
    )
    expected = reached.mean((0, 1, 2))
    share = np.abs(normalization.moving_mean.numpy() - expected).max() / np.abs(expected).max()
    assert share < 0.15, "about half of the images are light"
