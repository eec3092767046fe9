"""PyTorch, with Keras's implementations."""

from typing import Any

import keras
import torch

from pipeline.core.backends.base import Backend
from pipeline.core.config import Xla
from pipeline.core.errors import PipelineError


class Torch(Backend):
    """Keras places variables on a GPU whenever PyTorch sees one, so the CPU must be selected explicitly."""

    missing_gpu = "this PyTorch was built without CUDA. Install a build for your CUDA version (see pytorch.org)"
    joins_updates = False

    def use_device(self, choice: str, virtual: int = 1) -> bool:
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

    def resample(self, images: Any, maps: Any) -> Any:
        """Transform all images in one operation; Keras transforms them one by one, a hundred operations for each."""
        height, width = images.shape[1:]
        rows, columns = torch.arange(height, device=images.device), torch.arange(width, device=images.device)
        a, b, c, d, e, f = maps[:, :6, None, None].unbind(1)
        x, y = a * columns + b * rows[:, None] + c, d * columns + e * rows[:, None] + f
        places = torch.stack([(2 * x + 1) / width - 1, (2 * y + 1) / height - 1], dim=-1)  # -1 and 1 are the edges
        return torch.nn.functional.grid_sample(images[:, None], places, align_corners=False)[:, 0]

    def make_deterministic(self) -> None:
        """Enable PyTorch's deterministic algorithms."""
        torch.use_deterministic_algorithms(True)


BACKEND = Torch()
