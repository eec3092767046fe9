"""Convert a drawn or scanned picture to an image in MNIST's format."""

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngImageFile
from scipy.ndimage import center_of_mass

from pipeline.core.errors import PipelineError

SIDE, BOX = 28, 20  # pixels: side of an image, longest side of the digit in it
CENTER = 14  # row and column index of the digit's center of mass
WHITE = 255
LARGEST = 4096  # pixels per side of a picture: enough for a scanned page
FAINT = 24  # gray levels above the background that are noise of a scanner or a JPEG, not ink


def read_picture(content: bytes) -> NDArray[np.uint8]:
    """Convert a PNG of any size, dark on light or light on dark, to an image (28, 28) of its digit.

    Raises PipelineError if the file is not a PNG, is too large or is blank.
    """
    return center(light_on_dark(open_picture(content)))


def open_picture(content: bytes) -> Image.Image:
    """Decode a PNG to grayscale, with transparent pixels white."""
    try:
        picture = PngImageFile(io.BytesIO(content))  # Image.open also prints a warning for a large picture
        if max(picture.size) > LARGEST:
            raise PipelineError(
                f"the picture is {picture.width}×{picture.height} pixels: the limit is {LARGEST} per side"
            )
        if picture.mode.startswith("I"):  # 16 bits per pixel, which Pillow would clip at 255
            return Image.fromarray((np.asarray(picture).astype(np.uint16) >> 8).astype(np.uint8))
        if not picture.has_transparency_data:
            return picture.convert("L")
        rgba = picture.convert("RGBA")
    except PipelineError:
        raise
    except Exception:  # Pillow raises almost anything on damaged files
        raise PipelineError("the file is not a valid PNG") from None
    gray = Image.new("L", rgba.size, "white")
    gray.paste(rgba.convert("L"), mask=rgba.getchannel("A"))
    return gray


def light_on_dark(picture: Image.Image) -> Image.Image:
    """Make the background, which is estimated from the edge, black; invert the picture first if it is light."""
    gray = np.asarray(picture)
    edge = np.concatenate([gray[0], gray[-1], gray[:, 0], gray[:, -1]])
    background = float(np.median(edge))
    if background > WHITE / 2:
        return light_on_dark(ImageOps.invert(picture))
    return Image.fromarray(np.clip(gray.astype(np.int16) - round(background) - FAINT, 0, None).astype(np.uint8))


def center(drawing: Image.Image) -> NDArray[np.uint8]:
    """Fit a light-on-black drawing into 20×20 pixels and place its center of mass in the middle of 28×28 pixels.

    MNIST's own procedure, from the dataset's page (LeCun, Cortes and Burges, The MNIST database of handwritten digits,
    yann.lecun.com/exdb/mnist): the aspect ratio is kept, and anti-aliasing creates the gray levels.
    In all but 13 of the 60,000 training images the digit is 20 pixels long. Its center of mass is at row 14.00 and
    column 14.01 on average; the standard deviation of 0.29 results from shifting by whole pixels.
    Raises PipelineError if the drawing is blank.
    """
    box = drawing.getbbox()
    if box is None:
        raise PipelineError("the picture is blank")
    digit = drawing.crop(box)
    scale = BOX / max(digit.size)
    width, height = (max(1, round(scale * side)) for side in digit.size)
    fitted = np.asarray(digit.resize((width, height), Image.Resampling.LANCZOS), np.float64)
    if not fitted.any():  # only specks, which scaling removed
        raise PipelineError("the picture is blank")
    row, column = (_place(mass, length) for mass, length in zip(center_of_mass(fitted), fitted.shape, strict=True))
    image = np.zeros((SIDE, SIDE), np.uint8)
    image[row : row + height, column : column + width] = fitted * WHITE / fitted.max()  # scaling dims thin strokes
    return image


def _place(mass: float, length: int) -> int:
    """Index of the digit's first row or column: its mass in the middle, but no part outside the image."""
    return int(np.clip(round(CENTER - mass), 0, SIDE - length))
