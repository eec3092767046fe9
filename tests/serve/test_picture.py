import io

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from pipeline.errors import PipelineError
from pipeline.preprocess.idx import read_idx
from pipeline.serve.picture import FAINT, light_on_dark, read_picture
from tests.conftest import BESIDE

Grey = NDArray[np.uint8]


def png(grey: Grey) -> bytes:
    content = io.BytesIO()
    Image.fromarray(grey).save(content, "PNG")
    return content.getvalue()


def canvas(row: int, column: int, height: int, width: int) -> Grey:
    grey = np.zeros((280, 280), np.uint8)
    grey[row : row + height, column : column + width] = 255
    return grey


def test_sixteen_bits_are_read_as_eight() -> None:
    deep = np.full((280, 280), 60_000, np.uint16)
    deep[50:200, 120:160] = 20_000
    plain = np.full((280, 280), 234, np.uint8)
    plain[50:200, 120:160] = 78
    content = io.BytesIO()
    Image.fromarray(deep).save(content, "PNG")
    np.testing.assert_array_equal(read_picture(content.getvalue()), read_picture(png(plain)))


def specks() -> Grey:
    """Two pixels so far apart that they vanish when what is between them is made small."""
    grey = np.zeros((600, 600), np.uint8)
    grey[100, 100] = grey[500, 500] = 255
    return grey


@pytest.mark.parametrize(("row", "column"), [(0, 0), (35, 99), (180, 230)])
def test_a_bar_is_fitted_into_20_pixels_and_its_mass_put_into_the_middle(row: int, column: int) -> None:
    image = read_picture(png(canvas(row, column, 100, 50)))
    assert image.shape == (28, 28)
    rows, columns = np.nonzero(image)
    # 20×10 pixels whose mass is at 9.5 and 4.5: moved by 4.5 and 9.5, of which Python rounds a half to the even number.
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (4, 23, 10, 19)
    assert image[rows, columns].min() == 255


def test_the_centre_of_mass_counts_and_not_the_box() -> None:
    grey = canvas(100, 100, 40, 100)
    grey[60:100, 100:120] = 255  # an L that lies on its back: heavier on the left
    rows, columns = np.nonzero(read_picture(png(grey)))
    assert columns.max() - columns.min() + 1 == 20
    assert columns.min() > 4, "its box would begin at 4"
    assert rows.min() < 6, "its box would begin at 6"


def test_dark_on_light_is_read_as_light_on_dark() -> None:
    grey = canvas(50, 80, 150, 60)
    assert np.array_equal(read_picture(png(255 - grey)), read_picture(png(grey)))


def test_a_grey_pencil_on_a_grainy_sheet_is_stretched_and_the_grain_left_out() -> None:
    grain = np.random.default_rng(1).integers(-8, 9, (280, 280))
    sheet = np.where(canvas(50, 80, 150, 60) > 0, 120, 215 + grain).astype(np.uint8)
    image = read_picture(png(sheet))
    assert image.max() == 255
    assert np.array_equal(image > 0, read_picture(png(canvas(50, 80, 150, 60))) > 0)


def test_what_is_transparent_is_the_sheet() -> None:
    coloured = np.zeros((280, 280, 4), np.uint8)  # transparent black
    coloured[canvas(50, 80, 150, 60) > 0] = (0, 0, 200, 255)
    assert np.array_equal(read_picture(png(coloured)) > 0, read_picture(png(canvas(50, 80, 150, 60))) > 0)


def test_a_thin_pen_on_a_large_sheet_is_not_lost() -> None:
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


@pytest.mark.skipif(not BESIDE.is_dir(), reason="needs the four files of MNIST beside the project")
def test_images_of_mnist_come_back_as_they_are() -> None:
    kept = 0
    for image in read_idx(BESIDE / "train-images-idx3-ubyte.gz", 3)[:200]:
        sheet = np.zeros((400, 400), np.uint8)
        sheet[13:293, 101:381] = np.kron(image, np.ones((10, 10), np.uint8))
        kept += np.abs(image.astype(int) - read_picture(png(sheet))).mean() < 5  # a pixel aside it is 18 and more
    assert kept >= 190, "all but those whose centre of mass lies between two pixels"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "this is not a whole PNG picture"),
        (b"GIF89a", "this is not a whole PNG picture"),
        (png(canvas(50, 80, 150, 60))[:100], "this is not a whole PNG picture"),
        (png(np.zeros((5000, 2), np.uint8)), "the picture has 2×5000 pixels: at most 4096 a side"),
        (png(np.zeros((280, 280), np.uint8)), "nothing is drawn"),
        (png(np.full((280, 280), 255, np.uint8)), "nothing is drawn"),
        (png(np.full((280, 280), 130, np.uint8)), "nothing is drawn"),
        (png(np.zeros((1, 1), np.uint8)), "nothing is drawn"),
        (png(specks()), "nothing is drawn"),
    ],
    ids=["empty", "gif", "half", "long", "black", "white", "grey", "dot", "specks"],
)
def test_what_is_no_picture_of_a_digit_is_refused(content: bytes, message: str) -> None:
    with pytest.raises(PipelineError) as refused:
        read_picture(content)
    assert str(refused.value) == message


def test_the_background_is_taken_from_the_edge() -> None:
    grey = np.full((100, 100), 40, np.uint8)
    grey[40:60, 40:60] = 240
    expected = np.zeros((100, 100), np.uint8)
    expected[40:60, 40:60] = 240 - 40 - FAINT
    assert np.array_equal(np.asarray(light_on_dark(Image.fromarray(grey))), expected)
