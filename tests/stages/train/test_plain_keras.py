"""Options of layers, optimizers and schedules have the same effect on the weights as in a plain `model.fit`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from hydra.utils import instantiate
from numpy.typing import NDArray

from pipeline.core.config import Config
from pipeline.core.dataset import Split
from pipeline.core.errors import PipelineError, is_exhausted
from pipeline.stages.train.checkpoint import Checkpoint, Epoch
from pipeline.stages.train.fitting import fit
from pipeline.stages.train.network import build_network, members_of
from pipeline.stages.train.training import set_up
from tests.conftest import configured, layer, with_optimizer

RANDOM = np.random.default_rng(0)
LABELS = RANDOM.integers(0, 10, 300).astype(np.uint8)
IMAGES = (RANDOM.integers(0, 100, (300, 8, 8)) + 15 * LABELS[:, None, None]).astype(np.uint8)
TRAIN, VALIDATION = Split(IMAGES[:250], LABELS[:250]), Split(IMAGES[250:], LABELS[250:])
BATCH, EPOCHS = 32, 3

FLATTEN, DENSE = {"_target_": "keras.layers.Flatten"}, {"_target_": "keras.layers.Dense", "units": 8}
L2 = {"_target_": "keras.regularizers.L2", "l2": 0.02}
ADAM = {"_target_": "keras.optimizers.Adam", "learning_rate": 0.01}
RMSPROP = {"_target_": "keras.optimizers.RMSprop", "learning_rate": 0.01}
SGD = {"_target_": "keras.optimizers.SGD", "learning_rate": 0.1}
STEPS = {
    "_target_": "keras.optimizers.schedules.ExponentialDecay",
    "initial_learning_rate": 0.01,
    "decay_steps": 5,
    "decay_rate": 0.5,
    "staircase": True,
}
EMA = {"use_ema": True, "ema_momentum": 0.9}


def config_of(tmp_path: Path, layers: list[Any], optimizer: dict[str, Any], **training: Any) -> Config:
    values = {"epochs": EPOCHS, "batch_size": BATCH, "steps_per_execution": 1} | training
    return with_optimizer(configured(tmp_path, model={"name": "mlp", "layers": layers}, training=values), optimizer)


def ours(config: Config, folder: Path) -> tuple[list[NDArray[Any]], list[Epoch]]:
    network, learner = set_up(config, TRAIN, VALIDATION, "cpu")
    epochs = fit(learner, TRAIN, VALIDATION, config, Checkpoint(folder), lambda _: None)
    learner.give_weights_to(network)
    return network.get_weights(), epochs


def plain(config: Config) -> tuple[list[NDArray[Any]], dict[str, list[float]]]:
    """Train in the same way with Keras alone, in one call of `fit`."""
    keras.utils.set_random_seed(config.seed)
    (model,) = members_of(build_network(config.model, IMAGES.shape[1:], 10))
    optimizer = instantiate(config.optimizer.model_dump(by_alias=True, exclude={"name"}), _convert_="all")
    model.compile(optimizer, keras.losses.CategoricalCrossentropy(from_logits=True), jit_compile=False)
    one_hot = keras.utils.to_categorical(LABELS, 10)

    def batches() -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
        for number in range(1, EPOCHS + 1):
            order = np.random.default_rng(np.random.SeedSequence([config.seed, number])).permutation(250)
            for start in range(0, 250, BATCH):
                chosen = order[start : start + BATCH]
                yield IMAGES[chosen], one_hot[chosen]

    validation = VALIDATION.images, one_hot[250:]
    steps = -(-250 // BATCH)
    fitted = model.fit(
        batches(), steps_per_epoch=steps, epochs=EPOCHS, validation_data=validation, shuffle=False, verbose=0
    )
    history: dict[str, list[float]] = fitted.history
    return model.get_weights(), history


# No bias: its gradient consists of rounding errors alone, which Adam would turn into steps of full size.
NORMALIZED = [FLATTEN, DENSE | {"use_bias": False}, layer("BatchNormalization", momentum=0.8), layer("ReLU")]


EMBEDDED = [FLATTEN, layer("Embedding", input_dim=2, output_dim=3), FLATTEN]


@pytest.mark.parametrize(
    ("layers", "optimizer"),
    [
        pytest.param([FLATTEN, DENSE | {"kernel_regularizer": L2}], ADAM, id="regularizer"),
        pytest.param([FLATTEN, DENSE | {"activity_regularizer": L2}], RMSPROP, id="activity regularizer"),
        pytest.param([FLATTEN, DENSE, layer("ActivityRegularization", l1=0.01)], SGD, id="add_loss"),
        pytest.param(
            [FLATTEN, DENSE | {"kernel_constraint": {"_target_": "keras.constraints.UnitNorm"}}], ADAM, id="constraint"
        ),
        pytest.param(NORMALIZED, ADAM, id="moving averages"),
        pytest.param([FLATTEN, layer("SpectralNormalization", layer=DENSE)], ADAM, id="updates of its own"),
        pytest.param([FLATTEN, DENSE | {"trainable": False}, DENSE], ADAM, id="frozen"),
        pytest.param(EMBEDDED, ADAM, id="embedding"),
        pytest.param(EMBEDDED, RMSPROP, id="embedding, RMSprop"),
        pytest.param(NORMALIZED, ADAM | EMA, id="averaged weights"),
        pytest.param([FLATTEN, DENSE], RMSPROP | EMA | {"ema_overwrite_frequency": 5}, id="averages written back"),
        pytest.param([FLATTEN, DENSE], SGD | EMA | {"momentum": 0.9, "nesterov": True}, id="averages of SGD"),
        pytest.param([FLATTEN, DENSE], ADAM | {"gradient_accumulation_steps": 3}, id="accumulation"),
        pytest.param([FLATTEN, DENSE], RMSPROP | {"loss_scale_factor": 1024.0}, id="loss scale"),
        pytest.param([FLATTEN, DENSE], ADAM | {"clipnorm": 0.05}, id="clipped norm"),
        pytest.param([FLATTEN, DENSE], ADAM | {"clipvalue": 0.01}, id="clipped values"),
        pytest.param([FLATTEN, DENSE], RMSPROP | {"global_clipnorm": 0.1}, id="clipped norm of all"),
        pytest.param([FLATTEN, DENSE], ADAM | {"weight_decay": 0.1, "learning_rate": STEPS}, id="decay, schedule"),
    ],
)
def test_an_option_has_the_same_effect_as_in_keras(
    tmp_path: Path, layers: list[dict[str, Any]], optimizer: dict[str, Any]
) -> None:
    config = config_of(tmp_path, layers, optimizer)
    learned, epochs = ours(config, tmp_path / "c")
    expected, history = plain(config)
    for name in ("loss", "val_loss"):
        assert [epoch[name] for epoch in epochs] == pytest.approx(history[name], rel=1e-5)
    for mine, theirs in zip(learned, expected, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-5)


def test_a_fused_normalization_keeps_its_regularizers(tmp_path: Path) -> None:
    convolution = layer("Conv2D", filters=4, kernel_size=3, use_bias=False)
    normalized = layer("BatchNormalization", activity_regularizer=L2, gamma_regularizer=L2, beta_regularizer=L2)
    config = config_of(tmp_path, [convolution, normalized, FLATTEN], ADAM)
    (_, epochs), (_, history) = ours(config, tmp_path / "c"), plain(config)
    assert [epoch["loss"] for epoch in epochs] == pytest.approx(history["loss"], rel=1e-3)


def test_each_member_of_an_ensemble_has_its_own_regularizer(tmp_path: Path) -> None:
    config = config_of(tmp_path, [FLATTEN, DENSE | {"kernel_regularizer": L2}], ADAM)
    two = config.model_copy(update={"model": config.model.model_copy(update={"members": 2})})
    _, (first, *_) = ours(two, tmp_path / "two")
    _, (alone, *_) = ours(config, tmp_path / "one")
    assert first["loss"] == pytest.approx(alone["loss"], rel=0.1), "a mean, not a sum"


def test_a_resumed_training_with_averages_matches_an_uninterrupted_one(tmp_path: Path) -> None:
    config = config_of(tmp_path, NORMALIZED, ADAM | EMA)
    whole, _ = ours(config, tmp_path / "whole")

    class KilledError(Exception):
        pass

    def kill(epoch: Epoch) -> None:
        if epoch["epoch"] == 2:
            raise KilledError

    _, learner = set_up(config, TRAIN, VALIDATION, "cpu")
    with pytest.raises(KilledError):
        fit(learner, TRAIN, VALIDATION, config, Checkpoint(tmp_path / "parts"), kill)
    for _ in range(2):  # the second time, no epoch is left
        continued, _ = ours(config, tmp_path / "parts")
        for mine, theirs in zip(continued, whole, strict=True):
            np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize(
    ("layers", "optimizer", "training"),
    [
        ([FLATTEN, DENSE], ADAM | {"beta_1": "a"}, {}),
        ([FLATTEN, DENSE], ADAM | {"beta_2": [1]}, {}),
        ([FLATTEN, DENSE], ADAM | {"epsilon": None}, {}),
        ([FLATTEN, DENSE], ADAM | {"clipnorm": "a"}, {}),
        ([FLATTEN, DENSE], RMSPROP | {"loss_scale_factor": "a"}, {}),
        ([FLATTEN, DENSE], ADAM | {"learning_rate": {"_target_": "keras.initializers.Zeros"}}, {}),
        ([FLATTEN, DENSE], ADAM, {"augmentation": [layer("Rescaling", scale="x")]}),
        ([FLATTEN, DENSE], ADAM, {"augmentation": [layer("Resizing", height=8, width=8, interpolation="x")]}),
        ([FLATTEN, layer("Dense", units=3, dtype="nope")], ADAM, {}),
        ([layer("Layer"), FLATTEN], ADAM, {}),
        ([layer("Reshape", target_shape="x")], ADAM, {}),
        ([layer("Conv2D", filters=2, kernel_size=3, data_format="channels_first"), FLATTEN], ADAM, {}),
    ],
)
def test_an_untrainable_configuration_is_one_line(
    tmp_path: Path, layers: list[Any], optimizer: dict[str, Any], training: dict[str, Any]
) -> None:
    with pytest.raises(PipelineError) as error:
        ours(config_of(tmp_path, layers, optimizer, **training), tmp_path / "c")
    assert len(str(error.value).splitlines()) == 1
    assert len(str(error.value)) > 40, "it says something"


def test_exhausted_memory_is_no_error_of_the_configuration(tmp_path: Path) -> None:
    """It passes unchanged, for the stage to look for a batch size that fits."""
    with pytest.raises(Exception, match=r"OOM when|allocate|Allocate") as error:
        ours(config_of(tmp_path, [FLATTEN, layer("Dense", units=10**12)], ADAM), tmp_path / "c")
    assert is_exhausted(error.value)
    assert not isinstance(error.value, PipelineError)


@pytest.mark.tensorflow
def test_a_compilation_error_of_xla_is_one_line(tmp_path: Path) -> None:
    larger = layer("UpSampling2D", size=2, interpolation="bicubic")
    with pytest.raises(PipelineError, match=r"do not work together: "):
        ours(config_of(tmp_path, [larger, FLATTEN, DENSE], ADAM, xla=True), tmp_path / "c")


def test_weight_averages_and_the_best_epoch_exclude_each_other(tmp_path: Path) -> None:
    config = config_of(tmp_path, [FLATTEN, DENSE], ADAM | EMA, keep_best_epoch=True)
    with pytest.raises(PipelineError, match=r"optimizer\.use_ema and training\.keep_best_epoch cannot be combined"):
        set_up(config, TRAIN, VALIDATION, "cpu")
