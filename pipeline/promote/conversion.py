"""The conversion of the current model to the form in which it is served."""

import tempfile
from pathlib import Path

from pipeline import paths
from pipeline.dataset import load_split
from pipeline.tracking.conversion import Converted, convert

TRIED = 1000  # training images: the form that is served must answer to them as the network does


def convert_model(folder: Path) -> Converted:
    """Convert models/model.keras below a folder. Raises PipelineError if it cannot be converted."""
    images = load_split(paths.TRAIN).images[:TRIED]
    before, tempfile.tempdir = tempfile.tempdir, str(folder)  # TensorFlow leaves files to a process that is killed
    try:
        return convert(paths.MODEL, folder, images)
    finally:
        tempfile.tempdir = before
