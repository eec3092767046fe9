"""The conversion of the current model to the form in which it is served."""

from pathlib import Path

from pipeline import paths
from pipeline.dataset import load_split
from pipeline.tracking.conversion import Converted, convert

TRIED = 1000  # training images: the form that is served must answer to them as the network does


def convert_model(folder: Path) -> Converted:
    """Convert models/model.keras below a folder. Raises PipelineError if it cannot be converted."""
    return convert(paths.MODEL, folder, load_split(paths.TRAIN).images[:TRIED])
