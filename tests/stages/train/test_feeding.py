from pathlib import Path

import keras
import numpy as np
import pytest

from pipeline.core.backends.base import ArrayBatches
from pipeline.core.backends.tensorflow import BACKEND
from pipeline.stages.train.checkpoint import kept_weights, read_values, write_values
from pipeline.stages.train.feeding import ImagePool

RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.integers(0, 256, (50, 8, 8)).astype(np.uint8)
ORDER = RANDOM.permutation(50).astype(np.int32)
LABELS = keras.utils.to_categorical(RANDOM.integers(0, 3, 50), 3)


def small_learner() -> keras.Model:
    keras.utils.set_random_seed(1)
    numbers = keras.Input((), dtype="int32")
    tensor = keras.layers.Flatten()(ImagePool(IMAGES)(numbers))
    learner = keras.Model(numbers, keras.layers.Dense(3)(keras.layers.Rescaling(1 / 255)(tensor)))
    learner.compile("sgd", keras.losses.CategoricalCrossentropy(from_logits=True))
    return learner


def test_images_are_looked_up_by_index() -> None:
    given = keras.ops.convert_to_numpy(ImagePool(IMAGES)(np.array([3, 0, 3], np.int32)))
    assert given.dtype == np.uint8
    np.testing.assert_array_equal(given, IMAGES[[3, 0, 3]])


def test_a_checkpoint_has_no_images(tmp_path: Path) -> None:
    learner = small_learner()
    assert [variable.shape for variable in kept_weights(learner)] == [(64, 3), (3,)]
    write_values(tmp_path / "a.npz", kept_weights(learner))
    other = small_learner()
    other.layers[-1].kernel.assign(0 * other.layers[-1].kernel)
    read_values(tmp_path / "a.npz", kept_weights(other))
    np.testing.assert_array_equal(other.predict(ORDER, verbose=0), learner.predict(ORDER, verbose=0))


@pytest.mark.parametrize("make", [BACKEND.batches, ArrayBatches])
def test_every_index_comes_once_and_in_order(make: type[ArrayBatches]) -> None:
    made = make(ORDER, LABELS, 16)
    parts = [made[index] for index in range(len(made))] if isinstance(made, ArrayBatches) else [*made]
    assert [len(numbers) for numbers, _ in parts] == [16, 16, 16, 2]
    np.testing.assert_array_equal(np.concatenate([numbers for numbers, _ in parts]), ORDER)
    np.testing.assert_array_equal(np.concatenate([labels for _, labels in parts]), LABELS)


@pytest.mark.tensorflow
def test_the_autotuner_is_off() -> None:
    assert keras.backend.backend() == "tensorflow"
    assert BACKEND.batches(ORDER, LABELS, 16).options().autotune.enabled is False


def test_both_kinds_of_batches_train_to_the_same_weights() -> None:
    weights = []
    for make in (BACKEND.batches, ArrayBatches):
        learner = small_learner()
        learner.fit(make(ORDER, LABELS, 16), shuffle=False, verbose=0)
        weights.append(learner.get_weights())
    for mine, theirs in zip(*weights, strict=True):
        np.testing.assert_array_equal(mine, theirs)
