"""What a killed training leaves behind, so that it goes on from the last finished epoch."""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import keras
from filelock import FileLock, Timeout

from pipeline.files import replacing, sha256, write_json

BEST = "best.weights.h5"
RUN = "run.json"

Epoch = dict[str, float]


def fingerprint(config: Any, files: Iterable[Path]) -> str:
    """A digest of everything that a training depends on: two trainings with the same one may continue each other."""
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    for path in files:
        digest.update(sha256(path).encode())
    return digest.hexdigest()[:16]


@contextmanager
def open_checkpoint(parent: Path, name: str) -> Iterator["Checkpoint"]:
    """The checkpoint of the training called `name`, held by this process alone; a new one if another process has it."""
    folder = parent / name
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / "lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        folder = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=parent))
        lock = FileLock(folder / "lock")
        lock.acquire(timeout=0)
    try:
        yield Checkpoint(folder)
    finally:
        lock.release()


class Checkpoint:
    """The state of one training after its last finished epoch, in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(self, learner: keras.Model, epochs: list[Epoch]) -> None:
        """Keep weights, optimizer and the figures of all epochs so far. A kill at any moment leaves a whole state."""
        path = self._weights(len(epochs))
        write_json(self._figures(len(epochs)), epochs)
        with replacing(path) as temporary:
            learner.save_weights(temporary)
        for old in self.folder.glob("epoch-*"):
            if old not in (path, self._figures(len(epochs))):
                old.unlink(missing_ok=True)

    def restore(self, learner: keras.Model) -> list[Epoch]:
        """Load the last finished epoch into `learner` and return the figures of all so far: none for a new start."""
        for path in sorted(self.folder.glob("epoch-*.weights.h5"), reverse=True):
            number = int(path.name.split(".")[0].removeprefix("epoch-"))
            try:
                epochs: list[Epoch] = json.loads(self._figures(number).read_text(encoding="utf-8"))
                learner.load_weights(path)
            except (OSError, ValueError, KeyError) as error:
                print(f"train: the checkpoint of epoch {number} cannot be read ({error}): starting again")
                continue
            return epochs
        return []

    def save_best(self, learner: keras.Model) -> None:
        """Keep the present weights as the best so far."""
        with replacing(self.folder / BEST) as temporary:
            learner.save_weights(temporary)

    def restore_best(self, learner: keras.Model) -> None:
        """Load the best weights that were kept."""
        learner.load_weights(self.folder / BEST)

    @property
    def run_id(self) -> str | None:
        """The tracking run that the killed training wrote to, if there was one."""
        path = self.folder / RUN
        return str(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else None

    @run_id.setter
    def run_id(self, value: str) -> None:
        write_json(self.folder / RUN, value)

    def discard(self) -> None:
        """Forget everything: the training has ended."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _weights(self, number: int) -> Path:
        return self.folder / f"epoch-{number:05}.weights.h5"

    def _figures(self, number: int) -> Path:
        return self.folder / f"epoch-{number:05}.json"
