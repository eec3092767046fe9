import math
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow
from numpy.typing import NDArray

from pipeline.stages.train.augmentation import RandomAffine, RandomShift, inverse_maps

SIDE = 9
CENTER = SIDE // 2
NOTHING = {"angle": 0, "scale_x": 1, "scale_y": 1, "shear": 0, "shift_x": 0, "shift_y": 0}


def dot(row: int, column: int) -> NDArray[np.float32]:
    image = np.zeros((1, SIDE, SIDE, 1), np.float32)
    image[0, row, column] = 200
    return image


def moved(image: NDArray[np.float32], **change: float) -> NDArray[np.float32]:
    values = {name: np.array([value], np.float32) for name, value in (NOTHING | change).items()}
    maps = inverse_maps(**values, height=SIDE, width=SIDE)
    changed = keras.ops.image.affine_transform(image, maps, data_format="channels_last")
    return np.asarray(keras.ops.convert_to_numpy(changed))


@pytest.mark.parametrize(
    ("change", "came_from"),
    [
        ({}, (2, 5)),
        ({"shift_x": 1}, (2, 6)),
        ({"shift_y": -2}, (0, 5)),
        ({"angle": math.pi / 2}, (CENTER + 1, CENTER + 2)),
        ({"angle": math.pi}, (6, 3)),
        ({"scale_x": 2}, (2, CENTER + 2)),
        ({"scale_y": 2}, (0, 5)),
        ({"shear": 1}, (2, 3)),
        ({"shear": 1, "shift_x": 2, "shift_y": 1}, (3, 5)),
        ({"angle": math.pi / 2, "scale_x": 2}, (CENTER + 2, CENTER + 2)),
    ],
)
def test_the_pixel_in_row_2_and_column_5_comes_from_the_right_place(
    change: dict[str, float], came_from: tuple[int, int]
) -> None:
    outcome = moved(dot(*came_from), **change)[0, :, :, 0]
    assert outcome[2, 5] == pytest.approx(200, abs=0.1)


@pytest.mark.parametrize("change", [{}, {"angle": 1.0}, {"scale_x": 1.3, "scale_y": 0.8}, {"shear": 0.5}])
def test_the_center_moves_only_if_it_is_shifted(change: dict[str, float]) -> None:
    assert moved(dot(CENTER, CENTER), **change)[0, CENTER, CENTER, 0] == pytest.approx(200, abs=0.1)


def test_pixels_from_beyond_the_edge_are_black() -> None:
    white = np.full((1, SIDE, SIDE, 1), 255, np.float32)
    outcome = moved(white, shift_x=3)[0, :, :, 0]
    assert (outcome[:, :-3] == 255).all()
    assert (outcome[:, -3:] == 0).all()


def digits(count: int = 64, height: int = 28, width: int = 28) -> NDArray[np.uint8]:
    images = np.zeros((count, height, width), np.uint8)
    images[:, height // 4 : -height // 4, width // 4 : -width // 4] = 250
    return images


def changed(images: NDArray[np.uint8], **amounts: float) -> NDArray[Any]:
    return np.asarray(keras.ops.convert_to_numpy(RandomAffine(**amounts)(images, training=True)))


def test_images_change_only_in_training() -> None:
    amounts = {"rotation": 10, "scale": 0.1, "shear": 0.1, "shift": 2}
    np.testing.assert_array_equal(RandomAffine(**amounts)(digits(), training=False), digits())
    assert (changed(digits(), **amounts) != digits()).any(axis=(1, 2)).all()


def test_amounts_of_zero_change_nothing() -> None:
    images = np.random.default_rng(0).integers(0, 256, (64, 28, 20)).astype(np.uint8)
    np.testing.assert_array_equal(changed(images), images)


def test_bytes_stay_bytes_and_every_image_gets_its_own_amounts() -> None:
    outcome = changed(digits(), shift=3)
    assert outcome.dtype == np.uint8
    assert len({image.tobytes() for image in outcome}) == len(outcome)


def centers_of_mass(images: NDArray[Any]) -> NDArray[np.float64]:
    weights = images.astype(float)
    rows, columns = np.mgrid[: images.shape[1], : images.shape[2]]
    sums = weights.sum(axis=(1, 2))
    return np.stack([(weights * rows).sum(axis=(1, 2)) / sums, (weights * columns).sum(axis=(1, 2)) / sums])


def test_shifts_cover_the_allowed_range() -> None:
    keras.utils.set_random_seed(1)
    images = digits(2000, 28, 20)
    away = centers_of_mass(changed(images, shift=2)) - centers_of_mass(images)
    assert abs(away).max() <= 2.01
    assert abs(away).max(axis=1) == pytest.approx([2, 2], abs=0.05)
    assert away.mean(axis=1) == pytest.approx([0, 0], abs=0.1)
    assert away.std(axis=1) == pytest.approx([2 / math.sqrt(3)] * 2, abs=0.1)  # of a uniform distribution


def test_rotations_are_degrees() -> None:
    keras.utils.set_random_seed(1)
    bar = np.zeros((500, 29, 29), np.uint8)
    bar[:, 4:25, 14] = 255
    tops = changed(bar, rotation=10)[:, 4:7].astype(float).sum(axis=1)
    columns = (tops * np.arange(29)).sum(axis=1) / tops.sum(axis=1) - 14
    angles = np.degrees(np.arctan2(columns, 9))
    assert abs(angles).max() == pytest.approx(10, abs=1)


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.tensorflow)])
def test_whole_pixel_shifts_are_equally_likely(compiled: bool) -> None:
    keras.utils.set_random_seed(1)
    images = np.random.default_rng(0).integers(1, 256, (3000, 6, 5)).astype(np.uint8)
    shift: Any = RandomShift(1)
    if compiled:
        shift = tensorflow.function(shift, jit_compile=True)
    outcome = keras.ops.convert_to_numpy(shift(images, training=True))
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1)))
    found = np.zeros((3, 3), int)
    for index, image in enumerate(outcome):
        matches = [
            (row, column)
            for row in range(3)
            for column in range(3)
            if (padded[index, row : row + 6, column : column + 5] == image).all()
        ]
        assert len(matches) == 1
        found[matches[0]] += 1
    assert outcome.dtype == np.uint8
    assert found == pytest.approx(np.full((3, 3), 3000 / 9), abs=5 * math.sqrt(3000 / 9))
    np.testing.assert_array_equal(RandomShift(1)(images, training=False), images)


@pytest.mark.parametrize("pixels", [0, -1, 0.5])
def test_a_shift_must_be_a_positive_whole_number(pixels: Any) -> None:
    with pytest.raises(ValueError, match="pixels must be a whole number above 0"):
        RandomShift(pixels)


@pytest.mark.parametrize("amounts", [{"rotation": -1}, {"scale": 1.0}, {"shear": -0.1}, {"shift": -1}])
def test_invalid_amounts_are_rejected(amounts: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must not be negative, and scale must be below 1"):
        RandomAffine(**amounts)


@pytest.mark.parametrize("layer", [RandomAffine(rotation=10, shift=2), RandomShift(3)])
def test_no_two_calls_are_the_same(layer: keras.Layer) -> None:
    first, second = (keras.ops.convert_to_numpy(layer(digits(), training=True)) for _ in range(2))
    assert (first != second).any()
