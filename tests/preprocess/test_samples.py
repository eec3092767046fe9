import numpy as np

from pipeline.dataset import Split
from pipeline.pictures import montage
from pipeline.preprocess.samples import draw_samples


def test_a_montage_goes_row_by_row() -> None:
    images = np.array([[[1]], [[2]], [[3]]], np.uint8)
    np.testing.assert_array_equal(montage(images, 2), [[0, 0, 0, 0], [0, 1, 0, 2], [0, 0, 0, 0], [0, 3, 0, 0]])


def test_samples_show_ten_of_each_class() -> None:
    labels = np.repeat(np.arange(3, dtype=np.uint8), 12)
    images = np.tile(labels[:, None, None] + 1, (1, 4, 4)).astype(np.uint8)
    figure = draw_samples(Split(images, labels), classes=3)
    picture = figure.axes[0].images[0].get_array()
    assert picture is not None
    np.testing.assert_array_equal(picture[1::5, 1::5], np.repeat([[1], [2], [3]], 10, axis=1))
