import numpy as np
import pytest
from sklearn.model_selection import train_test_split

from pipeline.core.errors import PipelineError
from pipeline.stages.preprocess.split import hold_out

LABELS = np.repeat(np.arange(10, dtype=np.uint8), [100, 200, 100, 100, 100, 100, 100, 100, 50, 50])


def test_the_split_is_stratified_disjoint_and_complete() -> None:
    kept, held_out = hold_out(LABELS, 0.1, seed=1)
    np.testing.assert_array_equal(np.bincount(LABELS[held_out]), [10, 20, 10, 10, 10, 10, 10, 10, 5, 5])
    np.testing.assert_array_equal(np.sort(np.concatenate([kept, held_out])), np.arange(1000))


def test_the_seed_determines_the_split() -> None:
    first, again, other = (hold_out(LABELS, 0.1, seed)[1] for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_nothing_is_held_out_at_zero() -> None:
    kept, held_out = hold_out(LABELS, 0.0, seed=1)
    assert (len(kept), len(held_out)) == (1000, 0)


def test_the_default_fraction_holds_out_5000_images_of_mnist() -> None:
    assert len(hold_out(np.arange(60_000, dtype=np.int64).astype(np.uint8) % 10, 0.08333, seed=1)[1]) == 5000


def test_a_fraction_that_is_too_small_is_rejected() -> None:
    with pytest.raises(
        PipelineError, match=r"training\.validation_fraction: 0\.001 of 1,000 images cannot be held out"
    ):
        hold_out(LABELS, 0.001, seed=1)


@pytest.mark.parametrize("fraction", [0.01, 0.08333, 0.1, 0.1667, 0.3333, 0.5, 0.77, 0.985])
@pytest.mark.parametrize("seed", range(5))
def test_the_split_equals_that_of_scikit_learn(fraction: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    for labels in (
        LABELS,
        rng.permutation(LABELS),
        rng.integers(0, 7, 1797).astype(np.uint8),  # a different remainder in each class
        np.repeat(np.array([1, 4, 9], np.uint8), [333, 333, 334]),  # equal remainders: ties are broken at random
        rng.choice(10, 5000, p=np.arange(1, 11) / 55).astype(np.uint8),
    ):
        kept, held_out = train_test_split(
            np.arange(len(labels)), test_size=fraction, stratify=labels, random_state=seed
        )
        ours = hold_out(labels, fraction, seed)
        np.testing.assert_array_equal(ours[0], np.sort(kept))
        np.testing.assert_array_equal(ours[1], np.sort(held_out))


@pytest.mark.parametrize(
    ("counts", "fraction"), [([5, 1], 0.5), ([5, 5], 0.1), ([5, 5], 0.95), ([2, 2, 2], 0.5), ([2, 2, 2], 0.34)]
)
def test_a_split_is_rejected_if_scikit_learn_rejects_it(counts: list[int], fraction: float) -> None:
    labels = np.repeat(np.arange(len(counts), dtype=np.uint8), counts)
    try:
        train_test_split(np.arange(len(labels)), test_size=fraction, stratify=labels, random_state=1)
    except ValueError:
        with pytest.raises(PipelineError, match="cannot be held out"):
            hold_out(labels, fraction, 1)
    else:
        assert hold_out(labels, fraction, 1)
