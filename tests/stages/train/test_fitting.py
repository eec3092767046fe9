import contextlib
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import keras
import numpy as np
import pytest

from pipeline.core.backends import load_backend
from pipeline.core.backends.base import ArrayBatches
from pipeline.core.completion import mark_complete, remove_recorded
from pipeline.core.config import Config
from pipeline.core.dataset import Split
from pipeline.core.errors import PipelineError
from pipeline.stages.train.archive import save_network
from pipeline.stages.train.augmentation import RandomAffine, RandomShift
from pipeline.stages.train.checkpoint import Checkpoint, Epoch, open_checkpoint, read_values, write_values
from pipeline.stages.train.feeding import ImagePool
from pipeline.stages.train.fitting import (
    Learner,
    best_epoch,
    choose,
    count_updates,
    fit,
    fit_epoch,
    largest,
    prepare,
    stops_early,
)
from pipeline.stages.train.network import build_network, build_optimizer, members_of
from pipeline.stages.train.training import history_csv, set_up
from tests import conftest
from tests.conftest import ROOT, environment

RANDOM = np.random.default_rng(0)
LABELS = RANDOM.integers(0, 10, 640).astype(np.uint8)
IMAGES = (RANDOM.integers(0, 100, (640, 8, 8)) + 15 * LABELS[:, None, None]).astype(np.uint8)
TRAIN, VALIDATION = Split(IMAGES[:512], LABELS[:512]), Split(IMAGES[512:], LABELS[512:])
SMALL = {"convolutions": [8, 8], "kernels": [3, 3], "units": 16}
TINY = {
    "name": "mlp",
    "layers": [
        {"_target_": "keras.layers.Flatten"},
        {"_target_": "keras.layers.Dense", "units": 32, "activation": "relu"},
        {"_target_": "keras.layers.Dropout", "rate": 0.2},
    ],
}
ONE_STEP = {"epochs": 1, "batch_size": 512}
WRONG = Split(VALIDATION.images, (VALIDATION.labels + 1) % 10)  # the better the network, the higher its loss on these


def configured(tmp_path: Path, training: dict[str, Any] | None = None, **params: object) -> Config:
    """Configure a small network and one update per call by default, which are faster to trace."""
    given = {"model": TINY} | params
    return conftest.configured(tmp_path, training={"steps_per_execution": 1} | (training or {}), **given)


class KilledError(Exception):
    """Simulates the end of a process."""


def learn(
    config: Config, checkpoint: Checkpoint, killed_after: int | None = None, validation: Split = VALIDATION
) -> tuple[Any, list[Epoch]]:
    """Fit as the stage does, and return the network to save and the reported epochs, in order."""
    network, learner = set_up(config, TRAIN, validation, "cpu")
    reported: list[Epoch] = []

    def report(epoch: Epoch) -> None:
        reported.append(epoch)
        if len(reported) == killed_after:
            raise KilledError

    with contextlib.suppress(KilledError):
        fit(learner, TRAIN, validation, config, checkpoint, report)
    learner.give_weights_to(network)
    return network, reported


def figures(epochs: list[Epoch]) -> list[Epoch]:
    return [{name: epoch[name] for name in ("epoch", "loss", "val_loss")} for epoch in epochs]


AFFINE = {"_target_": "pipeline.stages.train.augmentation.RandomAffine", "rotation": 10, "shift": 1}
QUICKLY = {
    "hard_example_fraction": 0.3,
    "augmentation": [AFFINE],
    "warm_up": 0.25,
    "decay": "cosine",
    "label_smoothing": 0.1,
}


@pytest.mark.parametrize(("members", "training"), [(1, {"steps_per_execution": 3}), (1, QUICKLY), (2, QUICKLY)])
def test_a_resumed_training_matches_an_uninterrupted_one(
    tmp_path: Path, members: int, training: dict[str, Any]
) -> None:
    config = configured(tmp_path, model={"name": "mlp", "members": members}, training={"epochs": 4} | training)
    whole, expected = learn(config, Checkpoint(tmp_path / "whole"))
    _, before = learn(config, Checkpoint(tmp_path / "parts"), killed_after=2)
    continued, after = learn(config, Checkpoint(tmp_path / "parts"))
    assert [epoch["epoch"] for epoch in before] == [1, 2]
    assert after[:2] == before  # reported again with the same timestamps, so that MLflow keeps one of each
    assert figures(after) == figures(expected)
    for mine, theirs in zip(continued.get_weights(), whole.get_weights(), strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_a_training_killed_after_its_last_epoch_is_not_repeated(tmp_path: Path) -> None:
    config = configured(tmp_path, training={"epochs": 2})
    first, before = learn(config, Checkpoint(tmp_path / "c"))
    again, after = learn(config, Checkpoint(tmp_path / "c"))
    assert after == before
    for mine, theirs in zip(again.get_weights(), first.get_weights(), strict=True):
        np.testing.assert_array_equal(mine, theirs)


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-500])


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def lose_a_variable(path: Path) -> None:
    with np.load(path) as file:
        values = dict(file)
    del values[str(len(values) - 2)]
    np.savez(path, **values)


