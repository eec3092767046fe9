"""TensorFlow: fused operations, and input without tf.data's autotuner."""

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from pipeline.core.backends.base import Backend, Pass
from pipeline.core.backends.fused import fuse_layers, fuse_optimizer
from pipeline.core.backends.mirrored import Mirrored
from pipeline.core.config import Xla
from pipeline.core.errors import PipelineError


class TensorFlow(Backend):
    """Keras's default backend."""

    errors = (tf.errors.OpError,)
    _deterministic = False
    _mirrored: Mirrored | None = None
    divides_batches = True
    missing_gpu = "the CUDA libraries are not installed. Install them with `make repro GPU=1`"

    def use_device(self, choice: str, virtual: int = 1) -> bool:
        """Hide all GPUs from TensorFlow, or make it allocate GPU memory on demand."""
        gpus = tf.config.list_physical_devices("GPU")
        if choice == "cpu":
            tf.config.set_visible_devices([], "GPU")
            if virtual > 1:
                parts = [tf.config.LogicalDeviceConfiguration()] * virtual
                tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], parts)
            return False
        for gpu in gpus:
            tf.config.experimental.set_memory_growth(gpu, True)
        return bool(gpus)

    def available_devices(self) -> int:
        """Number of GPUs, or of virtual CPU devices."""
        return len(logical_devices())

    def use_devices(self, count: int) -> None:
        """Mirror all variables on `count` devices."""
        self.devices = count
        self._mirrored = Mirrored(logical_devices()[:count]) if count > 1 else None

    def on_all_devices(self) -> AbstractContextManager[Any]:
        """Create mirrored variables inside the block."""
        return self._mirrored.strategy.scope() if self._mirrored else super().on_all_devices()

    def make_deterministic(self) -> None:
        """Enable TensorFlow's op determinism."""
        tf.config.experimental.enable_op_determinism()
        self._deterministic = True

    def use_xla(self, setting: Xla, networks: list[keras.Model], whole: bool) -> bool:
        """For `auto`, whether a GPU is in use and every layer supports XLA. Keras would also count hidden GPUs."""
        layers = [layer for network in networks for layer in network._flatten_layers()]
        obstacles = [f"keras.layers.{type(layer).__name__}" for layer in layers if not layer.supports_jit]
        if not whole and any(layer.activity_regularizer for layer in layers):  # the loss cannot leave the function
            obstacles.append("activity regularizers together with this augmentation")
        if self._deterministic:
            obstacles.append("training.deterministic")
        if self._mirrored:
            obstacles.append("several devices")
        if setting is True and obstacles:
            raise PipelineError(
                f"training.xla: true: XLA on TensorFlow does not support {obstacles[0]}; set auto or false"
            )
        used = bool(tf.config.get_visible_devices("GPU")) and sys.platform != "darwin"  # Metal has no XLA
        return setting is True or (setting == "auto" and used and not obstacles)

    def compile_network(self, network: keras.Model) -> Callable[[Any], Any]:
        """Wrap the network in its own XLA function; augmentation stays outside."""
        return Compiled(network)

    def fuse_layers(self, network: keras.Model) -> keras.Model:
        """Return a copy in which each batch normalization of a convolution is one operation.

        On several devices, make each use the statistics of the whole batch.
        """
        return self._mirrored.synchronize(network) if self._mirrored else fuse_layers(network)

    def fuse_optimizer(self, optimizer: keras.optimizers.Optimizer) -> keras.optimizers.Optimizer:
        """Use one operation per variable, where TensorFlow has one."""
        return fuse_optimizer(self._mirrored.check(optimizer) if self._mirrored else optimizer)

    def loss_of_share(self, total: Any, mean: Any, count: Any) -> Any:
        """Weigh a device's share by its number of images."""
        if self._mirrored:
            return self._mirrored.loss_of_share(total, mean, count)
        return super().loss_of_share(total, mean, count)

    def gather_shares(self, values: Any) -> Any:
        """Concatenate the values of all devices."""
        return self._mirrored.gather_shares(values) if self._mirrored else values

    def seed(self, state: keras.Variable, seeds: np.random.SeedSequence) -> None:
        """Set the state on every device."""
        if self._mirrored:
            self._mirrored.seed(state, seeds)
        else:
            super().seed(state, seeds)

    def compile(self, learner: keras.Model, data: Pass) -> None:
        """Check that several devices can share the batches. The first epoch compiles."""
        if self._mirrored:
            self._mirrored.check_batches(data)

    def fit_epoch(self, learner: keras.Model, data: Pass, bars: list[keras.callbacks.Callback]) -> dict[str, float]:
        """Use Keras's `fit`, or a loop over the batches on several devices."""
        if self._mirrored:
            return self._mirrored.fit_epoch(learner, data, bars)
        return super().fit_epoch(learner, data, bars)

    def batches(self, numbers: NDArray[np.int32], labels: NDArray[np.float32], size: int) -> Any:
        """Dataset without tf.data's autotuner.

        The autotuner wakes up at intervals of 10, 20, 40 … 2,560 ms, and at the end of an epoch `fit` waits for its
        next wake-up. There is nothing to tune: a batch is a few kilobytes.
        """
        options = tf.data.Options()
        options.autotune.enabled = False
        return tf.data.Dataset.from_tensor_slices((numbers, labels)).batch(size).with_options(options)


def logical_devices() -> list[str]:
    """Names of the GPUs, or of the CPU's devices without GPUs."""
    found = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
    return [device.name for device in found]


class Compiled(keras.layers.Layer):
    """A network compiled with XLA inside a function that is not compiled with XLA."""

    def __init__(self, network: keras.Model) -> None:
        super().__init__(name=f"compiled_{network.name}")
        self.network = network
        self._function = tf.function(network, jit_compile=True)

    def call(self, images: Any, training: bool = False) -> Any:
        """Output of the network."""
        return self._function(images, training=training)


BACKEND = TensorFlow()
