import numpy as np
import pytest

from pipeline.errors import PipelineError
from pipeline.preprocess.split import hold_out

LABELS = np.repeat(np.arange(10, dtype=np.uint8), [100, 200, 100, 100, 100, 100, 100, 100, 50, 50])


def test_the_split_is_stratified_disjoint_and_complete() -> None:
    kept, held_out = hold_out(LABELS, 0.1, seed=1)
    np.testing.assert_array_equal(np.bincount(LABELS[held_out]), [10, 20, 10, 10, 10, 10, 10, 10, 5, 5])
    np.testing.assert_array_equal(np.sort(np.concatenate([kept, held_out])), np.arange(1000))


def test_the_seed_decides() -> None:
    first, again, other = (hold_out(LABELS, 0.1, seed)[1] for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_nothing_is_held_out_at_zero() -> None:
    kept, held_out = hold_out(LABELS, 0.0, seed=1)
    assert (len(kept), len(held_out)) == (1000, 0)


def test_the_shipped_fraction_holds_out_5000_of_mnist() -> None:
    assert len(hold_out(np.arange(60_000, dtype=np.int64).astype(np.uint8) % 10, 0.08333, seed=1)[1]) == 5000


def test_too_small_a_part_is_refused() -> None:
    with pytest.raises(
        PipelineError, match=r"training\.validation_fraction: 0\.001 of 1,000 images cannot be held out"
    ):
        hold_out(LABELS, 0.001, seed=1)
