"""Train small networks on one device and on several virtual ones, and print the metrics of every training as JSON.

A process of its own, since a backend's devices are fixed when it starts. Its arguments are the number of devices, and
the names of cases.
"""

import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np

from pipeline.core.backends import load_backend
from pipeline.core.config import Config
from pipeline.core.dataset import Split
from pipeline.core.device import use_device
from pipeline.core.errors import PipelineError
from pipeline.stages.train.checkpoint import Checkpoint, Epoch
from pipeline.stages.train.feeding import ImagePool
from pipeline.stages.train.fitting import fit
from pipeline.stages.train.training import set_up
from tests.conftest import configured, layer, with_optimizer

IMAGES, VALIDATION, BATCH = 407, 101, 64  # the last batches are odd: 23 of 64 images, and 101 of 1,000
RANDOM = np.random.default_rng(0)
LABELS = RANDOM.integers(0, 10, IMAGES + VALIDATION).astype(np.uint8)
GRAY = (RANDOM.integers(0, 100, (len(LABELS), 8, 8)) + 15 * LABELS[:, None, None]).astype(np.uint8)
TRAIN, HELD_OUT = Split(GRAY[:IMAGES], LABELS[:IMAGES]), Split(GRAY[IMAGES:], LABELS[IMAGES:])
Case = dict[str, Any]


def dense(units: int = 16, **arguments: Any) -> dict[str, Any]:
    return layer("Dense", units=units, **arguments)


FLATTEN, NORMALIZE = layer("Flatten"), layer("BatchNormalization")
# No bias: before a normalization, its gradient consists of rounding errors alone.
CONVOLUTION = [layer("Reshape", target_shape=[8, 8, 1]), layer("Conv2D", filters=4, kernel_size=3, use_bias=False)]
TINY = [CONVOLUTION[0], layer("Conv2D", filters=8, kernel_size=3, strides=4, use_bias=False)]
L2 = {"_target_": "keras.regularizers.L2", "l2": 0.01}
SHORT = {"_target_": "keras.constraints.MaxNorm", "max_value": 0.5}
EMA = {"use_ema": True, "ema_momentum": 0.9}
SHIFT = {"_target_": "pipeline.stages.train.augmentation.RandomShift", "pixels": 1}
ENORMOUS = layer("Rescaling", scale=1e38)
ONE_GRAY = Split(np.where(np.arange(IMAGES)[:, None, None] == BATCH, GRAY[:IMAGES], 0).astype(np.uint8), TRAIN.labels)
OPTIMIZERS = "SGD RMSprop Adam Lamb Muon"
CASES: dict[str, Case] = {
    "plain": {},
    "convolution": {"layers": [*CONVOLUTION, NORMALIZE, layer("ReLU"), FLATTEN]},
    "normalized vectors": {"layers": [FLATTEN, NORMALIZE, dense()]},
    "renormalization": {"layers": [FLATTEN, layer("BatchNormalization", renorm=True)]},
    "updates of its own": {"layers": [FLATTEN, layer("SpectralNormalization", layer=dense(8))]},
    "embedding": {"layers": [FLATTEN, layer("Embedding", input_dim=2, output_dim=3), FLATTEN]},
    "regularizer": {"layers": [FLATTEN, dense(kernel_regularizer=L2)]},
    "activity regularizer": {"layers": [FLATTEN, dense(activity_regularizer=L2)]},
    "added loss": {"layers": [FLATTEN, dense(), layer("ActivityRegularization", l1=0.01)]},
    "constraint": {"layers": [FLATTEN, dense(kernel_constraint=SHORT)]},
    "noise": {"layers": [FLATTEN, dense(), layer("Dropout", rate=0.3)], "training": {"augmentation": [SHIFT]}},
    "ensemble": {"model": {"members": 2, "test_time_shift": 1}},
    "schedule": {"training": {"decay": "cosine", "warm_up": 0.1, "label_smoothing": 0.1}},
    "hard examples": {"training": {"full_epochs": 1, "hard_example_fraction": 0.5}},
    "best epoch": {"training": {"keep_best_epoch": True}},
    "float16": {"training": {"precision": "mixed_float16"}},
    "averaged weights": {"optimizer": EMA},
    "averages written back": {"optimizer": EMA | {"ema_overwrite_frequency": 5}},
    "weight decay": {"optimizer": {"weight_decay": 0.1}},
    "loss scale": {"optimizer": {"loss_scale_factor": 1024.0}},
    "accumulation": {"optimizer": {"gradient_accumulation_steps": 2}},
    "clipped norms": {"optimizer": {"clipnorm": 0.1}},
    "clipped values": {"optimizer": {"clipvalue": 0.01}},
    "clipped norm of all": {"optimizer": {"global_clipnorm": 0.1}},
    "xla": {"training": {"xla": True}},
    "few images in the last batch": {"training": {"batch_size": 404}},
    "small batches": {"layers": [*TINY, NORMALIZE, layer("ReLU"), FLATTEN], "training": {"batch_size": 8}},
    "one image that overflows": {"layers": [ENORMOUS, ENORMOUS, FLATTEN, dense()], "train": ONE_GRAY},
    **{name: {"optimizer": {"_target_": f"keras.optimizers.{name}"}} for name in OPTIMIZERS.split()},
}


