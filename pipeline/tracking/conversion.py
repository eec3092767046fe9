"""A Keras network as ONNX, in which form it is served. MLflow is not imported here."""

import shutil
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import PipelineError, first_line
from pipeline.stage import importing_keras, quietly

FOLDER = "network"  # in the served model's data/
KERAS, ONNX = "model.keras", "model.onnx"  # in that folder


class Converted(NamedTuple):
    """A network's file, a folder with a copy of it and its form in ONNX, and what Keras gives for some images."""

    network_file: Path
    folder: Path
    images: NDArray[np.uint8]
    probabilities: NDArray[np.float32]


def convert(network_file: Path, parent: Path, images: NDArray[np.uint8]) -> Converted:
    """Copy the network in a `.keras` file to a new folder below `parent`, and write it as ONNX beside the copy.

    `images` (N, height, width) are what it is tried on. Raises PipelineError if it has no form in ONNX.
    """
    folder = parent / FOLDER
    folder.mkdir()
    shutil.copyfile(network_file, folder / KERAS)
    failure, probabilities = None, np.zeros(0, np.float32)
    with quietly():  # which would show what it held back if an error left it
        try:
            probabilities = export(folder, images)
        except Exception as error:  # whatever a layer or the converter cannot do
            failure = error
    if failure:
        raise PipelineError(f"{network_file} cannot be served: it has no form in ONNX ({first_line(failure)})")
    return Converted(network_file, folder, images, probabilities)


def export(folder: Path, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Write the network of a folder as ONNX, and return the probabilities (N, classes) that Keras gives for images."""
    with importing_keras():
        import keras

    network = keras.saving.load_model(folder / KERAS, compile=False, safe_mode=True)
    probabilities: NDArray[np.float32] = network.predict(images, verbose=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tf2onnx looks for names that NumPy has dropped
        network.export(folder / ONNX, format="onnx", verbose=False)
    return probabilities
