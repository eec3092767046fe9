"""JAX: an epoch is one call of one compiled function, with all data on the device.

On a CPU, an update with convolutions is one call.
"""

import functools
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import jax
import keras
import numpy as np
from jax import numpy as jnp
from jax._src import distributed, xla_bridge
from jax._src.lib import _jax
from numpy.typing import NDArray

from pipeline.core import paths
from pipeline.core.backends.base import VALIDATION_BATCH, Backend, Pass, shown
from pipeline.core.cluster import Cluster
from pipeline.core.config import Xla
from pipeline.core.errors import PipelineError, first_line
from pipeline.core.files import text_digest
from pipeline.core.machine import describe_machine

CACHE_VARIABLE = "JAX_COMPILATION_CACHE_DIR"
HEARTBEAT = 30  # seconds without a message from process 0 after which JAX aborts a peer
EVERYWHERE = jax.sharding.PartitionSpec()  # of an array that every device holds
MOVES = 20  # steps of a progress bar per epoch

State = Any  # lists of arrays, as taken and returned by `train_step` and `test_step` of a Keras model on JAX
Step = Callable[[State, tuple[Any, Any]], tuple[dict[str, Any], State]]


class Jax(Backend):
    """XLA compiles everything; the compiled code is cached on disk between processes."""

    divides_batches = True
    missing_gpu = "JAX's CUDA libraries are not installed. Install them with `make repro BACKEND=jax GPU=1`"

    _all: keras.distribution.DataParallel | None = None

    def use_device(self, choice: str, virtual: int = 1) -> bool:
        """Select JAX's platform and its compilation cache."""
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
        if choice == "cpu":
            jax.config.update("jax_platforms", "cpu")
            if virtual > 1:
                jax.config.update("jax_num_cpu_devices", virtual)
        if CACHE_VARIABLE not in os.environ:  # one cache per machine: code for another processor may crash
            folder = paths.project_root() / paths.COMPILED / text_digest(describe_machine())
            jax.config.update("jax_compilation_cache_dir", str(folder))
            jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
            jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
        try:
            return bool(jax.default_backend() == "gpu")
        except (RuntimeError, AssertionError) as error:  # the platform is not available
            chosen = os.environ.get("JAX_PLATFORMS", "")
            raise PipelineError(
                f"JAX finds no device (JAX_PLATFORMS={chosen}): {first_line(error)}; `make doctor` shows the GPUs and "
                "their free memory; or use DEVICE=cpu"
            ) from None

    def check_cluster(self, cluster: Cluster) -> None:
        """Accept any number of processes."""

    def connect(self, cluster: Cluster, port: int, own_address: str) -> None:
        """Connect to JAX's coordinator, which runs in process 0."""
        jax.config.update("jax_enable_recoverability", True)  # or JAX aborts process 0 when a peer is lost
        jax.config.update("jax_enable_preemption_service", False)  # it would ignore SIGTERM
        jax.config.update("jax_check_proxy_envs", False)  # this pipeline excludes its own addresses
        jax.distributed.initialize(
            cluster.at(port),
            cluster.processes,
            cluster.process,
            cluster_detection_method="deactivate",
            heartbeat_timeout_seconds=HEARTBEAT,
        )
        connect_processors(own_address)

    def disconnect(self) -> None:
        """Disconnect from JAX's coordinator. Process 0 must be the last."""
        jax.distributed.shutdown()

    def available_devices(self) -> int:
        """Number of devices that each process has."""
        return min(len(jax.local_devices(process)) for process in range(jax.process_count()))

    def use_devices(self, count: int) -> None:
        """Copy all variables to the first `count` devices of each process."""
        used = [device for device in jax.devices() if device in jax.local_devices(device.process_index)[:count]]
        names = [f"{device.platform}:{device.id}" for device in used]
        self.devices = len(used)
        self._all = keras.distribution.DataParallel(devices=names, auto_shard_dataset=False) if names[1:] else None

    def on_all_devices(self) -> AbstractContextManager[Any]:
        """Create variables on all devices inside the block."""
        return self._all.scope() if self._all else super().on_all_devices()

    def divide(self, numbers: Any) -> Any:
        """Divide a batch of image indices among the devices, unless its size is not a multiple of their number."""
        if self._all is None or len(numbers) % self.devices:
            return numbers
        return jax.lax.with_sharding_constraint(numbers, self._all.get_data_layout(numbers.shape).backend_layout)

    def wait(self, state: State) -> State:
        """Wait for the computation, if it is on several devices.

        On processors, several unfinished ones can block each other: each occupies threads until all its devices meet.
        """
        return jax.block_until_ready(state) if self.devices > 1 else state

    def copy(self, values: Any) -> Any:
        """Copy an array to all devices."""
        everywhere = self._all and jax.sharding.NamedSharding(self._all.device_mesh.backend_mesh, EVERYWHERE)
        return jax.device_put(values, everywhere)

    def make_deterministic(self) -> None:
        """Set XLA's option for GPUs; results on a CPU are always reproducible."""
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_deterministic_ops=true".strip()

    def use_xla(self, setting: Xla, networks: list[keras.Model], whole: bool) -> bool:
        """Always True: JAX has no other compiler."""
        if setting is False:
            raise PipelineError("training.xla: false: JAX always uses XLA; set auto or true")
        return True

    def compile(self, learner: keras.Model, data: Pass) -> None:
        """Compile by running an epoch of zero batches, or a step from a copy of the state: neither changes anything."""
        run_epoch(learner, data, idle=True)
        self.learning_rate(learner.optimizer)

    def learning_rate(self, optimizer: keras.optimizers.Optimizer) -> float:
        """Compute the learning rate without recompiling a schedule's condition in every call, which takes 15 ms."""
        with jax.disable_jit():
            return super().learning_rate(optimizer)

    def fit_epoch(self, learner: keras.Model, data: Pass, bars: list[keras.callbacks.Callback]) -> dict[str, float]:
        """Run all updates in one call, and a smaller last batch in a second call; or each update in a call of its own.

        Progress bars advance between calls, so an epoch with bars takes more calls.
        """
        with shown(bars, data) as figures:
            figures.update(run_epoch(learner, data, bars))
        return figures


