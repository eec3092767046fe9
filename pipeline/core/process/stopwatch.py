"""Run times of the phases of a process."""

import time


class Stopwatch:
    """Seconds between laps, by name; the first lap begins at `start`, in seconds since the epoch."""

    def __init__(self, start: float) -> None:
        self.seconds: dict[str, float] = {}
        self._last = start

    def lap(self, name: str) -> None:
        """Add the time since the last lap to `name`."""
        now = time.time()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self._last
        self._last = now
