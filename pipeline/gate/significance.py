"""Is one set of trained models worse than another on the same images, or is it only luck?

Two things are luck. A training is a draw: with another seed the same recipe ends elsewhere. And the images are a
sample: two recipes that are equally good in the long run get different ones wrong. So the variance of the difference
has three parts: what single readings add, what images add to it, and what seeds add to it; none is negative. It is the
two-way random effects model (Searle, Casella and McCulloch, Variance Components, 1992, chapter 4); test images and
seeds as its two factors: Sellam et al., The MultiBERTs, ICLR 2022. With one run a side and nothing known of its seeds,
the first two parts are the variance that McNemar's test has; what seeds add makes it wider.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import bdtr, stdtr

Wrong = NDArray[np.bool_]  # (runs, images): which images each run of a side gets wrong


class Spread(NamedTuple):
    """What a seed changes in one run of a recipe."""

    std: float  # of the share of wrong images
    disagreement: float  # the share of images that one of two runs gets wrong and the other right
    freedom: float  # degrees of freedom of `std`


Spreads = tuple[Spread | None, Spread | None]  # of the candidate and of the baseline


class Comparison(NamedTuple):
    """How much worse the candidate is, and how likely so much or more is if it is not worse at all."""

    rise: float  # of the share of wrong images
    p_worse: float  # over seeds and images
    p_mcnemar: float  # of the first run of each side alone, over images


class Variance(NamedTuple):
    """The variance that chance gives the mean over one side's runs."""

    readings: float  # if the errors of a run had nothing to do with each other
    seeds: float  # what is beyond that because they do: some seeds are worse throughout
    freedom: float


def compare(candidate: Wrong, baseline: Wrong, images: int, spreads: Spreads) -> Comparison:
    """Compare two sides; images that no run gets wrong may be left out, `images` counts all.

    `spreads`, of the candidate and of the baseline, are what is known from earlier runs.
    Where a side has one run and no such knowledge, McNemar's test of the first runs decides alone.
    """
    rise = candidate.mean(axis=0) - baseline.mean(axis=0)  # per image
    p_mcnemar = mcnemar(candidate[0], baseline[0])
    sides = list(zip((candidate, baseline), spreads, strict=True))
    if any(len(side) == 1 and spread is None for side, spread in sides):
        p_worse = p_mcnemar
    else:
        p_worse = p_over_seeds_and_images(rise, images, [side_variance(side, images, spread) for side, spread in sides])
    return Comparison(float(rise.sum() / images), p_worse, p_mcnemar)


def mcnemar(candidate: NDArray[np.bool_], baseline: NDArray[np.bool_]) -> float:
    """The exact one-sided p value of McNemar's test: how many of the images that one run alone gets wrong are its.

    McNemar, Note on the Sampling Error of the Difference between Correlated Proportions, Psychometrika 12, 1947.
    """
    only_candidate = int((candidate & ~baseline).sum())
    only_baseline = int((baseline & ~candidate).sum())
    return float(bdtr(only_baseline, only_candidate + only_baseline, 0.5))


def p_over_seeds_and_images(rise: NDArray[np.float64], images: int, sides: list[Variance]) -> float:
    """The one-sided p value of the mean `rise` over the images, of which those without any may be left out.

    Student's t with the degrees of freedom of Satterthwaite, Biometrics Bulletin 2, 1946; the correction by one image,
    because errors come in whole ones, is that of Edwards, Psychometrika 13, 1948.
    """
    mean = rise.sum() / images
    readings = sum(side.readings for side in sides)
    # The null hypothesis has mean 0. Subtracting the square of this mean would leave no variance for tiny classes.
    with_images = max(readings, (rise**2).sum() / images**2)
    parts = [(with_images, float(images)), *((side.seeds, side.freedom) for side in sides)]
    variance = sum(part for part, _ in parts)
    if not variance:
        return 1.0  # nothing differs
    freedom = variance**2 / sum(part**2 / freedom for part, freedom in parts)
    return float(stdtr(freedom, -(mean - 1 / images) / math.sqrt(variance)))


def side_variance(side: Wrong, images: int, spread: Spread | None) -> Variance:
    """What chance does to a side's mean, pooled from its runs and from what was measured before.

    Two runs alone say next to nothing of their spread; beside twenty earlier ones they correct it a little.
    """
    runs, own = len(side), len(side) - 1.0
    total = readings = freedom = 0.0
    if own:
        total = own * float(np.var(side.sum(axis=1), ddof=1)) / images**2
        readings = own * float(side.var(axis=0, ddof=1).sum()) / images**2
        freedom = own
    if spread is not None:
        total += spread.freedom * spread.std**2
        readings += spread.freedom * spread.disagreement / 2 / images
        freedom += spread.freedom
    total, readings = total / freedom, readings / freedom
    return Variance(readings / runs, max(0.0, total - readings) / runs, freedom)


def holm(p_values: list[float]) -> list[float]:
    """P values adjusted for being several, in their order: Holm, Scandinavian Journal of Statistics 6, 1979."""
    order = np.argsort(p_values)
    factors = len(p_values) - np.arange(len(p_values))
    adjusted = np.minimum(np.maximum.accumulate(np.array(p_values)[order] * factors), 1)
    return [float(adjusted[place]) for place in np.argsort(order)]
