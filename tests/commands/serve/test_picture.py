import io

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from pipeline.commands.serve.picture import FAINT, light_on_dark, read_picture
from pipeline.core.errors import PipelineError
from pipeline.stages.preprocess.idx import read_idx
from tests.conftest import BESIDE

Gray = NDArray[np.uint8]


def png(gray: Gray) -> bytes:
    content = io.BytesIO()
    Image.fromarray(gray).save(content, "PNG")
    return content.getvalue()


def canvas(row: int, column: int, height: int, width: int) -> Gray:
    gray = np.zeros((280, 280), np.uint8)
    gray[row : row + height, column : column + width] = 255
    return gray


def test_sixteen_bits_per_pixel_are_reduced_to_eight() -> None:
    deep = np.full((280, 280), 60_000, np.uint16)
    deep[50:200, 120:160] = 20_000
    plain = np.full((280, 280), 234, np.uint8)
    plain[50:200, 120:160] = 78
    content = io.BytesIO()
    Image.fromarray(deep).save(content, "PNG")
    np.testing.assert_array_equal(read_picture(content.getvalue()), read_picture(png(plain)))


def specks() -> Gray:
    """Two pixels so far apart that they vanish when the picture is scaled down."""
    gray = np.zeros((600, 600), np.uint8)
    gray[100, 100] = gray[500, 500] = 255
    return gray


@pytest.mark.parametrize(("row", "column"), [(0, 0), (35, 99), (180, 230)])
def test_a_bar_is_fitted_into_20_pixels_and_centered_by_mass(row: int, column: int) -> None:
    image = read_picture(png(canvas(row, column, 100, 50)))
    assert image.shape == (28, 28)
    rows, columns = np.nonzero(image)
    # 20×10 pixels with the mass at 9.5 and 4.5: shifted by 4.5 and 9.5, which Python rounds to the nearest even number.
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (4, 23, 10, 19)
    assert image[rows, columns].min() == 255


def test_the_center_of_mass_is_centered_not_the_bounding_box() -> None:
    gray = canvas(100, 100, 40, 100)
    gray[60:100, 100:120] = 255  # an L lying on its back, heavier on the left
    rows, columns = np.nonzero(read_picture(png(gray)))
    assert columns.max() - columns.min() + 1 == 20
    assert columns.min() > 4, "the bounding box would start at 4"
    assert rows.min() < 6, "the bounding box would start at 6"


def test_dark_on_light_gives_the_same_image_as_light_on_dark() -> None:
    gray = canvas(50, 80, 150, 60)
    assert np.array_equal(read_picture(png(255 - gray)), read_picture(png(gray)))


def test_gray_pencil_is_stretched_and_paper_grain_removed() -> None:
    grain = np.random.default_rng(1).integers(-8, 9, (280, 280))
    sheet = np.where(canvas(50, 80, 150, 60) > 0, 120, 215 + grain).astype(np.uint8)
    image = read_picture(png(sheet))
    assert image.max() == 255
    assert np.array_equal(image > 0, read_picture(png(canvas(50, 80, 150, 60))) > 0)


def test_transparent_pixels_are_background() -> None:
    rgba = np.zeros((280, 280, 4), np.uint8)  # transparent black
    rgba[canvas(50, 80, 150, 60) > 0] = (0, 0, 200, 255)
    assert np.array_equal(read_picture(png(rgba)) > 0, read_picture(png(canvas(50, 80, 150, 60))) > 0)


def test_a_thin_stroke_on_a_large_sheet_is_kept() -> None:
    sheet = np.full((3500, 2500), 255, np.uint8)
    sheet[1000:2600, 1200:1208] = 30
    image = read_picture(png(sheet))
    assert image.max() == 255
    assert np.ptp(np.nonzero(image)[0]) + 1 == 20


@pytest.mark.parametrize(("height", "width"), [(1, 200), (200, 1), (1, 1)])
def test_a_line_stays_a_line(height: int, width: int) -> None:
    image = read_picture(png(canvas(5, 5, height, width)))
    rows, columns = np.nonzero(image)
    longest = max(np.ptp(rows), np.ptp(columns)) + 1
    assert longest == 20


@pytest.mark.skipif(not BESIDE.is_dir(), reason="needs MNIST's four files next to the project")
def test_mnist_images_are_reproduced() -> None:
    kept = 0
    for image in read_idx(BESIDE / "train-images-idx3-ubyte.gz", 3)[:200]:
        sheet = np.zeros((400, 400), np.uint8)
        sheet[13:293, 101:381] = np.kron(image, np.ones((10, 10), np.uint8))
        kept += (
            np.abs(image.astype(int) - read_picture(png(sheet))).mean() < 5
        )  # shifted by one pixel, it is at least 18
    assert kept >= 190, "all except those whose center of mass lies between two pixels"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is not a valid PNG"),
        (b"GIF89a", "the file is not a valid PNG"),
        (png(canvas(50, 80, 150, 60))[:100], "the file is not a valid PNG"),
        (png(np.zeros((5000, 2), np.uint8)), "the picture is 2×5000 pixels: the limit is 4096 per side"),
        (png(np.zeros((280, 280), np.uint8)), "the picture is blank"),
        (png(np.full((280, 280), 255, np.uint8)), "the picture is blank"),
        (png(np.full((280, 280), 130, np.uint8)), "the picture is blank"),
        (png(np.zeros((1, 1), np.uint8)), "the picture is blank"),
        (png(specks()), "the picture is blank"),
    ],
    ids=["empty", "gif", "half", "long", "black", "white", "gray", "dot", "specks"],
)
def test_pictures_without_a_digit_are_rejected(content: bytes, message: str) -> None:
    with pytest.raises(PipelineError) as refused:
        read_picture(content)
    assert str(refused.value) == message


def test_the_background_is_estimated_from_the_edge() -> None:
    gray = np.full((100, 100), 40, np.uint8)
    gray[40:60, 40:60] = 240
    expected = np.zeros((100, 100), np.uint8)
    expected[40:60, 40:60] = 240 - 40 - FAINT
    assert np.array_equal(np.asarray(light_on_dark(Image.fromarray(gray))), expected)
