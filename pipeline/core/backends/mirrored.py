"""TensorFlow on several devices: each holds a copy of all variables, and trains on its share of every batch."""

import functools
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from pipeline.core.backends.base import VALIDATION_BATCH, Pass, shown
from pipeline.core.backends.fused import is_fusible
from pipeline.core.errors import PipelineError

# Options that Keras applies to each device's gradient, or that fail inside the loop over devices.
LOCAL = ("clipnorm", "clipvalue", "global_clipnorm", "gradient_accumulation_steps", "ema_overwrite_frequency")
Step = Callable[[Any, Any], None]


class Mirrored:
    """Training with `tf.distribute.MirroredStrategy`, whose results do not depend on the number of devices.

    Keras's `fit` does not support several steps per execution with it (keras-team/keras#19246), and gives a device no
    images if the last batch is small, which breaks the collective operations. So batches are divided here.
    """

    def __init__(self, devices: list[str]) -> None:
        self.strategy = strategy_of(*devices)
        self.devices = len(devices)

    def synchronize(self, network: keras.Model) -> keras.Model:
        """Make every batch normalization of a network use the statistics of all devices."""
        for layer in network._flatten_layers():
            if isinstance(layer, keras.layers.BatchNormalization):
                if is_fusible(layer):
                    layer.__class__ = Unbiased
                layer.synchronized = True
        return network

    def check(self, optimizer: keras.optimizers.Optimizer) -> keras.optimizers.Optimizer:
        """Return the optimizer. Raises PipelineError if one of its options needs the gradient of the whole batch."""
        for name in LOCAL:
            if getattr(optimizer, name, None) is not None:
                raise PipelineError(
                    f"optimizer.{name}: Keras does not support it on several devices with TensorFlow: remove it, use "
                    "BACKEND=jax, or DEVICES=1"
                )
        return optimizer

    def loss_of_share(self, total: Any, mean: Any, count: Any) -> Any:
        """Weigh the gradient by the share's part of the batch: the optimizer sums over devices.

        Keras multiplies the value by the number of devices before it averages over images.
        """
        context = tf.distribute.get_replica_context()
        count = tf.cast(count, total.dtype)
        weighted = total * count / context.all_reduce(tf.distribute.ReduceOp.SUM, count)
        return weighted - tf.stop_gradient(weighted - mean / self.devices)

    def gather_shares(self, values: Any) -> Any:
        """Concatenate the values of all devices."""
        return tf.distribute.get_replica_context().all_gather(values, axis=0)

    def seed(self, state: keras.Variable, seeds: np.random.SeedSequence) -> None:
        """Give every device its own random numbers."""
        parts = self.strategy.experimental_local_results(state.value)
        for part, child in zip(parts, [seeds, *seeds.spawn(len(parts) - 1)], strict=True):
            part.assign(child.generate_state(state.shape[0]).astype(state.dtype))

    def check_batches(self, data: Pass) -> None:
        """Raise PipelineError if a batch has fewer images than there are devices."""
        for indices, size in ((data.order, data.batch_size), (data.validation, self.validation_batch)):
            rest = len(indices) % size
            if 0 < rest < self.devices:
                raise PipelineError(
                    f"the last batch of {len(indices):,} images has {rest}, fewer than the {self.devices} devices, "
                    "which TensorFlow does not support: change training.batch_size or training.validation_fraction, "
                    "use BACKEND=jax, or DEVICES=1"
                )

    @property
    def validation_batch(self) -> int:
        """Number of validation images in a batch, a multiple of the number of devices."""
        return max(VALIDATION_BATCH // self.devices, 1) * self.devices

    def fit_epoch(self, learner: keras.Model, data: Pass, bars: list[keras.callbacks.Callback]) -> dict[str, float]:
        """Update the learner once per batch, evaluate the validation images, and return the metrics by name."""
        self.check_batches(data)
        train, test = compile_steps(learner)
        labels = tf.constant(data.labels)
        with shown(bars, data) as figures:
            figures.update(self.run(learner, train, data.order, labels, data.batch_size, bars))
            if len(data.validation):
                validation = self.run(learner, test, data.validation, labels, self.validation_batch, [])
                figures.update({f"val_{name}": value for name, value in validation.items()})
        return figures

    def run(
        self,
        learner: keras.Model,
        step: Step,
        indices: NDArray[np.int32],
        labels: Any,
        size: int,
        bars: list[keras.callbacks.Callback],
    ) -> dict[str, float]:
        """Call a step with every batch of `size` images, and return the metrics."""
        learner.reset_metrics()
        for number, start in enumerate(range(0, len(indices), size)):
            step(tf.constant(indices[start : start + size]), labels)
            for bar in bars:
                bar.on_train_batch_end(number)
        return {name: float(value) for name, value in learner.get_metrics_result().items()}


@functools.cache
def strategy_of(*devices: str) -> tf.distribute.MirroredStrategy:
    """The strategy for these devices: the collective operations of a second one would get the numbers of the first."""
    return tf.distribute.MirroredStrategy(devices)


@functools.lru_cache(maxsize=1)
def compile_steps(learner: keras.Model) -> tuple[Step, Step]:
    """Compiled functions of the image indices of a batch and the labels of all images: one trains, one evaluates.

    The size of a batch is no constant in them, since devices with different constants would compile different graphs.
    """
    strategy = learner.distribute_strategy
    signature = tf.TensorSpec([None], tf.int32), tf.TensorSpec([None, None], tf.float32)

    def compiled(step: Callable[[tuple[Any, Any]], Any]) -> Step:
        def on_device(batch: Any, labels: Any) -> None:
            numbers = share_of(batch)
            step((numbers, tf.gather(labels, numbers)))

        def run(batch: Any, labels: Any) -> None:
            strategy.run(on_device, args=(batch, labels))

        function: Step = tf.function(run, input_signature=signature)
        return function

    return compiled(learner.train_step), compiled(learner.test_step)


def share_of(batch: Any) -> Any:
    """This device's share of a batch. The sizes of shares differ by one at most."""
    context = tf.distribute.get_replica_context()
    device, devices = context.replica_id_in_sync_group, context.num_replicas_in_sync
    size, larger = tf.size(batch) // devices, tf.size(batch) % devices
    start = device * size + tf.minimum(device, larger)
    return batch[start : start + size + tf.cast(device < larger, tf.int32)]


class Unbiased(keras.layers.BatchNormalization):
    """Batch normalization of a convolution's output, which averages unbiased variances, as on one device."""

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        """Normalize the inputs, and correct the moving variance: its average adds n / (n - 1) times Keras's."""
        if mask is not None or not (training and self.trainable):
            return super().call(inputs, training=training, mask=mask)
        before = tf.identity(self.moving_variance.value)
        outputs = super().call(inputs, training=training)
        local = tf.cast(tf.size(inputs) // inputs.shape[-1], before.dtype)
        count = tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, local)
        added = self.moving_variance.value - self.momentum * before
        self.moving_variance.assign(self.momentum * before + added * count / (count - 1))
        return outputs
