"""How good a network's probabilities are."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax
from scipy.stats import binomtest
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

BINS = 15
CONFIDENCE = 0.95
DIGITS = 6

Probabilities = NDArray[np.float32]
Logits = NDArray[np.float32]
Labels = NDArray[np.uint8]


class Reliability(NamedTuple):
    """Per bin of confidence: mean confidence, accuracy (both NaN in an empty bin) and number of images."""

    confidence: NDArray[np.float64]
    accuracy: NDArray[np.float64]
    images: NDArray[np.int64]


@dataclass(frozen=True)
class Mistake:
    """One image that the network gets wrong: its index, its label, what was read, and with which probability."""

    index: int
    label: int
    prediction: int
    probability: float


def score(logits: Logits, probabilities: Probabilities, labels: Labels) -> dict[str, Any]:
    """All figures of the test: logits and probabilities (N, classes) against labels (N,)."""
    predictions = probabilities.argmax(axis=1)
    right = int((predictions == labels).sum())
    low, high = proportion_interval(right, len(labels))
    classes = range(probabilities.shape[1])
    precision, recall, f1, support = precision_recall_fscore_support(
        labels, predictions, labels=list(classes), zero_division=0
    )
    return {
        "accuracy": round(right / len(labels), DIGITS),
        "accuracy_low": round(low, DIGITS),
        "accuracy_high": round(high, DIGITS),
        "loss": round(log_loss(logits, labels), DIGITS),
        "errors": len(labels) - right,
        "images": len(labels),
        "calibration_error": round(calibration_error(reliability(probabilities, labels)), DIGITS),
        "per_class": {
            "precision": np.round(precision, DIGITS).tolist(),
            "recall": np.round(recall, DIGITS).tolist(),
            "f1": np.round(f1, DIGITS).tolist(),
            "images": support.astype(int).tolist(),  # floats where nothing is read rightly
        },
        "confusion_matrix": confusion_matrix(labels, predictions, labels=list(classes)).tolist(),
    }


def proportion_interval(right: int, images: int) -> tuple[float, float]:
    """Wilson's interval at 95 % for the share of images that are read right (Wilson, JASA 22, 1927)."""
    interval = binomtest(right, images).proportion_ci(CONFIDENCE, method="wilson")
    return float(interval.low), float(interval.high)


def log_loss(logits: Logits, labels: Labels) -> float:
    """The mean cross-entropy in nats.

    From logits, as Keras computes it inside a compiled function: a network that is sure and wrong gives its label a
    probability that float32 rounds to zero, and bounding that (scikit-learn, Keras outside a function) hides the cost.
    """
    log_probabilities = log_softmax(logits.astype(np.float64), axis=1)
    return float(-log_probabilities[np.arange(len(labels)), labels].mean())


def reliability(probabilities: Probabilities, labels: Labels) -> Reliability:
    """Confidence (the highest probability) against accuracy in 15 bins of equal width, the upper edge inclusive."""
    confidence = probabilities.max(axis=1).astype(np.float64)
    right = probabilities.argmax(axis=1) == labels
    bins = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)
    count = np.bincount(bins, minlength=BINS)
    with np.errstate(invalid="ignore"):
        return Reliability(np.bincount(bins, confidence, BINS) / count, np.bincount(bins, right, BINS) / count, count)


def calibration_error(bins: Reliability) -> float:
    """The expected calibration error: the mean gap between confidence and accuracy, weighted by images.

    Guo et al., On Calibration of Modern Neural Networks, ICML 2017, equation 3.
    """
    gaps = np.nan_to_num(np.abs(bins.accuracy - bins.confidence))
    return float(gaps @ bins.images / bins.images.sum())


def mistakes(probabilities: Probabilities, labels: Labels) -> list[Mistake]:
    """The images that are read wrongly, by index."""
    predictions = probabilities.argmax(axis=1)
    return [
        Mistake(int(index), int(labels[index]), int(predictions[index]), round(float(probabilities[index].max()), 4))
        for index in np.flatnonzero(predictions != labels)
    ]
