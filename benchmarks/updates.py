"""Time the updates of a training on whatever JAX computes on: one process, several networks, precisions and batches.

Run in a project whose stages up to preprocess have run, with KERAS_BACKEND=jax. Prints a line of JSON for each.
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
from pipeline.backends.base import Pass
from pipeline.backends.jax import BACKEND, compile_passes, stacked, variables
from pipeline.config import Config, load_config
from pipeline.dataset import Split, load_split
from pipeline.device import use_device
from pipeline.paths import TRAIN
from pipeline.train.training import set_up

MATRIX = 8192  # rows and columns of the matrices that are multiplied to find the device's peak
IMAGES = 12_000  # in a timed pass
TIMES = 5


def main() -> None:
    """Time every combination of what stands in the arguments: composed files, precisions, batch sizes."""
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
    """Operations a second in the product of two bfloat16 matrices of random numbers: the best of so many."""
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
    """Seconds of building, of the first pass, which compiles, and of an update in later ones; operations a second."""
    begun = time.perf_counter()
    none = Split(train.images[:0], train.labels[:0])
    _, learner = set_up(config, train, none, device)
    built, size = time.perf_counter(), config.training.batch_size
    labels = keras.utils.to_categorical(train.labels, config.dataset.classes).astype(np.float32)
    order = np.random.default_rng(1).permutation(len(train.images)).astype(np.int32)[: IMAGES // size * size]
    passed = Pass(order, order[:0], labels, size)
    BACKEND.fit_epoch(learner, passed, [])
    compiled, seconds = time.perf_counter(), []
    for _ in range(TIMES):
        started = time.perf_counter()
        BACKEND.fit_epoch(learner, passed, [])
        seconds.append((time.perf_counter() - started) / (len(order) // size))
    return {
        "batch_size": size,
        "build_seconds": built - begun,
        "first_pass_seconds": compiled - built,
        "update_seconds": seconds,
        "operations": operations(config) * size,
        "launches": launches(learner, passed),
    }


def launches(learner: Any, passed: Pass) -> int:
    """How many kernels and library calls an update consists of, as the compiled program lists them."""
    state = tuple([variable.value for variable in group] for group in variables(learner))
    (batches, count), *_ = stacked(passed.order, passed.batch_size, len(passed.labels))
    train: Any = compile_passes(learner)[0]
    text = train.lower(state, batches, 0, count, passed.labels).compile().as_text()
    return len(re.findall(r" = .* fusion\(.*calls=| = .* custom-call\(", text))


if __name__ == "__main__":
    main()
