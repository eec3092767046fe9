"""Keras's layers as augmentation: a layer changes each image independently, or it is rejected by name."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.core.dataset import Split
from pipeline.core.errors import PipelineError
from pipeline.stages.train.augmentation import (
    ALLOWED,
    REFUSED,
    Augmentation,
    RandomAffine,
    RandomShift,
    check_augmentation,
)
from pipeline.stages.train.checkpoint import Checkpoint
from pipeline.stages.train.fitting import fit
from pipeline.stages.train.network import build_augmentation, members_of
from pipeline.stages.train.training import set_up
from tests.conftest import configured

SIDE = 12
RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.integers(0, 256, (32, SIDE, SIDE)).astype(np.uint8)
ARGUMENTS: dict[str, dict[str, Any]] = {
    "RandomBrightness": {"factor": 0.3},
    "RandomContrast": {"factor": 0.5},
    "RandomElasticTransform": {"factor": 1.0, "scale": 0.8},
    "RandomErasing": {"factor": 1.0},
    "RandomFlip": {"mode": "vertical"},
    "RandomGaussianBlur": {"factor": 1.0, "kernel_size": 5, "sigma": [0.9, 1.0]},
    "RandomInvert": {"factor": 0.5},
    "RandomPosterization": {"factor": 2},
    "RandomRotation": {"factor": 0.3},
    "RandomSharpness": {"factor": 0.9},
    "RandomShear": {"x_factor": 0.5, "y_factor": 0.5},
    "RandomTranslation": {"height_factor": 0.3, "width_factor": 0.3},
    "RandomZoom": {"height_factor": 0.4},
    "GaussianNoise": {"stddev": 0.2},
    **{name: {"rate": 0.3} for name in ("AlphaDropout", "Dropout", "GaussianDropout", "SpatialDropout2D")},
}
KERAS = {name for name in dir(keras.layers) if name.startswith("Random")}


def row(tmp_path: Path, *specs: dict[str, Any]) -> list[keras.Layer]:
    config = configured(tmp_path, training={"augmentation": list(specs)})
    return build_augmentation(config.training, (SIDE, SIDE))


def spec(name: str) -> dict[str, Any]:
    return {"_target_": f"keras.layers.{name}"} | ARGUMENTS.get(name, {})


def changed(layers: list[keras.Layer]) -> Callable[[NDArray[np.uint8]], NDArray[Any]]:
    """Return a function that augments training images, with the same random numbers in every call."""
    augmentation = Augmentation(layers)
    function: Any = augmentation
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        function = tf.function(augmentation)  # some Keras layers behave differently without a graph

    def change(images: NDArray[np.uint8]) -> NDArray[Any]:
        for state in augmentation.non_trainable_variables:
            state.assign([1, 2])
        return np.asarray(keras.ops.convert_to_numpy(function(images, training=True)))

    return change


@pytest.mark.parametrize("name", sorted({*KERAS, *ARGUMENTS} - {*REFUSED}))
def test_images_are_augmented_independently(tmp_path: Path, name: str) -> None:
    change = changed(row(tmp_path, spec(name)))
    outcome = change(IMAGES)
    assert outcome.shape == IMAGES.shape
    assert np.isfinite(outcome).all()
    assert (outcome != IMAGES).any()
    for kept in (0, 13):
        others = 255 - np.roll(IMAGES, 5, axis=0)
        others[kept] = IMAGES[kept]
        np.testing.assert_allclose(change(others)[kept], outcome[kept], atol=1e-3)


def test_a_flip_is_per_image_and_not_per_batch(tmp_path: Path) -> None:
    outcome = changed(row(tmp_path, spec("RandomFlip")))(IMAGES)
    flipped = [bool((after == before[::-1]).all()) for before, after in zip(IMAGES, outcome, strict=True)]
    same = [bool((after == before).all()) for before, after in zip(IMAGES, outcome, strict=True)]
    assert any(flipped)
    assert any(same)
    assert all(one != other for one, other in zip(flipped, same, strict=True))


def test_every_random_layer_of_keras_is_known() -> None:
    assert {*KERAS, *ARGUMENTS} <= {*ALLOWED, *REFUSED}
    assert not {*ALLOWED} & {*REFUSED}


@pytest.mark.parametrize("name", sorted({*REFUSED} - {"Sequential", "Functional", "Pipeline"}))
def test_an_unsupported_layer_is_rejected_by_name(tmp_path: Path, name: str) -> None:
    message = f"training.augmentation.1: {name} cannot be used: {REFUSED[name]}"
    arguments = {"factor": 0.5} if name.startswith("Random") and name not in ("RandomColorJitter", "RandomCrop") else {}
    arguments = {"height": SIDE, "width": SIDE} if name == "RandomCrop" else arguments
    with pytest.raises(PipelineError, match=re.escape(message)):
        row(tmp_path, spec("RandomFlip"), {"_target_": f"keras.layers.{name}", **arguments})


@pytest.mark.parametrize(
    ("outer", "message"),
    [
        ({"_target_": "keras.Sequential"}, "Sequential cannot be used: list its layers one by one"),
        ({"_target_": "keras.layers.Pipeline"}, "Pipeline cannot be used: list its layers one by one"),
    ],
)
def test_a_container_of_layers_is_rejected(tmp_path: Path, outer: dict[str, str], message: str) -> None:
    inside = {"layers": [spec("RandomFlip"), {"_target_": "keras.layers.MixUp"}]}
    with pytest.raises(PipelineError, match=rf"training\.augmentation\.0: {message}"):
        row(tmp_path, outer | inside)


@pytest.mark.parametrize(
    "layer",
    [
        {"_target_": "keras.layers.TimeDistributed", "layer": spec("GaussianNoise")},
        {"_target_": "keras.layers.Softmax", "axis": 0},
        {"_target_": "keras.layers.UnitNormalization", "axis": 0},
    ],
)
def test_a_layer_that_is_not_augmentation_is_rejected(tmp_path: Path, layer: dict[str, Any]) -> None:
    with pytest.raises(PipelineError, match=r"cannot be used: it is not one of Keras's augmentation layers"):
        row(tmp_path, layer)


@pytest.mark.parametrize(
    ("specs", "message"),
    [
        (
            [{"_target_": "keras.layers.Conv2D", "filters": 1, "kernel_size": 1}],
            "0: Conv2D cannot be used: it is not one of Keras's",
        ),
        (
            [{"_target_": "keras.layers.CenterCrop", "height": 9, "width": 8}],
            "turns images of 12×12 into 9×8, but the network expects 12×12",
        ),
        ([{"_target_": "keras.layers.Flatten"}], "0: Flatten cannot be used: it is not one of Keras's"),
        (
            [{"_target_": "keras.layers.Cropping2D", "cropping": 9}],
            "0: Cropping2D does not accept grayscale images of 12×12",
        ),
    ],
)
def test_layers_that_do_not_return_images_are_rejected(tmp_path: Path, specs: list[Any], message: str) -> None:
    with pytest.raises(PipelineError, match=re.escape(message)):
        row(tmp_path, *specs)


def test_a_custom_layer_with_weights_is_rejected() -> None:
    class Own(keras.layers.Layer):  # type: ignore[misc]
        def build(self, shape: Any) -> None:
            self.add_weight(shape=shape[1:], name="mask")

        def call(self, images: Any) -> Any:
            return images

    with pytest.raises(PipelineError, match=r"training\.augmentation\.0: Own has weights: move it to model"):
        check_augmentation([Own()], (SIDE, SIDE))


def test_the_size_may_change_between_layers(tmp_path: Path) -> None:
    wider = {"_target_": "keras.layers.ZeroPadding2D", "padding": 2}
    smaller = {"_target_": "keras.layers.CenterCrop", "height": SIDE, "width": SIDE}
    change = changed(row(tmp_path, wider, spec("RandomTranslation"), smaller))
    outcome = change(IMAGES)
    assert outcome.shape == IMAGES.shape
    assert (outcome != IMAGES).any()


def test_custom_and_keras_layers_can_be_combined() -> None:
    noise = keras.layers.GaussianNoise(0.2)
    kept: list[Any] = []

    class Look(keras.layers.Layer):  # type: ignore[misc]
        def call(self, images: Any) -> Any:
            kept.append(images)
            return images

    last_ours = changed([noise, Look(), RandomShift(1)])(IMAGES)
    assert last_ours.dtype == np.uint8
    assert {tuple(images.shape[1:]) for images in kept} == {(SIDE, SIDE)}
    assert {keras.backend.standardize_dtype(images.dtype) for images in kept} == {"uint8"}
    last_keras_s = changed([RandomAffine(rotation=10), noise])(IMAGES)
    assert last_keras_s.dtype == np.float32
    assert last_keras_s.min() < 0, "noise reaches the network without clipping"


def test_only_training_images_are_changed() -> None:
    augmentation = Augmentation([keras.layers.ZeroPadding2D(2), keras.layers.CenterCrop(SIDE, SIDE)])
    np.testing.assert_array_equal(augmentation(IMAGES), IMAGES)
    dim = Augmentation([keras.layers.Rescaling(0.5)])
    np.testing.assert_array_equal(dim(IMAGES), IMAGES)
    np.testing.assert_array_equal(dim(IMAGES, training=True), IMAGES / 2)


@pytest.mark.parametrize("precision", ["float32", "mixed_bfloat16"])
def test_the_network_gets_the_output_of_the_last_layer(tmp_path: Path, precision: str) -> None:
    """Before the only update, the loss is that of the darkened images, including negative values."""
    labels = RANDOM.integers(0, 10, 32).astype(np.uint8)
    train, nothing = Split(IMAGES, labels), Split(IMAGES[:0], labels[:0])
    darker = {"_target_": "keras.layers.Rescaling", "scale": 1.0, "offset": -300.0}
    training = {"augmentation": [darker], "epochs": 1, "batch_size": 32, "precision": precision}
    training |= {"validate_on": "none", "validation_fraction": 0.0}
    config = configured(tmp_path, model={"name": "mlp", "dropout": 0.0}, training=training)
    try:
        network, learner = set_up(config, train, nothing, "cpu")
        (member,) = members_of(network)
        body = keras.Model(member.layers[1].output, member.output)  # after the scaling
        logits = body(((IMAGES.astype(np.float32)) - 300) / 255)
        expected = keras.losses.SparseCategoricalCrossentropy(from_logits=True)(labels, logits)
        (epoch,) = fit(learner, train, nothing, config, Checkpoint(tmp_path / "c"), lambda _: None)
    finally:
        keras.config.set_dtype_policy("float32")
    assert epoch["loss"] == pytest.approx(float(expected), rel=1e-4 if precision == "float32" else 0.02)
