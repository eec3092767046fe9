"""A training run, from the seed to the trained network. It reports to a listener, and does not know MLflow."""

import csv
import io
import resource
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np

from pipeline.core import paths
from pipeline.core.backends import load_backend
from pipeline.core.config import Config
from pipeline.core.dataset import Split
from pipeline.core.device import choose_precision
from pipeline.core.machine import find_version
from pipeline.core.process.stage import other_backends_absent
from pipeline.stages.train.checkpoint import Checkpoint, Epoch, fingerprint
from pipeline.stages.train.components import explained
from pipeline.stages.train.fitting import UNTRAINABLE, Learner, check_finite, count_updates, fit, prepare
from pipeline.stages.train.network import build_augmentation, build_network, build_optimizer
from pipeline.stages.train.recalibration import recalibrate

FLOAT32 = "float32"
HISTORY_COLUMNS = ("epoch", "loss", "accuracy", "val_loss", "val_accuracy", "learning_rate")


class Trained(NamedTuple):
    """A trained network and the metrics of every epoch."""

    network: keras.Model
    epochs: list[Epoch]


def set_up(config: Config, train: Split, validation: Split, device: str) -> tuple[keras.Model, Learner]:
    """Build the network to save, in float32, and a learner with the same weights in the training precision.

    All randomness follows from the configured seed.
    """
    training, shape, classes = config.training, train.images.shape[1:], config.dataset.classes
    with other_backends_absent():  # Keras would import an installed TensorFlow to seed it, too
        keras.utils.set_random_seed(config.seed)
    keras.config.set_dtype_policy(FLOAT32)
    with explained("model"):
        network = trained = build_network(config.model, shape, classes)
    precision, backend = choose_precision(training.precision, device), load_backend()
    with backend.on_all_devices():
        augmentation = build_augmentation(training, shape)  # in float32
        keras.config.set_dtype_policy(precision)
        if precision != FLOAT32 or backend.devices > 1:
            trained = build_network(config.model, shape, classes)
            trained.set_weights(network.get_weights())
        optimizer = build_optimizer(config.optimizer, training, count_updates(len(train.images), training))
        images = np.concatenate([train.images, validation.images])
        with explained(UNTRAINABLE):
            return network, prepare(trained, optimizer, augmentation, training, images)


def train(
    network: keras.Model,
    learner: Learner,
    images: Split,
    validation: Split,
    config: Config,
    checkpoint: Checkpoint,
    report: Callable[[Epoch], None],
) -> Trained:
    """Fit the learner from the checkpoint on, give its weights to the network, and recalibrate them if configured.

    `report` is called after every epoch. Raises PipelineError if the weights are not finite.
    """
    epochs = fit(learner, images, validation, config, checkpoint, report)
    learner.give_weights_to(network)
    if config.training.recalibrate:
        recalibrate(network, images.images)
        check_finite([network])
    return Trained(network, epochs)


def training_name(config: Config, device: str, data: Iterable[Path] = (paths.TRAIN, paths.VALIDATION)) -> str:
    """Unique name of a training run, from its configuration, data, code, device, backend and versions."""
    relevant = config.model_dump(mode="json", include={"seed", "model", "optimizer", "training"}, by_alias=True)
    backend = keras.backend.backend()
    relevant["computed_by"] = [keras.__version__, backend, find_version(backend), device]
    relevant["precision"] = keras.config.dtype_policy().name
    return fingerprint(relevant, [*data, *code_files()])


def code_files() -> list[Path]:
    """All modules of this project."""
    return sorted(Path(__file__).parents[2].rglob("*.py"))


def summary(network: keras.Model) -> str:
    """Table of layers, as printed by `network.summary()`."""
    lines: list[str] = []
    network.summary(line_length=88, expand_nested=True, print_fn=lambda line, **_: lines.append(line))
    return "\n".join(lines) + "\n"


def history_csv(epochs: list[Epoch]) -> str:
    """Learning curves as CSV, one row per epoch, without times, so that the same training gives the same file."""
    text = io.StringIO()
    columns = [name for name in HISTORY_COLUMNS if name in epochs[0]]
    writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(epoch | {"epoch": int(epoch["epoch"])} for epoch in epochs)
    return text.getvalue()


def peak_memory_mib() -> int:
    """Peak memory of this process, in MiB (getrusage(2) gives KiB on Linux and bytes on macOS)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak // (1 << 20 if sys.platform == "darwin" else 1 << 10)
