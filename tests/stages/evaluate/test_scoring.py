import math

import keras
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import log_softmax
from scipy.stats import binomtest
from sklearn import metrics

from pipeline.stages.evaluate.scoring import (
    Mistake,
    calibration_error,
    log_loss,
    mistakes,
    proportion_interval,
    reliability,
    score,
)

# Four images: three correct, with probabilities 0.9, 0.8 and 0.6, and one misclassified, with 0.7.
PROBABILITIES = np.array([[0.9, 0.05, 0.05], [0.1, 0.8, 0.1], [0.2, 0.2, 0.6], [0.7, 0.1, 0.2]], np.float32)
LOGITS = np.log(PROBABILITIES) + 3
LABELS = np.array([0, 1, 2, 1], np.uint8)


def test_metrics_of_four_images() -> None:
    figures = score(LOGITS, PROBABILITIES, LABELS)
    assert (figures.accuracy, figures.errors, figures.images) == (0.75, 1, 4)
    assert figures.loss == pytest.approx(-np.log([0.9, 0.8, 0.6, 0.1]).mean(), abs=1e-6)
    assert figures.confusion_matrix == [[1, 0, 0], [1, 1, 0], [0, 0, 1]]
    assert figures.per_class.model_dump() == {
        "precision": [0.5, 1.0, 1.0],
        "recall": [1.0, 0.5, 1.0],
        "f1": [0.666667, 0.666667, 1.0],
        "images": [1, 2, 1],
    }
    # Each image is alone in its bin: the mean of |1 - 0.9|, |1 - 0.8|, |1 - 0.6| and |0 - 0.7|.
    assert figures.calibration_error == pytest.approx(0.35, abs=1e-6)


def test_the_interval_follows_wilsons_formula() -> None:
    figures = score(LOGITS, PROBABILITIES, LABELS)
    n, p, z = 4, 0.75, 1.959963984540054
    center, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    assert figures.accuracy_low == pytest.approx((center - half) / (1 + z * z / n), abs=1e-6)
    assert figures.accuracy_high == pytest.approx((center + half) / (1 + z * z / n), abs=1e-6)


@pytest.mark.parametrize("images", [1, 2, 7, 500, 10_000])
def test_the_interval_matches_scipy(images: int) -> None:
    for right in sorted({0, 1, images // 3, images - 1, images}):
        interval = binomtest(right, images).proportion_ci(0.95, method="wilson")
        assert proportion_interval(right, images) == pytest.approx((interval.low, interval.high), abs=1e-12)


@pytest.mark.parametrize(("classes", "present", "predicted"), [(10, 10, 10), (10, 7, 10), (10, 10, 3), (3, 1, 1)])
def test_metrics_match_scikit_learn_and_scipy(classes: int, present: int, predicted: int) -> None:
    rng = np.random.default_rng(classes + present + predicted)
    labels = rng.integers(0, present, 400).astype(np.uint8)
    logits = rng.normal(0, 30, (400, classes)).astype(np.float32)
    logits[:, predicted:] -= 1000  # never predicted
    logits[np.arange(200), labels[:200]] += 40
    probabilities = np.exp(log_softmax(logits, axis=1))
    figures, guesses, names = score(logits, probabilities, labels), probabilities.argmax(axis=1), list(range(classes))
    precision, recall, f1, images = metrics.precision_recall_fscore_support(
        labels, guesses, labels=names, zero_division=0
    )
    for name, expected in (("precision", precision), ("recall", recall), ("f1", f1)):
        assert getattr(figures.per_class, name) == pytest.approx(expected, abs=5e-7), name
    assert figures.per_class.images == images.astype(int).tolist()
    assert figures.confusion_matrix == metrics.confusion_matrix(labels, guesses, labels=names).tolist()
    assert figures.accuracy == pytest.approx(metrics.accuracy_score(labels, guesses), abs=5e-7)
    exact = log_softmax(logits.astype(np.float64), axis=1)[np.arange(400), labels]
    assert log_loss(logits, labels) == pytest.approx(-exact.mean(), rel=1e-12)


def test_a_class_without_images_has_zero_recall() -> None:
    figures = score(LOGITS[:2], PROBABILITIES[:2], LABELS[:2])
    assert figures.per_class.recall == [1.0, 1.0, 0.0]


def test_the_loss_of_a_confident_error_is_not_clipped() -> None:
    logits: NDArray[np.float32] = np.array([[200.0, 0.0]], np.float32)
    assert log_loss(logits, np.array([1], np.uint8)) == pytest.approx(200)


def test_the_loss_matches_keras() -> None:
    rng = np.random.default_rng(0)
    images, labels = rng.normal(size=(500, 20)).astype(np.float32), rng.integers(0, 3, 500).astype(np.uint8)
    network = keras.Sequential([keras.Input((20,)), keras.layers.Dense(3, name="logits"), keras.layers.Softmax()])
    network.set_weights([40 * weight for weight in network.get_weights()])
    network.compile(loss="sparse_categorical_crossentropy")
    logits = keras.Model(network.inputs, network.get_layer("logits").output).predict(images, verbose=0)
    assert log_loss(logits, labels) == pytest.approx(network.evaluate(images, labels, verbose=0), rel=1e-5)


def test_bins_include_their_upper_edge() -> None:
    confidence = np.array([1 / 15, 1 / 15 + 1e-9, 1.0])
    probabilities = np.stack([confidence, np.zeros(3)], axis=1)
    bins = reliability(probabilities, np.zeros(3, np.uint8))
    np.testing.assert_array_equal(np.flatnonzero(bins.images), [0, 1, 14])


def test_confidence_equal_to_accuracy_is_calibrated() -> None:
    probabilities = np.tile(np.array([[0.75, 0.25]], np.float32), (4, 1))
    assert calibration_error(reliability(probabilities, np.array([0, 0, 0, 1], np.uint8))) == pytest.approx(0)


def test_misclassified_images_are_listed() -> None:
    assert mistakes(PROBABILITIES, LABELS) == [Mistake(3, 1, 0, 0.7)]
