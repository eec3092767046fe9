"""Test whether one set of trained models is worse than another on the same images, or whether the difference is chance.

Chance has two sources. Training is random: another seed of the same recipe gives another model. The test images are a
sample: two recipes with the same expected accuracy misclassify different images. The variance of the difference
therefore has three parts, none of them negative: the variance of single predictions, what images add to it, and what
seeds add to it. This is the two-way random effects model (Searle, Casella and McCulloch, Variance Components, 1992,
chapter 4) with test images and seeds as its two factors (Sellam et al., The MultiBERTs, ICLR 2022). With one run per
model and no record of its seeds, the first two parts are the variance of McNemar's test; the seeds' part widens it.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import bdtr, stdtr

Wrong = NDArray[np.bool_]  # (runs, images): whether a run of a model misclassifies an image


class Spread(NamedTuple):
    """The seed-to-seed variation of single runs of a recipe."""

    std: float  # of the error rate
    disagreement: float  # fraction of images that exactly one of two runs misclassifies
    freedom: float  # degrees of freedom of `std`


Spreads = tuple[Spread | None, Spread | None]  # of the candidate and of the baseline


class SignificanceTest(NamedTuple):
    """How much worse the candidate is, and the probability of this rise or a larger one if it is not worse."""

    rise: float  # of the error rate
    p_worse: float  # over seeds and images
    p_mcnemar: float  # of the first run of each model, over images only


class Variance(NamedTuple):
    """The variance of the mean over one model's runs that is due to chance."""

    predictions: float  # if the errors of a run were independent of each other
    seeds: float  # the excess, because they are not: some seeds are worse throughout
    freedom: float


def compare(candidate: Wrong, baseline: Wrong, images: int, spreads: Spreads) -> SignificanceTest:
    """Compare two models. Images that no run misclassifies may be left out; `images` counts all.

    `spreads`, of the candidate and of the baseline, come from earlier runs.
    If a model has one run and no such record, McNemar's test of the first runs decides alone.
    """
    rise = candidate.mean(axis=0) - baseline.mean(axis=0)  # per image
    p_mcnemar = mcnemar(candidate[0], baseline[0])
    models = list(zip((candidate, baseline), spreads, strict=True))
    if any(len(runs) == 1 and spread is None for runs, spread in models):
        p_worse = p_mcnemar
    else:
        p_worse = p_over_seeds_and_images(rise, images, [variance_of(runs, images, spread) for runs, spread in models])
    return SignificanceTest(float(rise.sum() / images), p_worse, p_mcnemar)


def mcnemar(candidate: NDArray[np.bool_], baseline: NDArray[np.bool_]) -> float:
    """The exact one-sided p value of McNemar's test: small if most of the errors of only one run are the candidate's.

    McNemar, Note on the Sampling Error of the Difference between Correlated Proportions, Psychometrika 12, 1947.
    """
    only_candidate = int((candidate & ~baseline).sum())
    only_baseline = int((baseline & ~candidate).sum())
    return float(bdtr(only_baseline, only_candidate + only_baseline, 0.5))


def p_over_seeds_and_images(rise: NDArray[np.float64], images: int, models: list[Variance]) -> float:
    """The one-sided p value of the mean `rise` over the images, of which those with a rise of 0 may be left out.

    Student's t with Satterthwaite's degrees of freedom (Biometrics Bulletin 2, 1946) and Edwards's continuity
    correction (Psychometrika 13, 1948) of one image, because the number of errors is an integer.
    """
    mean = rise.sum() / images
    predictions = sum(each.predictions for each in models)
    # The mean is 0 under the null hypothesis. Subtracting its observed square would leave tiny classes no variance.
    with_images = max(predictions, (rise**2).sum() / images**2)
    parts = [(with_images, float(images)), *((each.seeds, each.freedom) for each in models)]
    variance = sum(part for part, _ in parts)
    if not variance:
        return 1.0  # the models do not differ
    freedom = 1 / sum((part / variance) ** 2 / freedom for part, freedom in parts)  # a square could underflow to 0
    return float(stdtr(freedom, -(mean - 1 / images) / math.sqrt(variance)))


def variance_of(wrong: Wrong, images: int, spread: Spread | None) -> Variance:
    """The variance of a model's mean, pooled from its runs and from its record.

    Two runs alone say next to nothing about their spread; added to twenty earlier runs, they correct it a little.
    """
    runs, own = len(wrong), len(wrong) - 1.0
    total = predictions = freedom = 0.0
    if own:
        total = own * float(np.var(wrong.sum(axis=1), ddof=1)) / images**2
        predictions = own * float(wrong.var(axis=0, ddof=1).sum()) / images**2
        freedom = own
    if spread is not None:
        total += spread.freedom * spread.std**2
        predictions += spread.freedom * spread.disagreement / 2 / images
        freedom += spread.freedom
    total, predictions = total / freedom, predictions / freedom
    return Variance(predictions / runs, max(0.0, total - predictions) / runs, freedom)


def holm(p_values: list[float]) -> list[float]:
    """P values adjusted for multiple tests, in their order: Holm, Scandinavian Journal of Statistics 6, 1979."""
    order = np.argsort(p_values)
    factors = len(p_values) - np.arange(len(p_values))
    adjusted = np.minimum(np.maximum.accumulate(np.array(p_values)[order] * factors), 1)
    return [float(adjusted[place]) for place in np.argsort(order)]
