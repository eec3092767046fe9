import numpy as np

from pipeline.montage import montage


def test_a_montage_goes_row_by_row_and_is_filled_up() -> None:
    images = np.array([[[1, 2]], [[3, 4]], [[5, 6]]], np.uint8)
    np.testing.assert_array_equal(montage(images, 2, 2), [[1, 2, 3, 4], [5, 6, 0, 0]])
    np.testing.assert_array_equal(montage(images, 1, 4, 9), [[1, 2, 3, 4, 5, 6, 9, 9]])