def test_training_starts_again_without_a_damaged_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = configured(tmp_path, training={"epochs": 2})
    _, whole = learn(config, Checkpoint(tmp_path / "whole"))
    learn(config, Checkpoint(tmp_path / "c"), killed_after=1)
    flip_a_bit(tmp_path / "c" / "epoch-00001.npz")
    _, reported = learn(config, Checkpoint(tmp_path / "c"))
    assert figures(reported) == figures(whole)
    assert "epoch-00001 cannot be read" in capsys.readouterr().out


@pytest.mark.parametrize("damage", [cut_short, flip_a_bit, lose_a_variable, lambda path: path.write_bytes(b"")])
def test_a_damaged_checkpoint_does_not_change_the_learner(tmp_path: Path, damage: Callable[[Path], object]) -> None:
    checkpoint = Checkpoint(tmp_path / "c")
    _, learner = set_up(configured(tmp_path), TRAIN, VALIDATION, "cpu")
    learner.optimizer.build(learner.trainable_variables)
    checkpoint.save(learner, [{"epoch": 1.0}])
    learner.set_weights([weight + 1 for weight in learner.get_weights()])
    before = learner.get_weights()
    damage(tmp_path / "c" / "epoch-00001.npz")
    assert checkpoint.restore(learner) == []
    for mine, theirs in zip(learner.get_weights(), before, strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_only_the_last_epoch_is_kept(tmp_path: Path) -> None:
    learn(configured(tmp_path, training={"epochs": 3}), Checkpoint(tmp_path / "c"))
    assert sorted(path.name for path in (tmp_path / "c").iterdir()) == ["epoch-00003.npz"]


def test_every_damaged_byte_is_detected(tmp_path: Path) -> None:
    weights = [keras.Variable(RANDOM.random(shape)) for shape in ((3, 4), (4,), ())]
    weights += [keras.Variable(3, dtype="int32"), keras.Variable([1.5, 2.5], dtype="bfloat16")]
    values = [keras.ops.convert_to_numpy(weight).astype(np.float64) for weight in weights]
    write_values(tmp_path / "a.npz", weights, "text")
    whole = (tmp_path / "a.npz").read_bytes()
    for place in range(0, len(whole), 3):
        (tmp_path / "a.npz").write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        with contextlib.suppress(ValueError):
            assert read_values(tmp_path / "a.npz", weights) == "text"  # the byte has no effect
        for weight, value in zip(weights, values, strict=True):
            np.testing.assert_array_equal(keras.ops.convert_to_numpy(weight).astype(np.float64), value)


def test_a_checkpoint_of_other_dtypes_or_shapes_is_rejected(tmp_path: Path) -> None:
    weights = [keras.Variable([1.0, 2.0]), keras.Variable([3.0])]
    write_values(tmp_path / "a.npz", weights)
    for others in (
        weights[:1],
        [*weights, weights[0]],
        weights[::-1],
        [weights[0], keras.Variable([3], dtype="int32")],
    ):
        with pytest.raises(ValueError, match="it holds other variables"):
            read_values(tmp_path / "a.npz", others)


def test_damaged_best_weights_are_one_line(tmp_path: Path) -> None:
    config = configured(tmp_path, training={"epochs": 2, "keep_best_epoch": True})
    learn(config, Checkpoint(tmp_path / "c"))
    cut_short(tmp_path / "c" / "best.npz")
    with pytest.raises(
        PipelineError, match=r"best\.npz cannot be read \(.*\): run the stage again to train from scratch"
    ):
        learn(config, Checkpoint(tmp_path / "c"))
    _, reported = learn(config, Checkpoint(tmp_path / "c"))
    assert len(reported) == 2


def test_a_layer_in_bfloat16_resumes_exactly(tmp_path: Path) -> None:
    layers = [{"_target_": "keras.layers.Flatten"}, {"_target_": "keras.layers.Dense", "units": 8, "dtype": "bfloat16"}]
    config = configured(
        tmp_path, model={"name": "mlp", "layers": layers}, training={"epochs": 3, "keep_best_epoch": True}
    )
    whole, _ = learn(config, Checkpoint(tmp_path / "whole"))
    learn(config, Checkpoint(tmp_path / "c"), killed_after=1)
    continued, reported = learn(config, Checkpoint(tmp_path / "c"))
    assert len(reported) == 3
    for mine, theirs in zip(continued.weights, whole.weights, strict=True):
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(mine), keras.ops.convert_to_numpy(theirs))


