"""A figure with sample images of each class."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from pipeline.core.dataset import Split
from pipeline.core.montage import montage

SAMPLES = 10
WIDTH = 640  # of all images together, at most; in pixels, like the following sizes
HEADING, LABELS, MARGIN = 36, 28, 8  # height of the heading, width of the labels, white margin on all sides
TEXT = 15  # font size
WHITE, BLACK = 255, 0


def draw_samples(split: Split, classes: int) -> Image.Image:
    """Draw the first ten images of each class, one class per row.

    Pillow draws them, because importing matplotlib takes longer than the rest of preprocess.
    """
    grid = samples(split, classes)
    scale = max(WIDTH // grid.shape[1], 1)
    left, top, cell = MARGIN + LABELS, MARGIN + HEADING, scale * grid.shape[0] // classes
    size = (left + scale * grid.shape[1] + MARGIN, top + scale * grid.shape[0] + MARGIN)
    picture = Image.new("L", size, WHITE)
    picture.paste(Image.fromarray(grid.repeat(scale, axis=0).repeat(scale, axis=1)), (left, top))
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(TEXT)
    middle = left + scale * grid.shape[1] // 2
    draw.text((middle, MARGIN + HEADING // 2), "Ten training images of each class", BLACK, font, anchor="mm")
    for label in range(classes):
        draw.text((left - MARGIN, top + label * cell + cell // 2), str(label), BLACK, font, anchor="rm")
    return picture


def samples(split: Split, classes: int) -> NDArray[np.uint8]:
    """Arrange the first ten images of each class in one image, one class per row, each with a border of one pixel."""
    images = np.zeros((classes, SAMPLES, *split.images.shape[1:]), np.uint8)
    for label in range(classes):
        found = split.images[split.labels == label][:SAMPLES]
        images[label, : len(found)] = found
    padded = np.pad(images.reshape(-1, *split.images.shape[1:]), ((0, 0), (1, 1), (1, 1)))
    return montage(padded, classes, SAMPLES)
