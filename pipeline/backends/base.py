"""What a backend does for a training, as Keras does it with any of them."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, NamedTuple

import keras
import numpy as np
from numpy.typing import NDArray

from pipeline.config import Xla

VALIDATION_BATCH = 1000


class Pass(NamedTuple):
    """One pass over training images, and one over the validation images after it, by their numbers."""

    order: NDArray[np.int32]
    watched: NDArray[np.int32]  # the validation images: none if nothing is watched
    labels: NDArray[np.float32]  # of all images, one-hot
    batch_size: int


class Backend(ABC):
    """Keras's own ways, which a backend replaces where it knows a quicker one."""

    errors: ClassVar[tuple[type[Exception], ...]] = ()  # raised by the backend for operations that it cannot run
    missing_gpu: ClassVar[str]  # what to do about libraries that a GPU needs and that are not there
    joins_updates: ClassVar[bool] = True  # whether `fit` can make several updates in one call, to the same result

    @abstractmethod
    def use_device(self, choice: str) -> bool:
        """Compute on a CPU for the choice "cpu", otherwise on a GPU if there is one, and return whether it is a GPU.

        A GPU's memory is taken as it is needed, not all at once.
        """

    @abstractmethod
    def make_deterministic(self) -> None:
        """Have the same operations give the same bits every time, at some cost in speed."""

    @abstractmethod
    def use_xla(self, setting: Xla, networks: list[keras.Model], whole: bool) -> bool:
        """Whether to compile these networks with XLA, given `training.xla`: the `whole` update, or the networks alone.

        Raises PipelineError if the setting cannot be honoured.
        """

    def compile_network(self, network: keras.Model) -> Callable[[Any], Any]:
        """The network, compiled by XLA separately because XLA cannot compile the whole update."""
        return network

    def fuse_layers(self, network: keras.Model) -> keras.Model:
        """The same network, or a copy whose layers compute the same with fewer operations."""
        return network

    def fuse_optimizer(self, optimizer: keras.optimizers.Optimizer) -> keras.optimizers.Optimizer:
        """The same optimizer, or one with the same rule in fewer operations."""
        return optimizer

    def compile(self, learner: keras.Model, data: Pass) -> None:  # noqa: B027 (nothing is what Keras's own way needs)
        """Compile what an epoch of this size needs, where that does not happen by itself in the first one."""

    def learning_rate(self, optimizer: keras.optimizers.Optimizer) -> float:
        """What the next update will be made with."""
        return float(keras.ops.convert_to_numpy(optimizer.learning_rate))

    def batches(self, numbers: NDArray[np.int32], labels: NDArray[np.float32], size: int) -> Any:
        """Numbers and labels, `size` at a time and in this order, as `model.fit` takes them."""
        return ArrayBatches(numbers, labels, size)

    def fit_epoch(self, learner: keras.Model, data: Pass, bars: list[keras.callbacks.Callback]) -> dict[str, float]:
        """Update the learner once for each batch, then look at the validation images; the figures by their names."""
        order, watched, labels, size = data
        with unfinished(learner.optimizer):
            history = learner.fit(
                self.batches(order, labels[order], size),
                shuffle=False,
                verbose=0,
                validation_data=self.batches(watched, labels[watched], VALIDATION_BATCH) if len(watched) else None,
                callbacks=[keras.callbacks.TerminateOnNaN(), *bars],
            ).history
        return {name: float(values[-1]) for name, values in history.items()}


@contextmanager
def unfinished(optimizer: keras.optimizers.Optimizer) -> Iterator[None]:
    """Keep `fit` from overwriting the weights with their moving averages (`use_ema`) inside the block.

    Keras does so at the end of each `fit`; here that is only wanted after the last epoch.
    """
    vars(optimizer)["finalize_variable_values"] = lambda _: None
    try:
        yield
    finally:
        del vars(optimizer)["finalize_variable_values"]


class ArrayBatches(keras.utils.PyDataset):
    """Numbers and labels, batch by batch, for any backend."""

    def __init__(self, numbers: NDArray[np.int32], labels: NDArray[np.float32], size: int) -> None:
        super().__init__()
        self._numbers, self._labels, self._size = numbers, labels, size

    def __len__(self) -> int:
        return math.ceil(len(self._numbers) / self._size)

    def __getitem__(self, index: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        part = slice(index * self._size, (index + 1) * self._size)
        return self._numbers[part], self._labels[part]
