"""PyTorch, with Keras's implementations."""

import keras
import torch

from pipeline.core.backends.base import Backend
from pipeline.core.config import Xla
from pipeline.core.errors import PipelineError


class Torch(Backend):
    """Keras places variables on a GPU whenever PyTorch sees one, so the CPU must be selected explicitly."""

    missing_gpu = "this PyTorch was built without CUDA. Install a build for your CUDA version (see pytorch.org)"
    joins_updates = False

    def use_device(self, choice: str) -> bool:
        """Set the device of all tensors that Keras creates from now on."""
        if choice == "cpu":
            self._scope = keras.device("cpu")  # until the process ends
            self._scope.__enter__()
            return False
        return bool(torch.cuda.is_available())

    def use_xla(self, setting: Xla, networks: list[keras.Model], whole: bool) -> bool:
        """Always False: Keras does not support XLA on PyTorch."""
        if setting is True:
            raise PipelineError("training.xla: true: Keras does not support XLA on PyTorch; set auto or false")
        return False

    def make_deterministic(self) -> None:
        """Enable PyTorch's deterministic algorithms."""
        torch.use_deterministic_algorithms(True)


BACKEND = Torch()
