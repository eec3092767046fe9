"""Interface of the backends. The defaults are Keras's implementations, which work on any backend."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, ClassVar, NamedTuple

import keras
import numpy as np
from numpy.typing import NDArray

from pipeline.core.cluster import COUNT, Cluster
from pipeline.core.config import Xla
from pipeline.core.errors import PipelineError

VALIDATION_BATCH = 1000


class Pass(NamedTuple):
    """Indices for one pass over training images, followed by one over the validation images."""

    order: NDArray[np.int32]
    validation: NDArray[np.int32]  # empty without a validation set
    labels: NDArray[np.float32]  # one-hot, of all images (N, classes)
    batch_size: int


class Backend(ABC):
    """Keras's implementations, which a backend overrides where it has a faster one."""

    errors: ClassVar[tuple[type[Exception], ...]] = ()  # raised for operations that the backend cannot run
    missing_gpu: ClassVar[str]  # error text: the missing GPU libraries, and the remedy
    divides_batches: ClassVar[bool] = False  # whether several devices can share a batch
    joins_updates: ClassVar[bool] = True  # whether `fit` can run several updates per call, with the same result

    devices: int = 1  # that share each batch

    @abstractmethod
    def use_device(self, choice: str, virtual: int = 1) -> bool:
        """Use the CPU if `choice` is "cpu", otherwise a GPU if one is available. Return whether it is a GPU.

        GPU memory is allocated on demand, not all at once. The CPU is divided into `virtual` devices.
        """

    def check_cluster(self, cluster: Cluster) -> None:
        """Raise PipelineError if this backend cannot train in so many processes."""
        name = keras.backend.backend()
        raise PipelineError(f"{COUNT}={cluster.processes}: {name} trains in one process; use BACKEND=jax")

    def connect(self, cluster: Cluster, port: int, own_address: str) -> None:
        """Connect to the other processes, before any device is used.

        Process 0 listens on this port. Each process can be reached at its own IP address.
        """
        raise NotImplementedError

    def disconnect(self) -> None:
        """End the connection to the other processes."""
        raise NotImplementedError

    def available_devices(self) -> int:
        """Number of devices of the kind in use that this backend can train on together."""
        return 1

    def use_devices(self, count: int) -> None:
        """Train on the first `count` devices of each process, each with its share of every batch."""
        self.devices = count

    def on_all_devices(self) -> AbstractContextManager[Any]:
        """Create variables on all devices inside the block. They stay equal."""
        return nullcontext()

    @abstractmethod
    def make_deterministic(self) -> None:
        """Make operations bit-for-bit reproducible, at some cost in speed."""

    @abstractmethod
    def use_xla(self, setting: Xla, networks: list[keras.Model], whole: bool) -> bool:
        """Whether to compile with XLA, given `training.xla`: the `whole` update, or only the networks.

        Raises PipelineError if the backend does not support the setting.
        """

    def compile_network(self, network: keras.Model) -> Callable[[Any], Any]:
        """Compile the network separately with XLA, for updates that XLA cannot compile as a whole."""
        return network

    def fuse_layers(self, network: keras.Model) -> keras.Model:
        """Return the network, or an equivalent copy whose layers need fewer operations."""
        return network

    def fuse_optimizer(self, optimizer: keras.optimizers.Optimizer) -> keras.optimizers.Optimizer:
        """Return the optimizer, or one with the same update rule in fewer operations."""
        return optimizer

    def compile(self, learner: keras.Model, data: Pass) -> None:  # noqa: B027 (Keras's `fit` needs nothing)
        """Compile for epochs of this size in advance. By default, the first epoch compiles."""

    def resample(self, images: Any, maps: Any) -> Any:
        """Transform images (N, height, width) by affine maps (N, 8), as `keras.ops.image.affine_transform` does.

        Interpolates linearly; pixels from beyond the edge are 0.
        """
        channels = keras.ops.expand_dims(images, -1)
        return keras.ops.squeeze(keras.ops.image.affine_transform(channels, maps, data_format="channels_last"), -1)

    def learning_rate(self, optimizer: keras.optimizers.Optimizer) -> float:
        """Learning rate of the next update."""
        return float(keras.ops.convert_to_numpy(optimizer.learning_rate))

    def batches(self, numbers: NDArray[np.int32], labels: NDArray[np.float32], size: int) -> Any:
        """Batches of `size` image indices and labels, in this order, for `model.fit`."""
        return ArrayBatches(numbers, labels, size)

    def loss_of_share(self, total: Any, mean: Any, count: Any) -> Any:
        """Loss of one device's share of a batch, `count` images: its value is `mean`, its gradient that of `total`."""
        return total - keras.ops.stop_gradient(total - mean)

    def gather_shares(self, values: Any) -> Any:
        """Concatenate what the devices computed for their shares of a batch."""
        return values

    def seed(self, state: keras.Variable, seeds: np.random.SeedSequence) -> None:
        """Set the state of a random number generator."""
        state.assign(seeds.generate_state(state.shape[0]).astype(state.dtype))

    def fit_epoch(self, learner: keras.Model, data: Pass, bars: list[keras.callbacks.Callback]) -> dict[str, float]:
        """Update the learner once per batch, evaluate the validation images, and return the metrics by name."""
        order, validation, labels, size = data
        with unfinished(learner.optimizer):
            history = learner.fit(
                self.batches(order, labels[order], size),
                shuffle=False,
                verbose=0,
                validation_data=self.batches(validation, labels[validation], VALIDATION_BATCH)
                if len(validation)
                else None,
                callbacks=[keras.callbacks.TerminateOnNaN(), *bars],
            ).history
        return {name: float(values[-1]) for name, values in history.items()}


@contextmanager
def shown(bars: list[keras.callbacks.Callback], data: Pass) -> Iterator[dict[str, float]]:
    """Show the begin and the end of an epoch in progress bars. The block fills in the metrics of the epoch."""
    figures: dict[str, float] = {}
    for bar in bars:
        bar.set_params({"steps": math.ceil(len(data.order) / data.batch_size)})
        bar.on_epoch_begin(0)
    yield figures
    for bar in bars:
        bar.on_epoch_end(0, figures)


@contextmanager
def unfinished(optimizer: keras.optimizers.Optimizer) -> Iterator[None]:
    """Keep `fit` from overwriting the weights with their moving averages (`use_ema`) inside the block.

    Keras does so at the end of each `fit`, which is one epoch here. Only the last epoch should end with it.
    """
    vars(optimizer)["finalize_variable_values"] = lambda _: None
    try:
        yield
    finally:
        del vars(optimizer)["finalize_variable_values"]


class ArrayBatches(keras.utils.PyDataset):
    """Batches of image indices and labels, for any backend."""

    def __init__(self, numbers: NDArray[np.int32], labels: NDArray[np.float32], size: int) -> None:
        super().__init__()
        self._numbers, self._labels, self._size = numbers, labels, size

    def __len__(self) -> int:
        return math.ceil(len(self._numbers) / self._size)

    def __getitem__(self, index: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        part = slice(index * self._size, (index + 1) * self._size)
        return self._numbers[part], self._labels[part]
