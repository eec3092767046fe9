import numpy as np

from pipeline.core.montage import montage


def test_a_montage_is_filled_row_by_row_and_padded() -> None:
    images = np.array([[[1, 2], [3, 4]], [[5, 6], [7, 8]], [[10, 11], [12, 13]]], np.uint8)
    np.testing.assert_array_equal(montage(images, 2, 2), [[1, 2, 5, 6], [3, 4, 7, 8], [10, 11, 0, 0], [12, 13, 0, 0]])
    np.testing.assert_array_equal(montage(images, 1, 4, 9), [[1, 2, 5, 6, 10, 11, 9, 9], [3, 4, 7, 8, 12, 13, 9, 9]])
