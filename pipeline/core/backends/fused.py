"""Layers and optimizers that use one TensorFlow operation where Keras uses a dozen, each another pass over memory."""

from typing import Any

import keras
from tensorflow import IndexedSlices, raw_ops

RANK = 4  # dimensions of a convolution's output


def fuse_optimizer(optimizer: keras.optimizers.Optimizer) -> keras.optimizers.Optimizer:
    """Return the optimizer, or one with the same update rule in one operation per variable, if TensorFlow has it."""
    fused: dict[type, type[keras.optimizers.Optimizer]]
    fused = {keras.optimizers.Adam: FusedAdam, keras.optimizers.RMSprop: FusedRMSprop}
    has_more = any(getattr(optimizer, name, False) for name in ("amsgrad", "centered", "momentum"))
    if not has_more and type(optimizer) in fused:
        # In place: from_config could not restore a custom learning rate schedule.
        optimizer.__class__ = fused[type(optimizer)]
    return optimizer


def fuse_layers(network: keras.Model) -> keras.Model:
    """Return the network, or one that shares its layers except for fused copies of batch normalization layers."""
    if not any(is_fusible(layer) for layer in network.layers):
        return network
    copy = keras.models.clone_model(network, clone_function=fuse_layer)
    copy.set_weights(network.get_weights())
    return copy


def fuse_layer(layer: keras.layers.Layer) -> keras.layers.Layer:
    """Return the layer, or its fused copy, built without `from_config`, which cannot restore custom objects."""
    if not is_fusible(layer):
        return layer
    parts = ("beta_regularizer", "gamma_regularizer", "beta_constraint", "gamma_constraint", "activity_regularizer")
    copied = ("axis", "momentum", "epsilon", "name", "trainable", *parts)
    return FusedBatchNormalization(dtype=layer.dtype_policy, **{name: getattr(layer, name) for name in copied})


def is_fusible(layer: keras.layers.Layer) -> bool:
    """Whether this is a plain batch normalization of a convolution's output (N, height, width, channels)."""
    return (
        type(layer) is keras.layers.BatchNormalization
        and layer.input_spec.ndim == RANK
        and layer.variable_dtype == "float32"
        and layer.axis in (-1, 3)
        and layer.scale
        and layer.center
        and not (layer.renorm or layer.synchronized)
    )


class FusedBatchNormalization(keras.layers.BatchNormalization):
    """Keras's layer, whose training step is one operation, without a conversion to float32 and back.

    The moving variance averages unbiased variances: n / (n - 1) times Keras's, for n values per channel in a batch.
    """

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        """Normalize the inputs by their own mean and variance while training, by the moving ones otherwise."""
        if mask is not None or not (training and self.trainable):
            return super().call(inputs, training=training, mask=mask)
        outputs, mean, variance, *_ = raw_ops.FusedBatchNormV3(
            x=inputs,
            scale=self.gamma,
            offset=self.beta,
            mean=self.moving_mean,
            variance=self.moving_variance,
            epsilon=self.epsilon,
            exponential_avg_factor=1 - self.momentum,
        )
        self.moving_mean.assign(mean)
        self.moving_variance.assign(variance)
        return outputs


class FusedAdam(keras.optimizers.Adam):
    """Keras's Adam: that of Kingma and Ba (arXiv:1412.6980), with the reordered computation of their section 2."""

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """Update the variable and its two moments."""
        if isinstance(gradient, IndexedSlices):  # sparse, as for embeddings
            super().update_step(gradient, variable, learning_rate)
            return
        index, step = self._get_variable_index(variable), keras.ops.cast(self.iterations + 1, variable.dtype)
        raw_ops.ResourceApplyAdam(
            var=handle(variable),
            m=handle(self._momentums[index]),
            v=handle(self._velocities[index]),
            beta1_power=keras.ops.power(self.beta_1, step),
            beta2_power=keras.ops.power(self.beta_2, step),
            lr=keras.ops.cast(learning_rate, variable.dtype),
            beta1=self.beta_1,
            beta2=self.beta_2,
            epsilon=self.epsilon,
            grad=keras.ops.cast(gradient, variable.dtype),
        )


class FusedRMSprop(keras.optimizers.RMSprop):
    """Keras's RMSprop without momentum. TensorFlow's operation needs a buffer for the increment that it subtracts."""

    def build(self, variables: Any) -> None:
        """Create the moments and the buffers."""
        if not self.built:
            super().build(variables)
            self._increments = self.add_optimizer_variables(variables, "increment")

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """Update the variable and the mean of its squared gradients."""
        if isinstance(gradient, IndexedSlices):
            super().update_step(gradient, variable, learning_rate)
            return
        index = self._get_variable_index(variable)
        raw_ops.ResourceApplyRMSProp(
            var=handle(variable),
            ms=handle(self._velocities[index]),
            mom=handle(self._increments[index]),
            lr=keras.ops.cast(learning_rate, variable.dtype),
            rho=self.rho,
            momentum=0.0,
            epsilon=self.epsilon,
            grad=keras.ops.cast(gradient, variable.dtype),
        )


def handle(variable: Any) -> Any:
    """Resource handle of a Keras or TensorFlow variable, as TensorFlow's operations take it."""
    return (variable.value if isinstance(variable, keras.Variable) else variable).handle
