"""JAX: an epoch is one call of one compiled function, with everything that it needs on the device."""

import functools
import math
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import keras
import numpy as np
from jax import numpy as jnp
from numpy.typing import NDArray

from pipeline import paths
from pipeline.backends.base import VALIDATION_BATCH, Backend, Pass
from pipeline.config import Xla
from pipeline.errors import PipelineError, first_line
from pipeline.files import text_digest
from pipeline.machine import describe_machine

CACHE_VARIABLE = "JAX_COMPILATION_CACHE_DIR"
MOVES = 20  # of a progress bar in an epoch

State = Any  # lists of arrays: as `train_step` and `test_step` of a Keras model on JAX take and return them
Step = Callable[[State, tuple[Any, Any]], tuple[dict[str, Any], State]]


class Jax(Backend):
    """XLA compiles everything; what it compiled is kept between processes."""

    missing_gpu = "jax's CUDA libraries are not installed: `pip install jax[cuda13]`"

    def use_device(self, choice: str) -> bool:
        """Choose JAX's platform, and where it keeps what it compiled."""
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
        if choice == "cpu":
            jax.config.update("jax_platforms", "cpu")
        if CACHE_VARIABLE not in os.environ:  # code for one processor may crash another
            folder = paths.project_root() / paths.COMPILED / text_digest(describe_machine())
            jax.config.update("jax_compilation_cache_dir", str(folder))
            jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
            jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
        try:
            return bool(jax.default_backend() == "gpu")
        except (RuntimeError, AssertionError) as error:  # a platform that is not there
            chosen = os.environ.get("JAX_PLATFORMS", "")
            raise PipelineError(f"JAX finds no device (JAX_PLATFORMS={chosen}): {first_line(error)}") from None

    def make_deterministic(self) -> None:
        """As XLA offers it; a CPU's results are the same every time."""
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_deterministic_ops=true".strip()

    def use_xla(self, setting: Xla, networks: list[keras.Model], whole: bool) -> bool:
        """Always: JAX has no other compiler."""
        if setting is False:
            raise PipelineError("training.xla: false: JAX always uses XLA; set auto or true")
        return True

    def compile(self, learner: keras.Model, data: Pass) -> None:
        """Compile by an epoch of no batches: it leaves everything as it is."""
        run_epoch(learner, data, idle=True)
        self.learning_rate(learner.optimizer)

    def learning_rate(self, optimizer: keras.optimizers.Optimizer) -> float:
        """As Keras does, but without compiling a schedule's condition anew each time, which takes 15 ms."""
        with jax.disable_jit():
            return super().learning_rate(optimizer)

    def fit_epoch(self, learner: keras.Model, data: Pass, bars: list[keras.callbacks.Callback]) -> dict[str, float]:
        """All updates in one call, and one more where the last batch is smaller than the others.

        A bar moves between calls, so with bars there are some more.
        """
        for bar in bars:
            bar.set_params({"steps": math.ceil(len(data.order) / data.batch_size)})
            bar.on_epoch_begin(0)
        figures = run_epoch(learner, data, bars)
        for bar in bars:
            bar.on_epoch_end(0, figures)
        return figures


def run_epoch(
    learner: keras.Model, data: Pass, bars: Sequence[keras.callbacks.Callback] = (), idle: bool = False
) -> dict[str, float]:
    """Train on all batches and look at the images that are watched; `idle` calls everything for no batches at all."""
    train, test = compile_passes(learner)
    labels, images = jnp.asarray(data.labels), len(data.labels) - len(data.watched)
    batches = list(stacked(data.order, data.batch_size, images))
    figures = run_pass(learner, train, batches, labels, bars, idle)
    if len(data.watched):
        batches = list(stacked(data.watched, VALIDATION_BATCH, len(data.watched)))
        watched = run_pass(learner, test, batches, labels, idle=idle)
        figures |= {f"val_{name}": value for name, value in watched.items()}
    return figures


@functools.lru_cache(maxsize=1)
def compile_passes(learner: keras.Model) -> tuple[Callable[..., State], Callable[..., State]]:
    """The functions that take the learner's state over batches: one that trains, and one that only looks.

    Both take the state, batches (B, size) of numbers, the first of them to use and the one after the last, and the
    labels of all images.
    """

    def test_step(state: State, batch: tuple[Any, Any]) -> tuple[dict[str, Any], State]:
        trainable, others, optimizer, metrics = state
        logs, (trainable, others, metrics) = learner.test_step((trainable, others, metrics), batch)
        return logs, (trainable, others, optimizer, metrics)

    return over_batches(learner.train_step), over_batches(test_step)


def over_batches(step: Step) -> Callable[..., State]:
    """One compiled function that takes a step for each batch. How many is no constant: no epoch compiles anew."""

    @functools.partial(jax.jit, donate_argnums=0)
    def run(state: State, batches: Any, start: Any, stop: Any, labels: Any) -> State:
        return jax.lax.fori_loop(start, stop, lambda i, state: step(state, (batches[i], labels[batches[i]]))[1], state)

    return run


def run_pass(
    learner: keras.Model,
    run: Callable[..., State],
    parts: list[tuple[NDArray[np.int32], int]],
    labels: Any,
    bars: Sequence[keras.callbacks.Callback] = (),
    idle: bool = False,
) -> dict[str, float]:
    """Take the learner over the batches of all parts, of each as many as it says, and return its metrics."""
    learner.reset_metrics()
    state, done = tuple([variable.value for variable in group] for group in variables(learner)), 0
    for batches, count in parts:
        stride = math.ceil(count / MOVES) if bars else count
        for start in range(0, count, stride):
            stop = start if idle else min(start + stride, count)
            state = run(state, batches, start, stop, labels)
            for bar in bars:
                jax.block_until_ready(state)
                bar.on_train_batch_end(done + stop - 1)
        done += count
    for group, values in zip(variables(learner), state, strict=True):
        for variable, value in zip(group, values, strict=True):
            variable.assign(value)
    return {name: float(value) for name, value in learner.get_metrics_result().items()}


def variables(learner: keras.Model) -> tuple[list[keras.Variable], ...]:
    """Everything that a step may change, in the order of its state."""
    return (
        learner.trainable_variables,
        learner.non_trainable_variables,
        learner.optimizer.variables,
        learner.metrics_variables,
    )


def stacked(numbers: NDArray[np.int32], size: int, most: int) -> Iterator[tuple[NDArray[np.int32], int]]:
    """The whole batches as rows (B, size), of a B that fits `most` numbers, and how many rows count; then the rest."""
    count, rest = divmod(len(numbers), size)
    if count:
        rows = np.zeros((most // size, size), np.int32)
        rows[:count] = numbers[: count * size].reshape(count, size)
        yield rows, count
    if rest:
        yield numbers[-rest:][None], 1


BACKEND = Jax()
