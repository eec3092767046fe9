"""The statistics of the verdict, on counts small enough to check by hand."""

import math

import numpy as np
import pytest

from pipeline.commands.gate.significance import Spread, compare, holm, mcnemar, variance_of

UNKNOWN = (None, None)
MANY = 1e6  # degrees of freedom, at which Student's t is the normal distribution


def wrong(*runs: str) -> np.ndarray[tuple[int, int], np.dtype[np.bool_]]:
    """Parse one string per run and one character per image; x is misclassified."""
    return np.array([[mark == "x" for mark in run] for run in runs])


def normal(difference: float, variance: float) -> float:
    """The probability of this difference or a larger one."""
    return math.erfc(difference / math.sqrt(variance) / math.sqrt(2)) / 2


def test_mcnemar_counts_the_errors_of_only_one_run() -> None:
    candidate, baseline = wrong("xxxxxxxxxx..xx")[0], wrong("..........xxxx")[0]
    assert mcnemar(candidate, baseline) == pytest.approx((66 + 12 + 1) / 2**12), "10 of 12 coins, or more"
    assert mcnemar(baseline, candidate) == pytest.approx(1 - (12 + 1) / 2**12), "2 of 12 coins, or more"
    assert mcnemar(candidate, candidate) == 1


def test_holm_multiplies_and_never_decreases() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1, 1]


def test_without_a_record_two_single_runs_are_compared_by_mcnemar_alone() -> None:
    found = compare(wrong("xxxxx."), wrong(".....x"), 100, UNKNOWN)
    assert found.rise == pytest.approx(0.04)
    assert found.p_worse == found.p_mcnemar == pytest.approx(7 / 64)


def test_the_variance_is_the_sum_of_predictions_images_and_seeds() -> None:
    # By hand: predictions 0.02 / 2 / 100 per model; images (0.05 - 0.03²) / 100 in all; seeds 0.02² - 0.0001 per model.
    found = compare(wrong("xxxx."), wrong("....x"), 100, (Spread(0.02, 0.02, MANY),) * 2)
    variance = (0.05 - 0.03**2) / 100 + 2 * (0.02**2 - 0.0001)
    assert found.p_worse == pytest.approx(normal(0.03 - 0.01, variance), rel=0.02)


def test_no_part_of_the_variance_is_negative() -> None:
    # Fewer images differ than a disagreement of 0.9 implies, and seeds spread less: the predictions' part remains.
    found = compare(wrong("xxx"), wrong("..."), 100, (Spread(0.01, 0.9, MANY),) * 2)
    assert found.p_worse == pytest.approx(normal(0.03 - 0.01, 2 * 0.9 / 2 / 100), rel=0.02)


def test_one_image_of_a_class_of_one_proves_nothing() -> None:
    none = (Spread(0.0, 0.0, 19),) * 2
    assert compare(wrong("x"), wrong("."), 1, none).p_worse == pytest.approx(0.5), "as McNemar's test says"
    assert compare(wrong("."), wrong("."), 1, none).p_worse == 1
    assert compare(wrong("xx"), wrong(".."), 2, none).p_worse == pytest.approx(0.25, abs=0.05)


@pytest.mark.parametrize("images", [1, 2, 5, 20])
@pytest.mark.parametrize(("share", "uneven"), [(0.05, 0.0), (0.3, 0.0), (0.3, 0.1)])
def test_equal_runs_are_stopped_at_the_nominal_rate_on_few_images(images: int, share: float, uneven: float) -> None:
    """Pairs of runs of one recipe: images differ in difficulty, and some seeds are worse throughout."""
    random, trials, limit = np.random.default_rng(images), 3000, 0.025
    hard = np.clip(random.normal(share, share / 2, images), 0, 1)

    def run(count: int) -> np.ndarray[tuple[int, int], np.dtype[np.bool_]]:
        chances = np.clip(hard + random.normal(0, uneven, (count, 1)), 0, 1)
        return np.asarray(random.random((count, images)) < chances)

    stopped = 0
    for _ in range(trials):
        earlier = run(20)
        std = float(np.std(earlier.sum(axis=1) / images, ddof=1))
        disagreement = float(2 * earlier.var(axis=0, ddof=1).sum() / images)
        spreads = (Spread(std, disagreement, 19),) * 2
        stopped += compare(run(1), run(1), images, spreads).p_worse <= limit
    assert stopped / trials <= limit + 3 * math.sqrt(limit * (1 - limit) / trials)


