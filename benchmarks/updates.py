"""Time training updates on JAX's device, for several networks, precisions and batch sizes in one process.

Run it with KERAS_BACKEND=jax in a project in which the stages up to preprocess have run. Prints a line of JSON for the
device, and one for each combination.
"""

import itertools
import json
import re
import sys
import time
from pathlib import Path
from typing import Any

import jax
import keras
import numpy as np
from jax import numpy as jnp

from benchmarks.recipes import operations
from pipeline.core.backends.base import Pass
from pipeline.core.backends.jax import BACKEND, compile_passes, stacked, variables
from pipeline.core.config import Config
from pipeline.core.dataset import Split, load_split
from pipeline.core.device import use_device
from pipeline.core.paths import TRAIN
from pipeline.core.validation import load_config
from pipeline.stages.train.training import set_up

MATRIX = 8192  # rows and columns of the matrices whose product measures the device's peak
PASSES = (12_000, 60_000)  # images in the timed passes; their difference removes the constant cost of a pass
TIMES = 5


def main() -> None:
    """Time every combination of the arguments: composed configurations, precisions and batch sizes."""
    device = use_device()
    print(json.dumps({"device": device, "name": jax.devices()[0].device_kind, "peak": peak()}), flush=True)
    train = load_split(TRAIN)
    composed, precisions, sizes = (argument.split(",") for argument in sys.argv[1:])
    for path, precision, size in itertools.product(composed, precisions, sizes):
        config = load_config(Path(path))
        changed = config.training.model_copy(update={"precision": precision, "batch_size": int(size)})
        config = config.model_copy(update={"training": changed})
        print(json.dumps({"config": path, "precision": precision} | time_updates(config, train, device)), flush=True)


def peak() -> float:
    """Operations per second in the product of two random bfloat16 matrices, the best of several measurements."""
    keys = jax.random.split(jax.random.key(0))
    left, right = (jax.random.normal(key, (MATRIX, MATRIX), jnp.bfloat16) for key in keys)
    product = jax.jit(jnp.matmul)
    product(left, right).block_until_ready()
    seconds = []
    for _ in range(2 * TIMES):
        begun = time.perf_counter()
        product(left, right).block_until_ready()
        seconds.append(time.perf_counter() - begun)
    return 2 * MATRIX**3 / min(seconds)


def time_updates(config: Config, train: Split, device: str) -> dict[str, Any]:
    """Seconds to build, to compile, per update, and per pass without its updates; operations per update."""
    begun = time.perf_counter()
    none = Split(train.images[:0], train.labels[:0])
    _, learner = set_up(config, train, none, device)
    built, size = time.perf_counter(), config.training.batch_size
    labels = keras.utils.to_categorical(train.labels, config.dataset.classes).astype(np.float32)
    order = np.random.default_rng(1).permutation(len(train.images)).astype(np.int32)
    short, long = (Pass(order[: images // size * size], order[:0], labels, size) for images in PASSES)
    BACKEND.compile(learner, short)
    compiled = time.perf_counter()
    counts = [len(data.order) // size for data in (short, long)]
    timed = [(seconds_of(learner, short), seconds_of(learner, long)) for _ in range(TIMES)]
    updates = [(slow - quick) / (counts[1] - counts[0]) for quick, slow in timed]
    return {
        "batch_size": size,
        "build_seconds": built - begun,
        "compile_seconds": compiled - built,
        "update_seconds": updates,
        "pass_seconds": [quick - counts[0] * update for (quick, _), update in zip(timed, updates, strict=True)],
        "operations": operations(config) * size,
        "launches": launches(learner, short),
    }


def seconds_of(learner: keras.Model, data: Pass) -> float:
    """Seconds that a pass takes."""
    started = time.perf_counter()
    BACKEND.fit_epoch(learner, data, [])
    return time.perf_counter() - started


def launches(learner: Any, passed: Pass) -> int:
    """Number of kernels and library calls in an update, counted in the compiled program."""
    state = tuple([variable.value for variable in group] for group in variables(learner))
    (batches, count), *_ = stacked(passed.order, passed.batch_size, len(passed.labels))
    train: Any = compile_passes(learner)[0]
    text = train.lower(state, batches, 0, count, passed.labels).compile().as_text()
    return len(re.findall(r" = .* fusion\(.*calls=| = .* custom-call\(", text))


if __name__ == "__main__":
    main()
