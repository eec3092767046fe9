"""Training of a network, one epoch at a time."""

import contextlib
import math
import sys
import time
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from pipeline.core.backends import load_backend
from pipeline.core.backends.base import Pass
from pipeline.core.config import Config, Training
from pipeline.core.dataset import Split
from pipeline.core.errors import PipelineError
from pipeline.stages.train.augmentation import Augmentation
from pipeline.stages.train.checkpoint import Checkpoint, Epoch, as_array
from pipeline.stages.train.components import explained
from pipeline.stages.train.feeding import ImagePool
from pipeline.stages.train.network import members_of, mix

UNTRAINABLE = "the model, optimizer and training settings do not work together"
REMEDY = "Lower optimizer.learning_rate (dvc exp run -S optimizer.learning_rate=…)"


class ProgressBar(keras.callbacks.ProgbarLogger):
    """Keras's progress bar for epoch `number` of `epochs`, where each epoch is a `fit` of its own."""

    def __init__(self, number: int, epochs: int) -> None:
        super().__init__()
        self._number, self._epochs = number, epochs

    def set_params(self, params: dict[str, Any]) -> None:
        """Take the parameters of `fit`, except for the number of epochs."""
        super().set_params(params | {"epochs": self._epochs, "verbose": 1})

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Show the number of this epoch instead of the one that `fit` counts."""
        super().on_epoch_begin(self._number - 1, logs)


class Learner(keras.Model):
    """A model from image indices (N,) to the logits of independent ensemble members (N, members, classes).

    `last_losses` holds the loss of each image when it was last used in training.
    """

    def __init__(
        self, numbers: Any, logits: Any, networks: list[keras.Model], images: int, label_smoothing: float
    ) -> None:
        super().__init__(numbers, logits)
        self.networks = networks
        self._image_losses = keras.losses.CategoricalCrossentropy(True, label_smoothing, reduction=None)
        self.accuracy = keras.metrics.CategoricalAccuracy(name="accuracy")
        self.last_losses = self.add_weight(
            shape=(images,),
            initializer="zeros",
            trainable=False,
            aggregation="only_first_replica",  # all devices compute the same
            name="last_losses",
        )

    def compute_loss(
        self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None, training: bool = True
    ) -> Any:
        """Mean loss over batch and members in training; loss of the whole ensemble in validation.

        In training, each member's gradient is that of its own loss. `x` are indices, `y` is one-hot. Losses that the
        members' layers add count, too, as in Keras.
        """
        added = keras.ops.sum([keras.ops.cast(loss, "float32") for loss in self.losses]) if self.losses else 0.0
        backend, count = load_backend(), keras.ops.shape(x)[0]
        if not training:
            mean = keras.ops.mean(self._image_losses(y, mix(y_pred))) + added / len(self.networks)
            return backend.loss_of_share(mean, mean, count)
        labels = keras.ops.broadcast_to(keras.ops.expand_dims(y, 1), keras.ops.shape(y_pred))
        losses = self._image_losses(labels, y_pred)
        numbers, means = backend.gather_shares(x), backend.gather_shares(keras.ops.mean(losses, axis=1))
        self.last_losses.assign(keras.ops.scatter_update(self.last_losses, keras.ops.expand_dims(numbers, -1), means))
        mean = keras.ops.mean(losses) + added / len(self.networks)
        total = keras.ops.sum(keras.ops.mean(losses, axis=0)) + added
        return backend.loss_of_share(total, mean, count)

    def compute_metrics(self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None) -> dict[str, Any]:
        """Loss and accuracy of the ensemble."""
        self.accuracy.update_state(y, mix(y_pred))
        return dict(self.get_metrics_result())

    def give_weights_to(self, network: keras.Model) -> None:
        """Copy the learned weights into a network of the same architecture, in any precision."""
        for mine, theirs in zip(self.networks, members_of(network), strict=True):
            theirs.set_weights(mine.get_weights())


def prepare(
    network: keras.Model,
    optimizer: keras.optimizers.Optimizer,
    augmentation: list[keras.Layer],
    training: Training,
    images: NDArray[np.uint8],
) -> Learner:
    """Build a compiled learner on `images`, with the network's weights or copies of them.

    The network itself stays without images, augmentation and training state. The augmentation draws anew for each
    member.
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
    learner.optimizer.build(learner.trainable_variables)  # TensorFlow traces a step twice if it creates variables
    return learner


def reading(network: keras.Model, dtype: str) -> keras.Model:
    """Return a network with the same layers that accepts images of `dtype` instead of casting them to bytes."""
    if dtype == network.input.dtype:
        return network
    images = keras.Input(network.input_shape[1:], dtype=dtype, name="images")
    return keras.models.clone_model(network, input_tensors=images, clone_function=lambda layer: layer)


def compile_epochs(learner: Learner, train: Split, validation: Split, config: Config) -> None:
    """Compile for epochs of every size in advance, if the backend does not wait for the first of them."""
    training, images = config.training, len(train.images)
    labels = one_hot(train, validation, config)
    validation_indices = np.arange(images, len(labels), dtype=np.int32)
    for size in sorted({epoch_size(images, training, number) for number in range(1, training.epochs + 1)}):
        order = np.arange(size, dtype=np.int32)
        with explained(UNTRAINABLE):
            load_backend().compile(learner, Pass(order, validation_indices, labels, training.batch_size))


