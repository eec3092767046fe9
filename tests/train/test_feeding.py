from pathlib import Path

import h5py
import keras
import numpy as np
import pytest

from pipeline.train.feeding import ArrayBatches, ImagePool, batches

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


def test_images_are_given_out_by_number() -> None:
    given = keras.ops.convert_to_numpy(ImagePool(IMAGES)(np.array([3, 0, 3], np.int32)))
    assert given.dtype == np.uint8
    np.testing.assert_array_equal(given, IMAGES[[3, 0, 3]])


def test_a_checkpoint_has_no_images(tmp_path: Path) -> None:
    learner = small_learner()
    learner.save_weights(tmp_path / "a.weights.h5")
    with h5py.File(tmp_path / "a.weights.h5") as file:
        sizes: list[int] = []
        file.visititems(lambda _, item: sizes.append(item.size) if isinstance(item, h5py.Dataset) else None)
    assert IMAGES.size not in sizes
    assert {3 * 64, 3} <= set(sizes)
    other = small_learner()
    other.layers[-1].kernel.assign(0 * other.layers[-1].kernel)
    other.load_weights(tmp_path / "a.weights.h5")
    np.testing.assert_array_equal(other.predict(ORDER, verbose=0), learner.predict(ORDER, verbose=0))


@pytest.mark.parametrize("make", [batches, ArrayBatches])
def test_every_number_comes_once_and_in_order(make: type[ArrayBatches]) -> None:
    made = make(ORDER, LABELS, 16)
    parts = [made[index] for index in range(len(made))] if isinstance(made, ArrayBatches) else [*made]
    assert [len(numbers) for numbers, _ in parts] == [16, 16, 16, 2]
    np.testing.assert_array_equal(np.concatenate([numbers for numbers, _ in parts]), ORDER)
    np.testing.assert_array_equal(np.concatenate([labels for _, labels in parts]), LABELS)


def test_nothing_tunes_itself() -> None:
    assert keras.backend.backend() == "tensorflow"
    assert batches(ORDER, LABELS, 16).options().autotune.enabled is False


def test_what_any_backend_takes_trains_to_the_same_weights() -> None:
    weights = []
    for make in (batches, ArrayBatches):
        learner = small_learner()
        learner.fit(make(ORDER, LABELS, 16), shuffle=False, verbose=0)
        weights.append(learner.get_weights())
    for mine, theirs in zip(*weights, strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_other_backends_get_arrays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("keras.backend.backend", lambda: "jax")
    assert isinstance(batches(ORDER, LABELS, 16), ArrayBatches)
