"""From a picture that somebody drew or scanned to an image as MNIST's are."""

import io
import struct

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from scipy.ndimage import center_of_mass

from pipeline.errors import PipelineError

SIDE, BOX = 28, 20  # pixels of an image, and of the longest side of the digit in it
CENTRE = 14  # where the digit's centre of mass is, in indices of rows and columns
WHITE = 255
LARGEST = 4096  # pixels of a picture's side: a page that was scanned
# What damaged bytes make Pillow raise.
BROKEN = (UnidentifiedImageError, OSError, SyntaxError, ValueError, LookupError, TypeError, OverflowError, struct.error)
FAINT = 24  # grey levels above the background that are not yet ink: what a scanner or a JPEG leaves


def read_picture(content: bytes) -> NDArray[np.uint8]:
    """The image (28, 28) of the digit in a PNG of any size, dark on light or light on dark.

    Raises PipelineError if it is no PNG, too large, or if nothing is drawn in it.
    """
    return centre(light_on_dark(open_picture(content)))


def open_picture(content: bytes) -> Image.Image:
    """The picture in grey; what is transparent in it is white."""
    try:
        picture = Image.open(io.BytesIO(content), formats=["PNG"])
        if max(picture.size) > LARGEST:
            raise PipelineError(f"the picture has {picture.width}×{picture.height} pixels: at most {LARGEST} a side")
        if picture.mode.startswith("I"):  # 16 bits a pixel, which Pillow would cut off at 255
            return Image.fromarray((np.asarray(picture).astype(np.uint16) >> 8).astype(np.uint8))
        if not picture.has_transparency_data:
            return picture.convert("L")
        coloured = picture.convert("RGBA")
    except (*BROKEN, Image.DecompressionBombError):
        raise PipelineError("this is not a whole PNG picture") from None
    grey = Image.new("L", coloured.size, "white")
    grey.paste(coloured.convert("L"), mask=coloured.getchannel("A"))
    return grey


def light_on_dark(picture: Image.Image) -> Image.Image:
    """The picture with its background, which is taken from its edge, black; inverted if that is light."""
    grey = np.asarray(picture)
    edge = np.concatenate([grey[0], grey[-1], grey[:, 0], grey[:, -1]])
    background = float(np.median(edge))
    if background > WHITE / 2:
        return light_on_dark(ImageOps.invert(picture))
    return Image.fromarray(np.clip(grey.astype(np.int16) - round(background) - FAINT, 0, None).astype(np.uint8))


def centre(drawing: Image.Image) -> NDArray[np.uint8]:
    """The drawing, light on black, fitted into 20×20 pixels, its centre of mass in the middle of 28×28.

    The rule by which MNIST was made, from the dataset's own page (LeCun, Cortes and Burges, The MNIST database of
    handwritten digits, yann.lecun.com/exdb/mnist): the aspect ratio is kept, anti-aliasing gives the grey levels.
    In all but 13 of the 60,000 training images the digit is 20 pixels long, and the mean of its centre of mass is at
    row 14.00 and column 14.01; the standard deviation, 0.29, is what moving by whole pixels leaves.
    Raises PipelineError if nothing is drawn.
    """
    box = drawing.getbbox()
    if box is None:
        raise PipelineError("nothing is drawn")
    digit = drawing.crop(box)
    scale = BOX / max(digit.size)
    width, height = (max(1, round(scale * side)) for side in digit.size)
    fitted = np.asarray(digit.resize((width, height), Image.Resampling.LANCZOS), np.float64)
    if not fitted.any():  # specks that vanish
        raise PipelineError("nothing is drawn")
    row, column = (_place(mass, length) for mass, length in zip(center_of_mass(fitted), fitted.shape, strict=True))
    image = np.zeros((SIDE, SIDE), np.uint8)
    image[row : row + height, column : column + width] = fitted * (WHITE / fitted.max())  # a thin pen gets thinner
    return image


def _place(mass: float, length: int) -> int:
    """Where the digit begins: its mass in the middle, but nothing of it outside."""
    return int(np.clip(round(CENTRE - mass), 0, SIDE - length))
