"""Fitting a network, one epoch at a time."""

import contextlib
import math
import sys
import time
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from pipeline.backends import load_backend
from pipeline.backends.base import Pass
from pipeline.config import Config, Training
from pipeline.dataset import Split
from pipeline.errors import PipelineError
from pipeline.train.augmentation import Augmentation
from pipeline.train.checkpoint import Checkpoint, Epoch, as_array
from pipeline.train.components import explained
from pipeline.train.feeding import ImagePool
from pipeline.train.network import members_of, mix

UNTRAINABLE = "the model, optimizer and training settings do not work together"
REMEDY = "Lower optimizer.learning_rate (dvc exp run -S optimizer.learning_rate=…)"


class ProgressBar(keras.callbacks.ProgbarLogger):
    """Keras's progress bar for epoch `number` of `epochs` epochs that are fitted one by one."""

    def __init__(self, number: int, epochs: int) -> None:
        super().__init__()
        self._number, self._epochs = number, epochs

    def set_params(self, params: dict[str, Any]) -> None:
        """Take what `fit` says, but count all epochs."""
        super().set_params(params | {"epochs": self._epochs, "verbose": 1})

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Say which epoch it is, whatever `fit` counts."""
        super().on_epoch_begin(self._number - 1, logs)


class Learner(keras.Model):
    """From image numbers (N,) to the logits of each member (N, members, classes), each of which learns for itself.

    Remembers the loss that each image had when it was last seen.
    """

    def __init__(
        self, numbers: Any, logits: Any, members: list[keras.Model], images: int, label_smoothing: float
    ) -> None:
        super().__init__(numbers, logits)
        self.members = members
        self._image_losses = keras.losses.CategoricalCrossentropy(True, label_smoothing, reduction=None)
        self.accuracy = keras.metrics.CategoricalAccuracy(name="accuracy")
        self.last_losses = self.add_weight(shape=(images,), initializer="zeros", trainable=False, name="last_losses")

    def compute_loss(
        self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None, training: bool = True
    ) -> Any:
        """The mean over batch and members, with each member's gradient as it would be alone; of the mix when watched.

        `x` are numbers, `y` is one-hot. What the members' layers add to the loss counts, too, as in Keras.
        """
        added = keras.ops.sum([keras.ops.cast(loss, "float32") for loss in self.losses]) if self.losses else 0.0
        if not training:
            return keras.ops.mean(self._image_losses(y, mix(y_pred))) + added / len(self.members)
        labels = keras.ops.broadcast_to(keras.ops.expand_dims(y, 1), keras.ops.shape(y_pred))
        losses = self._image_losses(labels, y_pred)
        seen = keras.ops.scatter_update(self.last_losses, keras.ops.expand_dims(x, -1), keras.ops.mean(losses, axis=1))
        self.last_losses.assign(seen)
        mean = keras.ops.mean(losses) + added / len(self.members)
        total = keras.ops.sum(keras.ops.mean(losses, axis=0)) + added
        return total - keras.ops.stop_gradient(total - mean)

    def compute_metrics(self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None) -> dict[str, Any]:
        """The loss, and the accuracy of the members together."""
        self.accuracy.update_state(y, mix(y_pred))
        return dict(self.get_metrics_result())

    def give_weights_to(self, network: keras.Model) -> None:
        """Copy what was learned into a network of the same kind, of whatever precision."""
        for mine, theirs in zip(self.members, members_of(network), strict=True):
            theirs.set_weights(mine.get_weights())


def prepare(
    network: keras.Model,
    optimizer: keras.optimizers.Optimizer,
    augmentation: list[keras.Layer],
    training: Training,
    images: NDArray[np.uint8],
) -> Learner:
    """What can be fitted: from the numbers of `images` to logits, with the network's weights or copies of them.

    The network itself stays without images, augmentation and training state. Each member sees images of its own
    augmentation.
    """
    if optimizer.use_ema and training.keep_best_epoch:
        raise PipelineError("optimizer.use_ema and training.keep_best_epoch cannot be combined: set one of them")
    numbers = keras.Input((), dtype="int32", name="numbers")
    chosen = ImagePool(images)(numbers)
    augment = Augmentation(augmentation) if augmentation else keras.layers.Identity()
    backend = load_backend()
    members = [backend.fuse_layers(member) for member in members_of(network)]
    xla = backend.use_xla(training.xla, members, augment.supports_jit)
    logits = []
    for member in members:
        changed = augment(chosen)
        reader = reading(member, changed.dtype)
        logits.append((reader if augment.supports_jit or not xla else backend.compile_network(reader))(changed))
    learner = Learner(numbers, keras.ops.stack(logits, axis=1), members, len(images), training.label_smoothing)
    learner.compile(
        optimizer=backend.fuse_optimizer(optimizer),
        jit_compile=xla and augment.supports_jit,
        steps_per_execution=training.steps_per_execution if backend.joins_updates else 1,
    )
    learner.optimizer.build(learner.trainable_variables)  # a step that makes variables is traced twice by TensorFlow
    return learner


def reading(network: keras.Model, dtype: str) -> keras.Model:
    """A network with the same layers that accepts images of another dtype instead of casting them to bytes."""
    if dtype == network.input.dtype:
        return network
    images = keras.Input(network.input_shape[1:], dtype=dtype, name="images")
    return keras.models.clone_model(network, input_tensors=images, clone_function=lambda layer: layer)


def compile_epochs(learner: Learner, train: Split, validation: Split, config: Config) -> None:
    """Compile what the epochs of every size need, where the backend does not wait for the first of them."""
    training, images = config.training, len(train.images)
    labels = one_hot(train, validation, config)
    watched = np.arange(images, len(labels), dtype=np.int32)
    for size in sorted({epoch_size(images, training, number) for number in range(1, training.epochs + 1)}):
        order = np.arange(size, dtype=np.int32)
        with explained(UNTRAINABLE):
            load_backend().compile(learner, Pass(order, watched, labels, training.batch_size))


def one_hot(train: Split, validation: Split, config: Config) -> NDArray[np.float32]:
    """The labels of all images (N, classes)."""
    labels = np.concatenate([train.labels, validation.labels])
    return keras.utils.to_categorical(labels, config.dataset.classes).astype(np.float32)


def fit(
    learner: Learner,
    train: Split,
    validation: Split,
    config: Config,
    checkpoint: Checkpoint,
    report: Callable[[Epoch], None],
) -> list[Epoch]:
    """Fit `learner` from the checkpoint's epoch to the last one and return the figures of every epoch.

    `report` gets the figures of each epoch as soon as its checkpoint is safe, those of earlier processes included.
    What is random in an epoch (order, augmentation, dropout) follows from the seed and the epoch's number alone, so
    that a continued training ends as an uninterrupted one does.
    Raises PipelineError when the loss stops being a number.
    """
    training = config.training
    labels = one_hot(train, validation, config)
    epochs = checkpoint.restore(learner)
    if epochs:
        print(f"train: going on after epoch {len(epochs)} of {training.epochs}, which an earlier process finished")
    for finished in epochs:
        report(finished)
    begun = len(epochs)
    while len(epochs) < training.epochs and not stops_early(epochs, training.early_stopping):
        number = len(epochs) + 1
        with explained(UNTRAINABLE) if len(epochs) == begun else contextlib.nullcontext():
            epoch = fit_epoch(learner, labels, len(train.images), config, number)
        if not on_terminal():
            print_epoch(epoch, training.epochs)
        for name in ("loss", "val_loss"):
            if not math.isfinite(epoch.get(name, 0)):
                raise PipelineError(f"the {name} is {epoch[name]} in epoch {number}: the training diverged. {REMEDY}")
        epochs = [*epochs, epoch]
        if training.keep_best_epoch and best_epoch(epochs) == number:
            checkpoint.save_best(learner)
        checkpoint.save(learner, epochs)
        report(epoch)
    learner.optimizer.finalize_variable_values(learner.trainable_variables)
    if training.keep_best_epoch:
        checkpoint.restore_best(learner)
    check_finite(learner.members)
    return epochs


def check_finite(networks: list[keras.Model]) -> None:
    """Raise PipelineError if a weight is NaN or infinite. The loss does not show it: it precedes the last update."""
    for variable in (variable for network in networks for variable in network.weights):
        if not np.isfinite(as_array(variable)).all():
            raise PipelineError(f"{variable.path} has NaN or infinite weights: the training diverged. {REMEDY}")


def fit_epoch(learner: Learner, labels: NDArray[np.float32], images: int, config: Config, number: int) -> Epoch:
    """One pass over the training images in the order that this epoch's seed gives, and one over the validation ones.

    The first so many `images` of the learner are for training, the others are watched; `labels` (N, classes) are
    one-hot.
    """
    started = time.perf_counter()
    seeds = np.random.SeedSequence([config.seed, number])
    reseed(learner, seeds)
    losses = keras.ops.convert_to_numpy(learner.last_losses)[:images]
    order = np.random.default_rng(seeds).permutation(choose(losses, config.training, number))
    watched = np.arange(images, len(labels), dtype=np.int32)
    bars = [ProgressBar(number, config.training.epochs)] if on_terminal() else []
    backend = load_backend()
    figures = backend.fit_epoch(learner, Pass(order, watched, labels, config.training.batch_size), bars)
    return {
        "epoch": number,
        **figures,
        "learning_rate": backend.learning_rate(learner.optimizer),
        "seconds": time.perf_counter() - started,
        "timestamp": time.time(),
    }


def choose(losses: NDArray[np.float32], training: Training, number: int) -> NDArray[np.int32]:
    """The numbers of the images that epoch `number` takes, given the loss that each had when it was last seen.

    All of them at first, then the hardest: online batch selection, Loshchilov and Hutter 2015 (arXiv:1511.06343), with
    the rank as a limit instead of a probability.
    """
    count = epoch_size(len(losses), training, number)
    numbers = np.arange(count) if count == len(losses) else largest(losses, count)
    return numbers.astype(np.int32)


def largest(values: NDArray[np.float32], count: int) -> NDArray[np.intp]:
    """The places of the `count` largest values, the largest first, and of equal ones the first first.

    As the start of a stable sort of all of them, but only these are sorted.
    """
    limit = np.partition(values, -count)[-count]
    above, equal = np.flatnonzero(values > limit), np.flatnonzero(values == limit)
    places = np.sort(np.concatenate([above, equal[: count - len(above)]]))
    return places[np.argsort(-values[places], kind="stable")]


def epoch_size(images: int, training: Training, number: int) -> int:
    """How many of so many training images epoch `number` takes."""
    return images if number <= training.full_epochs else math.ceil(images * training.hard_example_fraction)


def count_updates(images: int, training: Training) -> int:
    """How often all epochs together change the weights."""
    sizes = [epoch_size(images, training, number) for number in range(1, training.epochs + 1)]
    return sum(math.ceil(size / training.batch_size) for size in sizes)


def reseed(learner: keras.Model, seeds: np.random.SeedSequence) -> None:
    """Give every random layer a state that follows from `seeds` alone."""
    states = [v for v in learner.non_trainable_variables if v.path.endswith("seed_generator_state")]
    for state, child in zip(states, seeds.spawn(len(states)), strict=True):
        state.assign(child.generate_state(state.shape[0]).astype(state.dtype))


def best_epoch(epochs: list[Epoch]) -> int:
    """The number of the epoch with the lowest validation loss; the earliest where several have it."""
    return int(min(epochs, key=lambda epoch: epoch["val_loss"])["epoch"])


def stops_early(epochs: list[Epoch], patience: int | None) -> bool:
    """Whether the last `patience` epochs in a row had no lower validation loss than the best one before them."""
    return bool(patience and epochs and len(epochs) - best_epoch(epochs) >= patience)


def on_terminal() -> bool:
    """Whether somebody watches: standard output may also be closed from the start."""
    return sys.stdout is not None and sys.stdout.isatty()


def print_epoch(epoch: Epoch, epochs: int) -> None:
    """One line an epoch."""
    watched = (
        f"  val_loss {epoch['val_loss']:.4f}  val_accuracy {epoch['val_accuracy']:.4f}" if "val_loss" in epoch else ""
    )
    print(
        f"epoch {int(epoch['epoch']):>3}/{epochs}  loss {epoch['loss']:.4f}  accuracy {epoch['accuracy']:.4f}"
        f"{watched}  {epoch['seconds']:.1f} s",
        flush=True,
    )