def test_the_later_of_two_checkpoints_counts(tmp_path: Path) -> None:
    config = configured(tmp_path, training={"epochs": 3})
    learn(config, Checkpoint(tmp_path / "c"), killed_after=1)
    first = (tmp_path / "c" / "epoch-00001.npz").read_bytes()
    learn(config, Checkpoint(tmp_path / "c"), killed_after=2)
    (tmp_path / "c" / "epoch-00001.npz").write_bytes(first)  # killed before the earlier one was removed
    _, learner = set_up(config, TRAIN, VALIDATION, "cpu")
    assert [epoch["epoch"] for epoch in Checkpoint(tmp_path / "c").restore(learner)] == [1, 2]


@pytest.mark.parametrize("count", [1, 7, 99, 100])
def test_hard_examples_are_the_first_of_a_stable_sort(count: int) -> None:
    for values in (RANDOM.random(100), RANDOM.integers(0, 4, 100), np.zeros(100)):
        losses = values.astype(np.float32)
        np.testing.assert_array_equal(largest(losses, count), np.argsort(-losses, kind="stable")[:count])


def test_every_epoch_has_its_own_order(tmp_path: Path) -> None:
    config = configured(tmp_path, training={"epochs": 2})
    _, learner = set_up(config, TRAIN, VALIDATION, "cpu")
    labels = keras.utils.to_categorical(np.concatenate([TRAIN.labels, VALIDATION.labels]), 10).astype(np.float32)
    with mock.patch.object(type(load_backend()), "fit_epoch", return_value={"loss": 0.0, "accuracy": 1.0}) as fitted:
        for number in (1, 2, 1):
            fit_epoch(learner, labels, len(TRAIN.images), config, number)
    one, other, again = (call.args[1].order for call in fitted.call_args_list)
    assert sorted(one) == sorted(other) == [*range(len(TRAIN.images))]
    assert (one != other).any()
    np.testing.assert_array_equal(one, again)


def test_two_processes_do_not_share_a_checkpoint(tmp_path: Path) -> None:
    with open_checkpoint(tmp_path, "name") as mine, open_checkpoint(tmp_path, "name") as other:
        assert mine.folder != other.folder
    with open_checkpoint(tmp_path, "name") as later:
        assert later.folder == mine.folder


def test_concurrent_trainings_do_not_disturb_each_other(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from pipeline.stages.train.checkpoint import open_checkpoint\n"
        "end = time.monotonic() + 3\n"
        "while time.monotonic() < end:\n"
        "    with open_checkpoint(Path(sys.argv[1]), 'name') as checkpoint: checkpoint.discard()"
    )
    command = ["python", "-c", code, str(tmp_path)]
    processes = [subprocess.Popen(command, cwd=ROOT, env=environment({}), stderr=subprocess.PIPE) for _ in range(3)]
    errors = [process.communicate()[1].decode() for process in processes]
    assert [process.returncode for process in processes] == [0] * 3, errors


def test_a_training_resumes_from_the_latest_epoch_of_concurrent_ones_and_leaves_nothing(tmp_path: Path) -> None:
    with open_checkpoint(tmp_path, "name") as first, open_checkpoint(tmp_path, "name") as second:
        (first.folder / "epoch-00009.npz").touch()
        (second.folder / "epoch-00012.npz").touch()
    (tmp_path / "name-abandoned").mkdir()
    with open_checkpoint(tmp_path, "name") as later, open_checkpoint(tmp_path, "name") as beside:
        assert (later.folder, beside.folder) == (second.folder, first.folder)
        with open_checkpoint(tmp_path, "name") as third:
            assert third.folder not in (first.folder, second.folder)
            third.discard()
        assert later.folder.exists()
        assert beside.folder.exists(), "another process still uses it"
        beside.discard()
    later.discard()
    (tmp_path / "name-left").mkdir()
    (tmp_path / "name-left" / "epoch-00002.npz").touch()
    with open_checkpoint(tmp_path, "name") as last:
        assert last.folder.name == "name-left"
        last.discard()
    assert [*tmp_path.iterdir()] == []