def test_a_recipe_with_more_seed_noise_must_drop_further() -> None:
    candidate, baseline = wrong("x" * 14 + ".."), wrong("." * 14 + "xx")
    p_values = [
        compare(candidate, baseline, 1000, (Spread(std, 0.01, 19),) * 2).p_worse for std in (0.001, 0.005, 0.02)
    ]
    assert p_values == sorted(p_values)
    assert p_values[0] < 0.01
    assert p_values[2] > 0.05


def test_several_runs_estimate_their_own_spread() -> None:
    found = variance_of(wrong("xxxx....", "xxxx....", "......xx"), 100, None)
    assert found.predictions == pytest.approx((4 * (1 / 3) + 2 * (1 / 3)) / 100**2 / 3)
    assert found.seeds == 0, "4, 4 and 2 errors differ less than independent errors would"
    found = variance_of(wrong("xxxxxx", "xxx...", "......"), 100, None)
    assert found.seeds == pytest.approx((0.03**2 - found.predictions * 3) / 3)
    assert found.freedom == 2


def test_a_record_and_several_runs_are_pooled_by_degrees_of_freedom() -> None:
    found = variance_of(wrong("xxxxxx", "xxx...", "......"), 100, Spread(0.01, 0.001, 18))
    predictions = (2 * 6 * (1 / 3) / 100**2 + 18 * 0.001 / 2 / 100) / 20
    assert found.predictions == pytest.approx(predictions / 3)
    assert found.seeds == pytest.approx(((2 * 0.03**2 + 18 * 0.01**2) / 20 - predictions) / 3)
    assert found.freedom == 20


def test_two_lucky_runs_do_not_hide_a_drop_that_the_record_shows() -> None:
    """One run loses half a point and the other does not."""
    known, baseline = Spread(0.0007, 0.0117, 19), wrong("x" * 160 + "." * 60, "x" * 140 + "." * 80)
    candidate = wrong("x" * 220, "x" * 180 + "." * 40)
    assert compare(candidate, baseline, 10_000, (known, known)).p_worse < 0.01
    assert compare(candidate, baseline, 10_000, UNKNOWN).p_worse > 0.05


def test_a_record_of_one_side_and_several_runs_of_the_other_suffice() -> None:
    found = compare(wrong("xxxx.", "xxx.."), wrong("....x"), 100, (None, Spread(0.01, 0.02, 19)))
    assert found.p_worse != found.p_mcnemar
    found = compare(wrong("xxxx.", "xxx.."), wrong("....x"), 100, (Spread(0.01, 0.02, 19), None))
    assert found.p_worse == found.p_mcnemar, "the single run has no record"


def test_a_total_failure_is_significant_with_enough_images() -> None:
    all_wrong, none_wrong = wrong("x" * 200, "x" * 200), wrong("." * 200, "." * 200)
    assert compare(all_wrong, none_wrong, 200, UNKNOWN).p_worse < 1e-9
    assert compare(all_wrong[:, :2], none_wrong[:, :2], 2, UNKNOWN).p_worse > 0.2


def test_equal_runs_are_not_worse() -> None:
    same = wrong("xx..", "xx..")
    assert compare(same, same, 100, UNKNOWN).p_worse == 1
    assert compare(wrong("xx..")[:, :0], wrong("xx..")[:, :0], 100, UNKNOWN) == (0, 1, 1)


@pytest.mark.parametrize("runs", [1, 3])
def test_an_unchanged_recipe_is_stopped_at_the_rate_alpha(runs: int) -> None:
    """Images of all difficulties, and some seeds that are worse throughout."""
    random = np.random.default_rng(0)
    difficulty = np.concatenate([random.uniform(0, 1, 300), np.zeros(1700)])

    def train(count: int) -> np.ndarray[tuple[int, int], np.dtype[np.bool_]]:
        luck = random.normal(1, 0.05, (count, 1))
        return np.asarray(random.random((count, len(difficulty))) < difficulty * luck)

    known = train(400)
    spread = Spread(
        float((known.sum(axis=1) / 2000).std(ddof=1)), float(2 * known.var(axis=0, ddof=1).sum() / 2000), 399
    )
    fired = [compare(train(runs), train(runs), 2000, (spread, spread)).p_worse <= 0.05 for _ in range(2000)]
    assert 0.01 < np.mean(fired) < 0.06