PARTS = "schedule", "RMSprop"  # the latter is a fused optimizer on TensorFlow


class KilledError(Exception):
    """The training was killed."""


def config_of(case: Case, folder: Path) -> Config:
    training = {"epochs": 3, "batch_size": BATCH} | case.get("training", {})
    model = {"name": "mlp", "layers": case.get("layers", [FLATTEN, dense()])} | case.get("model", {})
    adamw = {"_target_": "keras.optimizers.AdamW", "learning_rate": 0.003}
    return with_optimizer(configured(folder, model=model, training=training), adamw | case.get("optimizer", {}))


def train(case: Case, folder: Path, report: Callable[[Epoch], None] = lambda _: None) -> dict[str, Any]:
    """Train from the checkpoint in the folder on."""
    config, images = config_of(case, folder), case.get("train", TRAIN)
    try:
        network, learner = set_up(config, images, HELD_OUT, "cpu")
        epochs = fit(learner, images, HELD_OUT, config, Checkpoint(folder), report)
    except PipelineError as error:
        return {"error": str(error)}
    learner.give_weights_to(network)
    return {
        "losses": [epoch[name] for epoch in epochs for name in ("loss", "val_loss")],
        "accuracies": [epoch[name] for epoch in epochs for name in ("accuracy", "val_accuracy")],
        "weights": [float(np.abs(values).sum()) for values in network.get_weights()],
        "last losses": float(keras.ops.sum(learner.last_losses)),
    }


def train_all(names: list[str], devices: int) -> None:
    """Train every case from the start."""
    load_backend().use_devices(devices)
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps([name, devices, train(CASES[name], Path(folder))]), flush=True)


def train_in_parts(parts: list[int]) -> None:
    """Train one epoch on each of these numbers of devices, and the rest on the last."""

    def kill(_: Epoch) -> None:
        raise KilledError

    for name in PARTS:
        with tempfile.TemporaryDirectory() as folder:
            for devices in parts:
                load_backend().use_devices(devices)
                try:
                    result = train(CASES[name], Path(folder), kill if devices != parts[-1] else lambda _: None)
                except KilledError:
                    continue
                print(json.dumps([f"{name} in parts", parts[-1], result]), flush=True)


def hold_many_images() -> None:
    """Copy as many images as MNIST has to all devices. Keras creates weights of this size in another way."""
    images = np.full((60_000, 28, 28), 7, np.uint8)
    with load_backend().on_all_devices():
        pool = ImagePool(images)
    sums = keras.ops.convert_to_numpy(pool(np.array([0, 59_999]))).sum(axis=(1, 2)).tolist()
    print(json.dumps(["many images", load_backend().devices, {"sums": sums}]), flush=True)


def divide_a_batch(size: int) -> None:
    """Let JAX divide a batch, and print the number of images that each device gets."""
    import jax

    backend: Any = load_backend()
    shards = jax.jit(backend.divide)(np.arange(size)).addressable_shards
    print(json.dumps([f"shares of {size}", backend.devices, [shard.data.shape[0] for shard in shards]]), flush=True)


def main(count: int, names: list[str]) -> None:
    """Train on one device, then on `count`; then in parts on both."""
    os.environ["DEVICE"] = "cpu"
    use_device(virtual=count)
    for devices in (1, count):
        train_all(names or list(CASES), devices)
    train_in_parts([1, count])
    hold_many_images()
    if keras.backend.backend() == "jax":
        divide_a_batch(8)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