def test_the_checkpoint_of_a_complete_training_is_kept_until_its_model_is_recorded(tmp_path: Path) -> None:
    (tmp_path / "name-left").mkdir()
    with open_checkpoint(tmp_path, "name") as checkpoint:
        (checkpoint.folder / "epoch-00009.npz").touch()
        mark_complete(checkpoint.folder, "1" * 32)
        remove_recorded(tmp_path, "1" * 32)
        assert checkpoint.folder.exists(), "a process uses it"
    assert [*tmp_path.iterdir()] == [checkpoint.folder]
    for model_md5 in (None, "2" * 32):
        remove_recorded(tmp_path, model_md5)
    with open_checkpoint(tmp_path, "name") as later:
        assert later.folder == checkpoint.folder, "DVC was killed"
    with mock.patch("shutil.rmtree", side_effect=OSError):  # the process is killed
        remove_recorded(tmp_path, "1" * 32)
    assert not (tmp_path / "name").exists(), "a part of it is not continued"
    remove_recorded(tmp_path, None)
    assert [*tmp_path.iterdir()] == []
    remove_recorded(tmp_path / "absent", "1" * 32)


def test_the_best_weights_are_those_of_the_best_epoch(tmp_path: Path) -> None:
    """A process may have been killed between the two files."""
    config = configured(tmp_path, training={"epochs": 2, "keep_best_epoch": True})
    checkpoint = Checkpoint(tmp_path / "c")
    learn(config, checkpoint)
    _, learner = set_up(config, TRAIN, VALIDATION, "cpu")
    learner.optimizer.build(learner.trainable_variables)
    checkpoint.save_best(learner, 7)
    with pytest.raises(PipelineError, match=r"best\.npz cannot be read \(it has epoch 7 instead of [12]\)"):
        learn(config, checkpoint)


@pytest.mark.parametrize("name", ["epoch-00002.npz", "best.npz"])
@pytest.mark.parametrize("damage", [cut_short, flip_a_bit, lambda path: path.write_bytes(b"")])
def test_a_damaged_checkpoint_is_forgotten_with_its_run(
    tmp_path: Path, name: str, damage: Callable[[Path], object], capsys: pytest.CaptureFixture[str]
) -> None:
    config = configured(tmp_path, training={"epochs": 2, "keep_best_epoch": True})
    with open_checkpoint(tmp_path, "name") as checkpoint:
        learn(config, checkpoint)
        checkpoint.run_id = "0123"
        tag, _ = checkpoint.tag
        assert checkpoint.forget_damaged() is None
        assert (checkpoint.run_id, checkpoint.tag) == ("0123", (tag, True))
        damage(checkpoint.folder / name)
        assert checkpoint.forget_damaged() == "0123"
        assert f"{Path(name).stem} cannot be read" in capsys.readouterr().out
        assert checkpoint.run_id is None
        assert checkpoint.tag[0] != tag
        with open_checkpoint(tmp_path, "name") as other:
            assert other.folder != checkpoint.folder, "still locked"


def test_a_damaged_run_id_is_not_used(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path)
    checkpoint.run_id = "0123"
    flip_a_bit(tmp_path / "run.json")
    assert checkpoint.run_id is None
    for content in ('"0123"', "{}", "[]", "[1]", "1", ""):
        (tmp_path / "run.json").write_text(content, encoding="utf-8")
        assert checkpoint.run_id is None


def test_the_seed_determines_the_training(tmp_path: Path) -> None:
    one, again, other = (
        learn(configured(tmp_path, seed=seed, training={"epochs": 2}), Checkpoint(tmp_path / name))[1]
        for seed, name in ((1, "a"), (1, "b"), (2, "c"))
    )
    assert figures(one) == figures(again)
    assert figures(one) != figures(other)


def test_a_nan_loss_stops_the_training(tmp_path: Path) -> None:
    config = configured(tmp_path, optimizer={"name": None, "learning_rate": 1e30}, training={"epochs": 5})
    with pytest.raises(PipelineError, match=r"the loss is nan in epoch \d: the training diverged\. Lower"):
        learn(config, Checkpoint(tmp_path / "c"))


