"""Epoch times of a Keras training."""

import time
from typing import Any

import keras


class Clock(keras.callbacks.Callback):
    """Record the seconds of each epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: list[float] = []
        self._begun = 0.0

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Start the clock."""
        self._begun = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Record the seconds since the start."""
        self.seconds.append(time.perf_counter() - self._begun)
