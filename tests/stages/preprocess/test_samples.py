import numpy as np

from pipeline.core.dataset import Split
from pipeline.stages.preprocess.samples import draw_samples, samples

LABELS = np.repeat(np.arange(3, dtype=np.uint8), 12)
IMAGES = np.tile(60 * (LABELS[:, None, None] + 1), (1, 4, 4)).astype(np.uint8)


def test_samples_show_ten_of_each_class() -> None:
    grid = samples(Split(IMAGES, LABELS), classes=3)
    assert grid.shape == (18, 60)
    np.testing.assert_array_equal(grid[2::6, 2::6], np.repeat([[60], [120], [180]], 10, axis=1))
    assert not grid[::6].any()


def test_a_class_with_few_images_leaves_its_row_black() -> None:
    few = [*np.flatnonzero(LABELS != 1)[:14].tolist(), 12]
    grid = samples(Split(IMAGES[few], LABELS[few]), classes=3)
    np.testing.assert_array_equal(grid[8, 2::6], [120, *[0] * 9])


def test_the_figure_shows_the_samples_enlarged_and_labeled() -> None:
    picture = np.asarray(draw_samples(Split(IMAGES, LABELS), classes=3))
    grid = samples(Split(IMAGES, LABELS), classes=3).repeat(10, axis=0).repeat(10, axis=1)
    np.testing.assert_array_equal(picture[-grid.shape[0] - 8 : -8, -grid.shape[1] - 8 : -8], grid)
    for label in range(3):
        row = picture[44 + 60 * label : 44 + 60 * (label + 1), :36]
        assert row.min() < 100, "the label beside the row"
    assert picture[:44].min() < 100, "the heading"