@pytest.mark.parametrize("members", [1, 2])
def test_weights_that_the_last_update_made_nan_are_not_kept(tmp_path: Path, members: int) -> None:
    """The loss of the only epoch precedes its only update, and there is no validation."""
    training = ONE_STEP | {"validate_on": "none", "validation_fraction": 0.0}
    optimizer = {"_target_": "keras.optimizers.SGD", "name": "sgd", "learning_rate": 1e38, "weight_decay": 1e3}
    composed = configured(tmp_path, model={"name": "mlp", "members": members}, training=training)
    config = Config.model_validate(composed.model_dump(by_alias=True) | {"optimizer": optimizer})
    with pytest.raises(PipelineError, match=r"has NaN or infinite weights: the training diverged\. Lower optimizer"):
        learn(config, Checkpoint(tmp_path / "c"), validation=Split(IMAGES[:0], LABELS[:0]))


def test_the_best_epoch_is_kept(tmp_path: Path) -> None:
    training = {"epochs": 6, "keep_best_epoch": True, "batch_size": 32}
    config = configured(tmp_path, model={"name": "mlp"}, training=training)
    network, reported = learn(config, Checkpoint(tmp_path / "c"), validation=WRONG)
    best = min(reported, key=lambda epoch: epoch["val_loss"])
    assert best["epoch"] < 6, "the test needs a training that got worse"
    network.compile(loss=keras.losses.SparseCategoricalCrossentropy())
    assert network.evaluate(*WRONG, verbose=0) == pytest.approx(best["val_loss"], rel=1e-5)


def test_training_stops_early(tmp_path: Path) -> None:
    training = {"epochs": 50, "early_stopping": 2, "batch_size": 32}
    config = configured(tmp_path, model={"name": "mlp"}, training=training)
    _, reported = learn(config, Checkpoint(tmp_path / "c"), validation=WRONG)
    assert len(reported) == best_epoch(reported) + 2 < 50


@pytest.mark.parametrize(
    ("losses", "patience", "stops"),
    [
        ([], 1, False),
        ([3, 2, 1], 1, False),
        ([1, 2], 1, True),
        ([1, 2], 2, False),
        ([1, 1], 1, True),
        ([1, 9], None, False),
    ],
)
def test_patience(losses: list[float], patience: int | None, stops: bool) -> None:
    epochs = [{"epoch": float(number), "val_loss": loss} for number, loss in enumerate(losses, 1)]
    assert stops_early(epochs, patience) is stops


def test_the_loss_equals_that_of_the_notebook() -> None:
    probabilities = np.array([[0.7, 0.2, 0.1], [0.1, 0.3, 0.6]], np.float32)
    sparse = keras.losses.SparseCategoricalCrossentropy()(np.array([0, 1], np.uint8), probabilities)
    categorical = keras.losses.CategoricalCrossentropy()(np.eye(3, dtype=np.float32)[:2], probabilities)
    assert float(sparse) == pytest.approx(float(categorical))


def prepared(tmp_path: Path, augmentation: list[keras.Layer], members: int) -> tuple[list[keras.Model], Learner]:
    """Members with the same initial weights, and a learner for one large step of plain gradient descent."""
    config = configured(tmp_path, model={"name": "mlp", "dropout": 0.0, "members": members}, training=ONE_STEP)
    keras.utils.set_random_seed(1)
    network = build_network(config.model, (8, 8), 10)
    parts = members_of(network)
    for part in parts[1:]:
        part.set_weights(parts[0].get_weights())
    return parts, prepare(network, keras.optimizers.SGD(0.5), augmentation, config.training, TRAIN.images)


def step(learner: Learner) -> float:
    labels = keras.utils.to_categorical(TRAIN.labels, 10)
    history = learner.fit(ArrayBatches(np.arange(512, dtype=np.int32), labels, 512), shuffle=False, verbose=0).history
    return float(history["loss"][0])


def test_every_member_learns_as_it_would_alone(tmp_path: Path) -> None:
    (alone,), learner = prepared(tmp_path, [], members=1)
    expected = step(learner)
    together, learner = prepared(tmp_path, [], members=3)
    assert step(learner) == pytest.approx(expected)
    for member in together:
        for mine, theirs in zip(member.get_weights(), alone.get_weights(), strict=True):
            np.testing.assert_allclose(mine, theirs, atol=1e-6)


def test_every_member_has_its_own_augmentation(tmp_path: Path) -> None:
    (one, other), learner = prepared(tmp_path, [RandomShift(1)], members=2)
    step(learner)
    assert np.abs(one.get_weights()[0] - other.get_weights()[0]).max() > 1e-4


