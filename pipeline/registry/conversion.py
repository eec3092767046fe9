"""Convert a Keras network to ONNX, its serving format. This module does not import MLflow."""

import importlib.util
import os
import shutil
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.core.errors import PipelineError, first_line
from pipeline.core.process.stage import DEFAULT_BACKEND, importing_keras, stderr_held

FOLDER = "network"  # in the served model's data/
KERAS, ONNX = "model.keras", "model.onnx"  # in that folder


class Converted(NamedTuple):
    """A network file, the folder with its copy and its ONNX form, and Keras's probabilities for sample images."""

    network_file: Path
    folder: Path
    images: NDArray[np.uint8]
    probabilities: NDArray[np.float32]


def convert(network_file: Path, parent: Path, images: NDArray[np.uint8]) -> Converted:
    """Copy the network in a `.keras` file to a new folder below `parent`, and convert the copy to ONNX.

    `images` (N, height, width) are the sample images. Raises PipelineError if the conversion fails.
    """
    folder = parent / FOLDER
    folder.mkdir()
    shutil.copyfile(network_file, folder / KERAS)
    failure, probabilities = None, np.zeros(0, np.float32)
    with stderr_held():  # an exception that leaves this block would show the buffered output
        try:
            probabilities = export(folder, images)
        except Exception as error:  # layers and the converter may raise anything
            failure = error
    if failure:
        raise PipelineError(f"{network_file} cannot be served: its conversion to ONNX failed ({first_line(failure)})")
    return Converted(network_file, folder, images, probabilities)


def export(folder: Path, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Export the network in a folder to ONNX, and return Keras's probabilities (N, classes) for the images.

    This takes TensorFlow, whichever backend trained the network.
    """
    if importlib.util.find_spec(DEFAULT_BACKEND) is None:
        raise PipelineError("it needs TensorFlow, which `make promote` installs")
    os.environ["KERAS_BACKEND"] = DEFAULT_BACKEND  # JAX exports to ONNX through it, and PyTorch in a way of its own
    with importing_keras():
        import keras

    network = keras.saving.load_model(folder / KERAS, compile=False, safe_mode=True)
    probabilities: NDArray[np.float32] = network.predict(images, verbose=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tf2onnx looks up names that NumPy has removed
        network.export(folder / ONNX, format="onnx", verbose=False)
    return probabilities
