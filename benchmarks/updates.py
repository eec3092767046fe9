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
PASSES = (12_000, 60_000)  # images in timed passes: what all take whatever their length is no update's
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
    """Seconds of building, of compiling, of an update, and of a pass without its updates; operations an update."""
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
    """What a pass takes."""
    started = time.perf_counter()
    BACKEND.fit_epoch(learner, data, [])
    return time.perf_counter() - started


def launches(learner: Any, passed: Pass) -> int:
    """How many kernels and library calls an update consists of, as the compiled program lists them."""
    state = tuple([variable.value for variable in group] for group in variables(learner))
    (batches, count), *_ = stacked(passed.order, passed.batch_size, len(passed.labels))
    train: Any = compile_passes(learner)[0]
    text = train.lower(state, batches, 0, count, passed.labels).compile().as_text()
    return len(re.findall(r" = .* fusion\(.*calls=| = .* custom-call\(", text))


if __name__ == "__main__":
    main()