def test_a_step_is_traced_once(tmp_path: Path) -> None:
    _, learner = set_up(configured(tmp_path, training=ONE_STEP), TRAIN, VALIDATION, "cpu")
    with mock.patch.object(learner, "compute_loss", wraps=learner.compute_loss) as traced:
        step(learner)
        step(learner)
    assert traced.call_count == 1


class Ours:
    """Custom parts of a network, which have no configuration."""

    class Halving(keras.optimizers.schedules.LearningRateSchedule):  # type: ignore[misc]
        def __call__(self, step: Any) -> Any:
            return 0.01 * keras.ops.power(0.5, keras.ops.cast(step, "float32") / 10)

    class Small(keras.initializers.Initializer):  # type: ignore[misc]
        def __call__(self, shape: Any, dtype: Any = None) -> Any:
            return keras.random.normal(shape, 0, 0.05, dtype, seed=1)

    class Pull(keras.regularizers.Regularizer):  # type: ignore[misc]
        def __call__(self, weights: Any) -> Any:
            return 0.001 * keras.ops.sum(keras.ops.abs(weights))


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "rmsprop"])
def test_custom_parts_work_and_the_network_loads_without_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, optimizer: str
) -> None:
    for part in (Ours.Halving, Ours.Small, Ours.Pull):
        monkeypatch.setattr(part, "__module__", "pipeline.stages.train.network")
        monkeypatch.setattr(f"pipeline.stages.train.network.{part.__name__}", part, raising=False)
    small, pull = ({"_target_": f"pipeline.stages.train.network.{name}"} for name in ("Small", "Pull"))
    layers = [
        {"_target_": "keras.layers.Conv2D", "filters": 4, "kernel_size": 3, "kernel_initializer": small},
        {"_target_": "keras.layers.BatchNormalization", "gamma_initializer": small, "beta_regularizer": pull},
        {"_target_": "keras.layers.Flatten"},
        {"_target_": "keras.layers.Dense", "units": 8, "kernel_regularizer": pull},
    ]
    halving = {"_target_": "pipeline.stages.train.network.Halving"}
    config = configured(
        tmp_path,
        model={"name": "mlp", "layers": layers},
        optimizer={"name": optimizer, "learning_rate": halving},
        training={"epochs": 1},
    )
    network, (epoch,) = learn(config, Checkpoint(tmp_path / "c"))
    assert epoch["learning_rate"] == pytest.approx(0.01 * 0.5 ** (4 / 10), rel=1e-4)
    save_network(tmp_path / "model.keras", network)
    loaded = keras.saving.load_model(tmp_path / "model.keras", compile=False, safe_mode=True)
    expected = network.predict(VALIDATION.images, verbose=0)
    np.testing.assert_allclose(loaded.predict(VALIDATION.images, verbose=0), expected, atol=1e-6)


@pytest.mark.tensorflow
@pytest.mark.parametrize("precision", ["float32", "mixed_bfloat16"])
def test_convolutional_networks_train_with_fused_operations(tmp_path: Path, precision: str) -> None:
    options = {"model": {"name": "convnet", "members": 2}, "optimizer": {"name": "adam"}}
    config = configured(tmp_path, **options, training={"precision": precision})
    try:
        network, learner = set_up(config, TRAIN, VALIDATION, "cpu")
    finally:
        keras.config.set_dtype_policy("float32")
    kinds = [[type(layer).__name__ for layer in member.layers] for member in learner.networks]
    assert [names.count("FusedBatchNormalization") for names in kinds] == [4, 4]
    assert type(learner.optimizer).__name__ == "FusedAdam"
    saved = {type(layer).__module__.split(".")[0] for member in members_of(network) for layer in member.layers}
    assert saved == {"keras"}


def test_metrics_are_those_of_the_ensemble_and_not_of_its_members(tmp_path: Path) -> None:
    config = configured(tmp_path, model={"name": "mlp", "members": 2}, training={"epochs": 1})
    network, (epoch,) = learn(config, Checkpoint(tmp_path / "c"))
    right = network.predict(VALIDATION.images, verbose=0).argmax(axis=1) == VALIDATION.labels
    assert epoch["val_accuracy"] == pytest.approx(right.mean())
    loss = keras.losses.SparseCategoricalCrossentropy()
    probabilities = network.predict(VALIDATION.images, verbose=0)
    assert epoch["val_loss"] == pytest.approx(float(loss(VALIDATION.labels, probabilities)), rel=1e-4)
    one, other = (member.predict(VALIDATION.images, verbose=0).argmax(axis=1) for member in members_of(network))
    assert (one != other).any(), "the test needs members that differ"


