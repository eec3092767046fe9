from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, optimizers

from pipeline.core.backends.fused import FusedAdam, FusedBatchNormalization, FusedRMSprop, fuse_layers, fuse_optimizer

RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.normal(3, 2, (16, 6, 6, 2)).astype(np.float32)
PLAIN = layers.BatchNormalization


def weights_after(optimizer: optimizers.Optimizer, steps: int) -> Any:
    variable = keras.Variable(np.linspace(-1, 1, 500, dtype=np.float32))
    optimizer.build([variable])
    gradients = np.random.default_rng(1).normal(0, 1, (steps, 500)).astype(np.float32)
    for gradient in gradients:
        optimizer.apply([keras.ops.convert_to_tensor(gradient)])
    return keras.ops.convert_to_numpy(variable)


@pytest.mark.parametrize(
    ("optimizer", "fused"),
    [
        (optimizers.Adam(0.01, beta_1=0.8, beta_2=0.95, epsilon=1e-3), FusedAdam),
        (optimizers.Adam(optimizers.schedules.CosineDecay(0.01, 20), clipnorm=3.0), FusedAdam),
        (optimizers.RMSprop(0.01, rho=0.7, epsilon=1e-3), FusedRMSprop),
        (optimizers.RMSprop(optimizers.schedules.CosineDecay(0.01, 20), weight_decay=0.1), FusedRMSprop),
    ],
)
def test_a_fused_optimizer_takes_the_same_steps(optimizer: optimizers.Optimizer, fused: type) -> None:
    quick = fuse_optimizer(type(optimizer).from_config(optimizer.get_config()))
    assert type(quick) is fused
    np.testing.assert_allclose(weights_after(quick, 20), weights_after(optimizer, 20), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "optimizer",
    [
        optimizers.Adam(amsgrad=True),
        optimizers.AdamW(),
        optimizers.RMSprop(momentum=0.9),
        optimizers.RMSprop(centered=True),
        optimizers.SGD(0.1),
    ],
)
def test_an_optimizer_with_another_rule_is_not_replaced(optimizer: optimizers.Optimizer) -> None:
    assert fuse_optimizer(optimizer) is optimizer


def network(normalization: keras.layers.Layer) -> keras.Model:
    keras.utils.set_random_seed(1)
    images = keras.Input(IMAGES.shape[1:])
    tensor = layers.Conv2D(4, 3, use_bias=False)(images)
    return keras.Model(images, layers.Conv2D(1, 4)(layers.ReLU()(normalization(tensor))))


def learn(model: keras.Model) -> tuple[Any, list[Any]]:
    """Outputs of a network for the images while training, and the gradients of their mean square."""
    with tf.GradientTape() as tape:
        outputs = model(IMAGES, training=True)
        loss = tf.reduce_mean(tf.square(outputs))
    return outputs, tape.gradient(loss, [variable.value for variable in model.trainable_variables])


def test_a_fused_normalization_matches_keras_in_training_and_inference() -> None:
    plain = network(PLAIN(momentum=0.7, epsilon=0.1, gamma_initializer="random_uniform"))
    fused = fuse_layers(plain)
    mine, theirs = fused.layers[2], plain.layers[2]
    assert (type(mine), type(theirs)) == (FusedBatchNormalization, PLAIN)
    assert [layer.name for layer in fused.layers[1:]] == [layer.name for layer in plain.layers[1:]]
    for _ in range(2):
        (one, ones), (other, others) = learn(fused), learn(plain)
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
        for got, expected in zip(ones, others, strict=True):
            np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-5)
    count = 16 * 4 * 4
    np.testing.assert_allclose(mine.moving_mean, theirs.moving_mean, rtol=1e-4)
    biased, left = np.asarray(theirs.moving_variance), 0.7**2  # the share left of the initial variance of 1
    unbiased = left + (biased - left) * count / (count - 1)
    np.testing.assert_allclose(mine.moving_variance, unbiased, rtol=1e-4)
    mine.moving_variance.assign(theirs.moving_variance)
    np.testing.assert_allclose(fused(IMAGES), plain(IMAGES), rtol=1e-4, atol=1e-5)


def test_a_frozen_normalization_does_not_change() -> None:
    fused = fuse_layers(network(PLAIN()))
    fused.layers[2].trainable = False
    np.testing.assert_allclose(fused(IMAGES, training=True), fused(IMAGES), rtol=1e-5)
    np.testing.assert_array_equal(fused.layers[2].moving_mean, np.zeros(4))


@pytest.mark.parametrize(
    "other",
    [
        layers.Dense(4),
        PLAIN(axis=1),
        PLAIN(scale=False),
        PLAIN(center=False),
        PLAIN(renorm=True),
        PLAIN(synchronized=True),
        PLAIN(dtype="bfloat16"),
        PLAIN(dtype="float64"),
    ],
)
def test_a_layer_without_a_fused_operation_is_not_replaced(other: keras.layers.Layer) -> None:
    model = network(other)
    assert fuse_layers(model) is model


def test_masked_values_do_not_count_in_the_mean() -> None:
    inputs = keras.Input((2, 2, 1))
    plain = keras.Model(inputs, PLAIN()(layers.Masking()(inputs)))
    fused = fuse_layers(plain)
    assert type(fused.layers[-1]) is FusedBatchNormalization
    some = np.array([0, 0, 0, 0, 1, 2, 3, 4], np.float32).reshape(2, 2, 2, 1)
    np.testing.assert_allclose(fused(some, training=True), plain(some, training=True), rtol=1e-5)


def test_a_normalization_of_dense_layers_is_not_replaced() -> None:
    inputs = keras.Input((4,))
    model = keras.Model(inputs, PLAIN()(inputs))
    assert fuse_layers(model) is model