def connect_processors(address: str) -> None:
    """Make the processors of several machines communicate, this one at an IP address.

    JAX would use the address that belongs to the machine's name, which on Debian is 127.0.1.1.
    """
    client = distributed.global_state.client
    collectives = _jax.make_gloo_tcp_collectives(distributed_client=client, hostname=address)
    make = functools.partial(xla_bridge.make_cpu_client, collectives=collectives)
    xla_bridge.register_backend_factory("cpu", make, fail_quietly=False)


def run_epoch(
    learner: keras.Model, data: Pass, bars: Sequence[keras.callbacks.Callback] = (), idle: bool = False
) -> dict[str, float]:
    """Train on all batches and evaluate the validation images; `idle` only compiles the calls for this."""
    train, test = compile_passes(learner)
    labels, images = BACKEND.copy(data.labels), len(data.labels) - len(data.validation)
    batches = list(stacked(data.order, data.batch_size, images))
    figures = run_pass(learner, train, batches, labels, bars, idle)
    if len(data.validation):
        batches = list(stacked(data.validation, VALIDATION_BATCH, len(data.validation)))
        validation = run_pass(learner, test, batches, labels, idle=idle)
        figures |= {f"val_{name}": value for name, value in validation.items()}
    return figures


@functools.lru_cache(maxsize=1)
def compile_passes(learner: keras.Model) -> tuple[Callable[..., State], Callable[..., State]]:
    """Compiled functions that carry the learner's state over batches: one trains, the other evaluates.

    Both take the state, batches (B, size) of image indices, the first batch to use and the one after the last, and the
    labels of all images.
    """

    def test_step(state: State, batch: tuple[Any, Any]) -> tuple[dict[str, Any], State]:
        trainable, others, optimizer, metrics = state
        logs, (trainable, others, metrics) = learner.test_step((trainable, others, metrics), batch)
        return logs, (trainable, others, optimizer, metrics)

    compiled = one_by_one if jax.default_backend() == "cpu" and has_convolutions(learner) else in_loop
    return compiled(learner.train_step), compiled(test_step)


