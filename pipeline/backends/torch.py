"""PyTorch, as Keras uses it."""

import keras
import torch

from pipeline.backends.base import Backend
from pipeline.config import Xla
from pipeline.errors import PipelineError


class Torch(Backend):
    """Keras puts its variables on a GPU whenever PyTorch sees one, so a CPU has to be asked for."""

    missing_gpu = "this PyTorch was built without CUDA: pytorch.org says which one fits"
    joins_updates = False

    def use_device(self, choice: str) -> bool:
        """Set the device of everything that Keras makes from now on."""
        if choice == "cpu":
            self._scope = keras.device("cpu")  # for as long as the process lives
            self._scope.__enter__()
            return False
        return bool(torch.cuda.is_available())

    def use_xla(self, setting: Xla, networks: list[keras.Model], whole: bool) -> bool:
        """Never: Keras does not support XLA on PyTorch."""
        if setting is True:
            raise PipelineError("training.xla: true: Keras does not support XLA on PyTorch; set auto or false")
        return False

    def make_deterministic(self) -> None:
        """As PyTorch offers it."""
        torch.use_deterministic_algorithms(True)


BACKEND = Torch()
