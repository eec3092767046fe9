"""TensorFlow: fused operations, and a feed without tf.data's tuner."""

from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from pipeline.backends.base import Backend
from pipeline.backends.fused import fuse_layers, fuse_optimizer


class TensorFlow(Backend):
    """Keras's default backend."""

    missing_gpu = "CUDA's libraries are not installed. `make repro GPU=1` installs them"

    def use_device(self, choice: str) -> bool:
        """Let TensorFlow see no GPU, or let it take a GPU's memory bit by bit."""
        gpus = tf.config.list_physical_devices("GPU")
        if choice == "cpu":
            tf.config.set_visible_devices([], "GPU")
            return False
        for gpu in gpus:
            tf.config.experimental.set_memory_growth(gpu, True)
        return bool(gpus)

    def make_deterministic(self) -> None:
        """As TensorFlow offers it."""
        tf.config.experimental.enable_op_determinism()

    def fuse_layers(self, network: keras.Model) -> keras.Model:
        """A copy in which convolutions are normalised in one operation each."""
        return fuse_layers(network)

    def fuse_optimizer(self, optimizer: keras.optimizers.Optimizer) -> keras.optimizers.Optimizer:
        """One operation a variable, where TensorFlow has one."""
        return fuse_optimizer(optimizer)

    def batches(self, numbers: NDArray[np.int32], labels: NDArray[np.float32], size: int) -> Any:
        """A dataset without tf.data's tuner.

        That would wake 10, 20, 40 … 2,560 ms after one another, and at the end of an epoch `fit` waits for it to wake
        once more. There is nothing to tune: a batch is a few kilobytes.
        """
        options = tf.data.Options()
        options.autotune.enabled = False
        return tf.data.Dataset.from_tensor_slices((numbers, labels)).batch(size).with_options(options)


BACKEND = TensorFlow()
