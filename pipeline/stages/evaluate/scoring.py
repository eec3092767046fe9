"""Metrics of a network's predicted probabilities.

Plain NumPy: importing scikit-learn and SciPy for these few sums takes half as long as importing Keras.
"""

from dataclasses import dataclass
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.core.records import ClassFigures, TestFigures

BINS = 15
CONFIDENCE = 0.95
DIGITS = 6

Probabilities = NDArray[np.float32]
Logits = NDArray[np.float32]
Labels = NDArray[np.uint8]


class Reliability(NamedTuple):
    """Mean confidence, accuracy (both NaN in an empty bin) and number of images per confidence bin."""

    confidence: NDArray[np.float64]
    accuracy: NDArray[np.float64]
    images: NDArray[np.int64]


@dataclass(frozen=True)
class Mistake:
    """A misclassified image: its index, its label, the predicted class and the probability of that class."""

    index: int
    label: int
    prediction: int
    probability: float


def score(logits: Logits, probabilities: Probabilities, labels: Labels) -> TestFigures:
    """Compute all test metrics from logits and probabilities (N, classes) and labels (N,)."""
    predictions = probabilities.argmax(axis=1)
    right = int((predictions == labels).sum())
    low, high = proportion_interval(right, len(labels))
    matrix = confusion_matrix(labels, predictions, probabilities.shape[1])
    hits, of_class, as_class = matrix.diagonal(), matrix.sum(axis=1), matrix.sum(axis=0)
    return TestFigures(
        accuracy=round(right / len(labels), DIGITS),
        accuracy_low=round(low, DIGITS),
        accuracy_high=round(high, DIGITS),
        loss=round(log_loss(logits, labels), DIGITS),
        errors=len(labels) - right,
        images=len(labels),
        calibration_error=round(calibration_error(reliability(probabilities, labels)), DIGITS),
        per_class=ClassFigures(
            precision=_shares(hits, as_class),
            recall=_shares(hits, of_class),
            f1=_shares(2 * hits, of_class + as_class),
            images=of_class.tolist(),
        ),
        confusion_matrix=matrix.tolist(),
    )


def confusion_matrix(labels: Labels, predictions: NDArray[np.intp], classes: int) -> NDArray[np.int64]:
    """Count the images of each class (row) that were classified as each class (column)."""
    cells = labels.astype(np.intp) * classes + predictions
    return np.bincount(cells, minlength=classes**2).reshape(classes, classes)


def _shares(parts: NDArray[np.int64], wholes: NDArray[np.int64]) -> list[float]:
    """Rounded quotients; 0 where the divisor is 0."""
    quotients: list[float] = np.round(parts / np.maximum(wholes, 1), DIGITS).tolist()
    return quotients


def proportion_interval(right: int, images: int) -> tuple[float, float]:
    """Wilson's 95 % interval for the share of correctly classified images (Wilson, JASA 22, 1927)."""
    z, share = NormalDist().inv_cdf((1 + CONFIDENCE) / 2), right / images
    shrunk = 1 + z * z / images
    center = (share + z * z / (2 * images)) / shrunk
    half = z * (share * (1 - share) / images + z * z / (4 * images * images)) ** 0.5 / shrunk
    return (max(center - half, 0.0) if right else 0.0), (min(center + half, 1.0) if right < images else 1.0)


def log_loss(logits: Logits, labels: Labels) -> float:
    """Mean cross-entropy in nats.

    Computed from logits, as in Keras's compiled functions: float32 rounds the label's probability to zero for a
    confident error, and clipping the probability (scikit-learn, Keras outside a function) hides the cost.
    """
    exact = logits.astype(np.float64)
    log_probabilities = exact - np.logaddexp.reduce(exact, axis=1, keepdims=True)
    return float(-log_probabilities[np.arange(len(labels)), labels].mean())


def reliability(probabilities: Probabilities, labels: Labels) -> Reliability:
    """Bin confidence (the highest probability) and accuracy in 15 bins of equal width that include their upper edge."""
    confidence = probabilities.max(axis=1).astype(np.float64)
    right = probabilities.argmax(axis=1) == labels
    bins = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)
    count = np.bincount(bins, minlength=BINS)
    with np.errstate(invalid="ignore"):
        return Reliability(np.bincount(bins, confidence, BINS) / count, np.bincount(bins, right, BINS) / count, count)


def calibration_error(bins: Reliability) -> float:
    """Expected calibration error: the mean gap between confidence and accuracy, weighted by images.

    Guo et al., On Calibration of Modern Neural Networks, ICML 2017, equation 3.
    """
    gaps = np.nan_to_num(np.abs(bins.accuracy - bins.confidence))
    return float(gaps @ bins.images / bins.images.sum())


def mistakes(probabilities: Probabilities, labels: Labels) -> list[Mistake]:
    """List the misclassified images by index."""
    predictions = probabilities.argmax(axis=1)
    return [
        Mistake(int(index), int(labels[index]), int(predictions[index]), round(float(probabilities[index].max()), 4))
        for index in np.flatnonzero(predictions != labels)
    ]
