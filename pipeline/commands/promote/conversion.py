"""Convert the current model to its serving format."""

import tempfile
from pathlib import Path

from pipeline.core import paths
from pipeline.core.dataset import load_split
from pipeline.registry.conversion import Converted, convert

TRIED = 1000  # training images on which the converted model must agree with the network


def convert_model(folder: Path) -> Converted:
    """Convert models/model.keras inside a folder. Raises PipelineError if the conversion fails."""
    images = load_split(paths.TRAIN).images[:TRIED]
    before, tempfile.tempdir = tempfile.tempdir, str(folder)  # TensorFlow leaves files behind if it is killed
    try:
        return convert(paths.MODEL, folder, images)
    finally:
        tempfile.tempdir = before