@pytest.mark.parametrize(
    "training",
    [
        {"precision": "mixed_bfloat16"},
        {"precision": "mixed_float16"},
        {"xla": True},
        {"steps_per_execution": 32},
        {"batch_size": 5000},
    ],
)
def test_every_training_option_learns_and_resumes_after_a_kill(tmp_path: Path, training: dict[str, Any]) -> None:
    config = configured(tmp_path, training={"epochs": 3} | training)
    try:
        learn(config, Checkpoint(tmp_path / "c"), killed_after=2)
        _, reported = learn(config, Checkpoint(tmp_path / "c"))
        assert [epoch["epoch"] for epoch in reported] == [1, 2, 3]
        assert reported[2]["loss"] < reported[0]["loss"]
    finally:
        keras.config.set_dtype_policy("float32")


@pytest.mark.parametrize("model", [{"name": "mlp"}, {"name": "convnet", "members": 2, "test_time_shift": 1} | SMALL])
def test_a_network_trained_in_mixed_precision_is_saved_in_float32(tmp_path: Path, model: dict[str, Any]) -> None:
    config = configured(tmp_path, model=model, training={"epochs": 1, "precision": "mixed_bfloat16"})
    try:
        network, learner = set_up(config, TRAIN, VALIDATION, "cpu")
        (trained, *_) = learner.networks
        assert {layer.compute_dtype for layer in trained.layers[3:-1]} == {"bfloat16"}
        before = network.predict(VALIDATION.images, verbose=0)
        fit(learner, TRAIN, VALIDATION, config, Checkpoint(tmp_path / "c"), lambda _: None)
        learner.give_weights_to(network)
    finally:
        keras.config.set_dtype_policy("float32")
    save_network(tmp_path / "model.keras", network)
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert {layer.compute_dtype for part in members_of(loaded) for layer in part.layers[1:]} == {"float32"}
    learned = loaded.predict(VALIDATION.images, verbose=0)
    assert np.abs(learned - before).max() > 0.01
    (first, *_) = members_of(loaded)
    np.testing.assert_allclose(
        first.predict(VALIDATION.images, verbose=0), trained.predict(VALIDATION.images, verbose=0), atol=0.1
    )


def test_the_last_loss_of_every_training_image_is_stored(tmp_path: Path) -> None:
    config = configured(tmp_path, model={"name": "mlp", "dropout": 0.0}, training=ONE_STEP)
    network, learner = set_up(config, TRAIN, VALIDATION, "cpu")
    expected = -np.log(network.predict(TRAIN.images, verbose=0)[np.arange(512), TRAIN.labels])
    fit(learner, TRAIN, VALIDATION, config, Checkpoint(tmp_path / "c"), lambda _: None)
    remembered = keras.ops.convert_to_numpy(learner.last_losses)
    np.testing.assert_allclose(remembered[:512], expected, rtol=1e-4)
    assert (remembered[512:] == 0).all(), "validation images are not training images"


def test_hard_examples_are_chosen_after_the_full_epochs(tmp_path: Path) -> None:
    training = configured(tmp_path, training={"full_epochs": 2, "hard_example_fraction": 0.5}).training
    losses = np.array([0.1, 3.0, 0.2, 2.0, 0.3], np.float32)
    assert sorted(choose(losses, training, 2)) == [0, 1, 2, 3, 4]
    assert [*choose(losses, training, 3)] == [1, 3, 4]


@pytest.mark.parametrize(
    ("training", "updates"),
    [
        ({"epochs": 3, "batch_size": 128}, 12),
        ({"epochs": 3, "batch_size": 100}, 18),
        ({"epochs": 4, "batch_size": 100, "full_epochs": 2, "hard_example_fraction": 0.25}, 16),
        ({"epochs": 1, "batch_size": 512, "hard_example_fraction": 0.25}, 1),
    ],
)
def test_the_schedule_spans_all_updates(tmp_path: Path, training: dict[str, Any], updates: int) -> None:
    config = configured(tmp_path, training=training | {"decay": "cosine"})
    learner = set_up(config, TRAIN, VALIDATION, "cpu")[1]
    epochs = fit(learner, TRAIN, VALIDATION, config, Checkpoint(tmp_path / "c"), lambda _: None)
    assert count_updates(512, config.training) == updates == int(learner.optimizer.iterations)
    assert epochs[-1]["learning_rate"] == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("updates", [1, 2, 3, 10])