def one_hot(train: Split, validation: Split, config: Config) -> NDArray[np.float32]:
    """One-hot labels of all images (N, classes)."""
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
    """Fit `learner` from the checkpoint's epoch to the last one and return the metrics of every epoch.

    `report` receives the metrics of each epoch once its checkpoint is saved, including epochs of earlier processes.
    The randomness of an epoch (order, augmentation, dropout) depends only on the seed and the epoch's number, so a
    resumed training run ends with the same result as an uninterrupted one.
    Raises PipelineError if the loss or a weight becomes NaN or infinite.
    """
    training = config.training
    labels = one_hot(train, validation, config)
    epochs = checkpoint.restore(learner)
    if epochs:
        print(f"train: resuming after epoch {len(epochs)} of {training.epochs}, which an earlier process finished")
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
            checkpoint.save_best(learner, number)
        checkpoint.save(learner, epochs)
        report(epoch)
    learner.optimizer.finalize_variable_values(learner.trainable_variables)
    if training.keep_best_epoch:
        checkpoint.restore_best(learner, best_epoch(epochs))
    check_finite(learner.networks)
    return epochs


def check_finite(networks: list[keras.Model]) -> None:
    """Raise PipelineError if a weight is NaN or infinite. The loss does not show it, as it precedes the last update."""
    for variable in (variable for network in networks for variable in network.weights):
        if not np.isfinite(as_array(variable)).all():
            raise PipelineError(f"{variable.path} has NaN or infinite weights: the training diverged. {REMEDY}")


def fit_epoch(learner: Learner, labels: NDArray[np.float32], images: int, config: Config, number: int) -> Epoch:
    """Train for one epoch, in the order that follows from its seed, then evaluate on the validation images.

    The learner's first `images` images are for training, the others for validation; `labels` (N, classes) are one-hot.
    """
    started = time.perf_counter()
    seeds = np.random.SeedSequence([config.seed, number])
    reseed(learner, seeds)
    losses = keras.ops.convert_to_numpy(learner.last_losses)[:images]
    order = np.random.default_rng(seeds).permutation(choose(losses, config.training, number))
    validation_indices = np.arange(images, len(labels), dtype=np.int32)
    bars = [ProgressBar(number, config.training.epochs)] if on_terminal() else []
    backend = load_backend()
    figures = backend.fit_epoch(learner, Pass(order, validation_indices, labels, config.training.batch_size), bars)
    return {
        "epoch": number,
        **figures,
        "learning_rate": backend.learning_rate(learner.optimizer),
        "seconds": time.perf_counter() - started,
        "timestamp": time.time(),
    }


def choose(losses: NDArray[np.float32], training: Training, number: int) -> NDArray[np.int32]:
    """Indices of the training images for epoch `number`, given the loss of each image when it was last used.

    All images at first, then hard-example mining, the examples with the highest loss: online batch selection,
    Loshchilov and Hutter 2015 (arXiv:1511.06343), with the rank as a cutoff instead of a probability.
    """
    count = epoch_size(len(losses), training, number)
    numbers = np.arange(count) if count == len(losses) else largest(losses, count)
    return numbers.astype(np.int32)


def largest(values: NDArray[np.float32], count: int) -> NDArray[np.intp]:
    """Indices of the `count` largest values, largest first; equal values keep their order.

    This is the start of a stable sort of all values, but sorts only these.
    """
    limit = np.partition(values, -count)[-count]
    above, equal = np.flatnonzero(values > limit), np.flatnonzero(values == limit)
    places = np.sort(np.concatenate([above, equal[: count - len(above)]]))
    return places[np.argsort(-values[places], kind="stable")]


def epoch_size(images: int, training: Training, number: int) -> int:
    """Number of training images in epoch `number`, out of `images`."""
    return images if number <= training.full_epochs else math.ceil(images * training.hard_example_fraction)


def count_updates(images: int, training: Training) -> int:
    """Total number of weight updates in all epochs."""
    sizes = [epoch_size(images, training, number) for number in range(1, training.epochs + 1)]
    return sum(math.ceil(size / training.batch_size) for size in sizes)


def reseed(learner: keras.Model, seeds: np.random.SeedSequence) -> None:
    """Set the state of every random layer from `seeds` alone."""
    states = [v for v in learner.non_trainable_variables if v.path.endswith("seed_generator_state")]
    for state, child in zip(states, seeds.spawn(len(states)), strict=True):
        load_backend().seed(state, child)


def best_epoch(epochs: list[Epoch]) -> int:
    """Number of the epoch with the lowest validation loss; the earliest one on a tie."""
    return int(min(epochs, key=lambda epoch: epoch["val_loss"])["epoch"])


def stops_early(epochs: list[Epoch], patience: int | None) -> bool:
    """Whether none of the last `patience` epochs improved on the best validation loss before them."""
    return bool(patience and epochs and len(epochs) - best_epoch(epochs) >= patience)


def on_terminal() -> bool:
    """Whether standard output is a terminal; it may also be closed from the start."""
    return sys.stdout is not None and sys.stdout.isatty()


def print_epoch(epoch: Epoch, epochs: int) -> None:
    """Print one line for an epoch."""
    validation = (
        f"  val_loss {epoch['val_loss']:.4f}  val_accuracy {epoch['val_accuracy']:.4f}" if "val_loss" in epoch else ""
    )
    print(
        f"epoch {int(epoch['epoch']):>3}/{epochs}  loss {epoch['loss']:.4f}  accuracy {epoch['accuracy']:.4f}"
        f"{validation}  {epoch['seconds']:.1f} s",
        flush=True,
    )
