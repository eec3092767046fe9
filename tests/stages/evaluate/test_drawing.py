from pathlib import Path

import numpy as np

from pipeline.core.pictures import save_picture
from pipeline.stages.evaluate.drawing import draw_confusion, draw_curves, draw_mistakes, draw_reliability
from pipeline.stages.evaluate.scoring import Mistake, reliability


def test_curves_show_training_and_validation() -> None:
    history = {"epoch": [1.0, 2.0], "loss": [2.0, 1.0], "accuracy": [0.5, 0.6], "val_loss": [3.0, 2.0]}
    loss, accuracy = draw_curves(history | {"val_accuracy": [0.4, 0.5]}, "validation").axes
    assert [line.get_label() for line in loss.lines] == ["training", "validation"]
    np.testing.assert_array_equal(accuracy.lines[0].get_ydata(), [0.5, 0.6])
    assert len(draw_curves({"epoch": [1.0], "loss": [1.0], "accuracy": [0.5]}, "none").axes[0].lines) == 1


def test_the_confusion_matrix_shows_every_count() -> None:
    axes = draw_confusion(np.array([[7, 1], [0, 5]])).axes[0]
    assert [text.get_text() for text in axes.texts] == ["7", "1", "·", "5"]
    assert axes.get_title() == "1 of 13 images misclassified"


def test_the_most_confident_errors_come_first() -> None:
    images = np.arange(3, dtype=np.uint8)[:, None, None] * np.ones((1, 2, 2), np.uint8)
    figure = draw_mistakes(images, [Mistake(1, 3, 5, 0.6), Mistake(2, 4, 9, 0.9)])
    (axes,) = figure.axes
    assert [text.get_text() for text in axes.texts] == ["4 → 9\n90.00%", "3 → 5\n60.00%"]
    for text, level in zip(axes.texts, (2, 1), strict=True):
        column, bottom = (round(float(place)) for place in text.get_position())
        assert np.asarray(axes.images[0].get_array())[bottom + 1, column] == level, "each title is above its image"


def test_errors_fill_the_grid_row_by_row() -> None:
    images = np.arange(12, dtype=np.uint8)[:, None, None] * np.ones((1, 2, 2), np.uint8)
    figure = draw_mistakes(images, [Mistake(index, 1, 2, 1 - index / 100) for index in range(12)])
    first, ninth = (figure.axes[0].texts[place].get_position() for place in (0, 8))
    assert (first[0], first[1] < ninth[1]) == (ninth[0], True), "eight per row"


def test_results_without_errors_can_be_drawn(tmp_path: Path) -> None:
    images = np.zeros((2, 2, 2), np.uint8)
    bins = reliability(np.array([[1.0, 0.0]] * 2, np.float32), np.array([0, 0], np.uint8))
    for index, figure in enumerate(
        (draw_mistakes(images, []), draw_reliability(bins, 0.0), draw_confusion(np.array([[2, 0], [0, 0]])))
    ):
        save_picture(tmp_path / f"{index}.png", figure)
        assert (tmp_path / f"{index}.png").read_bytes().startswith(b"\x89PNG")