def test_a_warm_up_leaves_an_update_for_the_decay(tmp_path: Path, updates: int) -> None:
    config = configured(tmp_path, training={"warm_up": 0.99, "decay": "cosine"})
    schedule = build_optimizer(config.optimizer, config.training, updates)._learning_rate
    assert np.isfinite([float(schedule(update)) for update in range(updates + 1)]).all()


def test_the_learning_rate_warms_up_and_decays(tmp_path: Path) -> None:
    config = configured(tmp_path, training={"warm_up": 0.2, "decay": "cosine"})
    schedule = build_optimizer(config.optimizer, config.training, 100)._learning_rate
    rates = [float(schedule(update)) for update in (0, 10, 20, 60, 100)]
    assert rates == pytest.approx([0, 0.0005, 0.001, 0.0005, 0], abs=1e-8)


def test_label_smoothing_matches_keras(tmp_path: Path) -> None:
    config = configured(tmp_path, model={"name": "mlp", "dropout": 0.0}, training=ONE_STEP | {"label_smoothing": 0.2})
    network, learner = set_up(config, TRAIN, VALIDATION, "cpu")
    loss = keras.losses.CategoricalCrossentropy(label_smoothing=0.2)
    expected = float(loss(keras.utils.to_categorical(TRAIN.labels, 10), network.predict(TRAIN.images, verbose=0)))
    (epoch,) = fit(learner, TRAIN, VALIDATION, config, Checkpoint(tmp_path / "c"), lambda _: None)
    assert epoch["loss"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("model", [{}, {"members": 2, "test_time_shift": 1}])
def test_inference_is_deterministic(tmp_path: Path, model: dict[str, int]) -> None:
    config = configured(tmp_path, model={"name": "mlp", "dropout": 0.5} | model, training={"epochs": 1} | QUICKLY)
    network, _ = learn(config, Checkpoint(tmp_path / "c"))
    assert not any(isinstance(layer, RandomAffine | ImagePool) for layer in network.layers)
    path = tmp_path / "model.keras"
    save_network(path, network)
    served = keras.saving.load_model(path)
    expected = served(VALIDATION.images, training=False)
    for again in (served(VALIDATION.images), network.predict(VALIDATION.images, verbose=0)):
        np.testing.assert_allclose(again, expected, atol=1e-6)


def test_validation_images_are_not_augmented(tmp_path: Path) -> None:
    config = configured(tmp_path, model={"name": "mlp", "dropout": 0.5}, training={"epochs": 1} | QUICKLY)
    network, reported = learn(config, Checkpoint(tmp_path / "c"))
    loss = keras.losses.CategoricalCrossentropy(label_smoothing=0.1)
    labels = keras.utils.to_categorical(VALIDATION.labels, 10)
    expected = float(loss(labels, network.predict(VALIDATION.images, verbose=0)))
    assert reported[0]["val_loss"] == pytest.approx(expected, rel=1e-4)


def test_augmentation_must_be_layers(tmp_path: Path) -> None:
    bad = [{"_target_": "keras.optimizers.SGD"}]
    with pytest.raises(PipelineError, match=r"training\.augmentation\.0: keras\.optimizers\.SGD is not a Keras layer"):
        set_up(configured(tmp_path, training={"augmentation": bad}), TRAIN, VALIDATION, "cpu")


def test_an_invalid_amount_of_augmentation_is_named(tmp_path: Path) -> None:
    bad = [AFFINE, AFFINE | {"shift": -1}]
    with pytest.raises(
        PipelineError, match=r"training\.augmentation\.1: .*RandomAffine cannot be built: .*not be negative"
    ):
        set_up(configured(tmp_path, training={"augmentation": bad}), TRAIN, VALIDATION, "cpu")


def test_validation_is_optional(tmp_path: Path) -> None:
    config = configured(tmp_path, training={"epochs": 1, "validate_on": "none", "validation_fraction": 0.0})
    nothing = Split(IMAGES[:0], LABELS[:0])
    learner = set_up(config, TRAIN, nothing, "cpu")[1]
    (epoch,) = fit(learner, TRAIN, nothing, config, Checkpoint(tmp_path / "c"), lambda _: None)
    assert "val_loss" not in epoch
    assert history_csv([epoch]).startswith("epoch,loss,accuracy,learning_rate\n1,")