def has_convolutions(learner: keras.Model) -> bool:
    """Whether a layer is one of Keras's convolutions, which XLA runs on one core of a CPU when they are in a loop."""
    kinds = [kind for layer in learner._flatten_layers() for kind in type(layer).__mro__]
    return any(kind.__module__.startswith("keras.src.layers.convolutional.") for kind in kinds)


def one_by_one(step: Step) -> Callable[..., State]:
    """Call a compiled step once per batch. Without batches, compile it, by a step from a copy of the state."""

    @functools.partial(jax.jit, donate_argnums=0)
    def compiled(state: State, numbers: Any, labels: Any) -> State:
        numbers = BACKEND.divide(numbers)
        return step(state, (numbers, labels[numbers]))[1]

    def run(state: State, batches: Any, start: int, stop: int, labels: Any) -> State:
        if start == stop:
            compiled(jax.tree.map(jnp.copy, state), batches[0], labels)
        for numbers in batches[start:stop]:
            state = BACKEND.wait(compiled(state, numbers, labels))
        return state

    return run


def in_loop(step: Step) -> Callable[..., State]:
    """Compiled loop of one step per batch. The number of batches is an argument, so that epochs share the code."""

    @functools.partial(jax.jit, donate_argnums=0)
    def run(state: State, batches: Any, start: Any, stop: Any, labels: Any) -> State:
        def update(index: Any, state: State) -> State:
            numbers = BACKEND.divide(batches[index])
            return step(state, (numbers, labels[numbers]))[1]

        return jax.lax.fori_loop(start, stop, update, state)

    return run


def run_pass(
    learner: keras.Model,
    run: Callable[..., State],
    parts: list[tuple[NDArray[np.int32], int]],
    labels: Any,
    bars: Sequence[keras.callbacks.Callback] = (),
    idle: bool = False,
) -> dict[str, float]:
    """Run the learner over the first `count` batches of each part `(batches, count)` and return its metrics."""
    learner.reset_metrics()
    state, done = tuple([variable.value for variable in group] for group in variables(learner)), 0
    for batches, count in parts:
        stride = math.ceil(count / MOVES) if bars or jax.process_count() > 1 else count  # equal in all processes
        for start in range(0, count, stride):
            stop = start if idle else min(start + stride, count)
            state = BACKEND.wait(run(state, batches, start, stop, labels))
            for bar in bars:
                jax.block_until_ready(state)
                bar.on_train_batch_end(done + stop - 1)
        done += count
    for group, values in zip(variables(learner), state, strict=True):
        for variable, value in zip(group, values, strict=True):
            variable.assign(value)
    return {name: float(value) for name, value in learner.get_metrics_result().items()}


def variables(learner: keras.Model) -> tuple[list[keras.Variable], ...]:
    """Variables that a step may change, in the order of its state."""
    return (
        learner.trainable_variables,
        learner.non_trainable_variables,
        learner.optimizer.variables,
        learner.metrics_variables,
    )


def stacked(numbers: NDArray[np.int32], size: int, most: int) -> Iterator[tuple[NDArray[np.int32], int]]:
    """Yield the full batches as rows (B, size), padded to the B for `most` indices, and their number; then the rest."""
    count, rest = divmod(len(numbers), size)
    if count:
        rows = np.zeros((most // size, size), np.int32)
        rows[:count] = numbers[: count * size].reshape(count, size)
        yield rows, count
    if rest:
        yield numbers[-rest:][None], 1


BACKEND = Jax()
