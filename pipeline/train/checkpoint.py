"""What a killed training leaves behind, so that it goes on from the last finished epoch."""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import keras
import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from pipeline.errors import PipelineError, first_line
from pipeline.files import replacing, sha256, write_json
from pipeline.train.feeding import ImagePool

BEST = "best.npz"
RUN = "run.json"
LOCK = "lock"

Epoch = dict[str, float]


def fingerprint(config: Any, files: Iterable[Path]) -> str:
    """A digest of everything that a training depends on: two trainings with the same one may continue each other."""
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    for path in files:
        digest.update(sha256(path).encode())
    return digest.hexdigest()[:16]


@contextmanager
def open_checkpoint(parent: Path, name: str) -> Iterator["Checkpoint"]:
    """The checkpoint of the training called `name`, held by this process alone.

    If the same training runs several times at once, each process has its own folder. A new process continues from the
    most advanced folder that no process holds; when a training has finished, folders that no process holds are removed.
    """
    with suppress(FileExistsError):  # another process removes it now
        (parent / name).mkdir(parents=True, exist_ok=True)
    lock = next(filter(None, map(hold, sorted(copies(parent, name), key=last_epoch, reverse=True))), None)
    while lock is None:  # a process that ends or starts may look into a new folder before it is held
        lock = hold(Path(tempfile.mkdtemp(prefix=f"{name}-", dir=parent)))
    folder = Path(lock.lock_file).parent
    try:
        yield Checkpoint(folder)
    finally:
        lock.release()
        if not folder.exists():  # discarded
            for other in filter(None, map(hold, copies(parent, name))):
                shutil.rmtree(Path(other.lock_file).parent, ignore_errors=True)
                other.release()


def copies(parent: Path, name: str) -> list[Path]:
    """The folders of one training: the first one, and those of processes that ran at the same time."""
    return [folder for folder in (parent / name, *parent.glob(f"{name}-*")) if folder.is_dir()]


def last_epoch(folder: Path) -> str:
    """The name of a folder's newest checkpoint; empty if it has none, or if another process removes it."""
    with suppress(FileNotFoundError):
        return max((path.name for path in folder.glob("epoch-*.npz")), default="")
    return ""


def hold(folder: Path) -> FileLock | None:
    """The lock of a folder, acquired; None if another process holds it or removes the folder."""
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except (Timeout, FileNotFoundError, FileExistsError):
        return None
    return lock


class Checkpoint:
    """The state of one training after its last finished epoch, in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(self, learner: keras.Model, epochs: list[Epoch]) -> None:
        """Keep weights, optimizer and the figures of all epochs so far. A kill at any moment leaves a whole state."""
        path = self.folder / f"epoch-{len(epochs):05}.npz"
        write_values(path, [*kept_weights(learner), *learner.optimizer.variables], json.dumps(epochs))
        for old in self.folder.glob("epoch-*"):
            if old != path:
                old.unlink(missing_ok=True)

    def restore(self, learner: keras.Model) -> list[Epoch]:
        """Load the last finished epoch into `learner` and return the figures of all so far: none for a new start."""
        for path in sorted(self.folder.glob("epoch-*.npz"), reverse=True):
            try:
                text = read_values(path, [*kept_weights(learner), *learner.optimizer.variables])
                epochs: list[Epoch] = json.loads(text)
            except ValueError as error:
                print(f"train: the checkpoint {path.stem} cannot be read ({error}): starting again")
                continue
            return epochs
        return []

    def save_best(self, learner: keras.Model) -> None:
        """Keep the present weights as the best so far."""
        write_values(self.folder / BEST, kept_weights(learner))

    def restore_best(self, learner: keras.Model) -> None:
        """Load the best weights that were kept. Raises PipelineError if they are lost or damaged."""
        path = self.folder / BEST
        try:
            read_values(path, kept_weights(learner))
        except ValueError as error:
            self.discard()
            raise PipelineError(f"{path} cannot be read ({error}): run this again, it trains anew") from None

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


def kept_weights(learner: keras.Model) -> list[keras.Variable]:
    """A learner's weights without the images."""
    pools = (layer for layer in learner.layers if isinstance(layer, ImagePool))
    images = {id(variable) for pool in pools for variable in pool.weights}
    return [variable for variable in learner.weights if id(variable) not in images]


def write_values(path: Path, variables: list[keras.Variable], text: str = "") -> None:
    """Write variables in their order, and a text, whole or not at all. Several times as fast as Keras's format."""
    values = {str(index): as_array(variable) for index, variable in enumerate(variables)}
    with replacing(path) as temporary:
        np.savez(temporary, allow_pickle=False, text=np.array(text), **values)


def as_array(variable: keras.Variable) -> NDArray[Any]:
    """A variable's value in a type that NumPy has: bfloat16, which it has not, fits into float32."""
    value: NDArray[Any] = keras.ops.convert_to_numpy(variable)
    return value.astype(np.float32) if value.dtype.kind == "V" or value.dtype.name == "bfloat16" else value


def read_values(path: Path, variables: list[keras.Variable]) -> str:
    """Load what `write_values` wrote into the same variables, all or none, and return the text.

    Raises ValueError if the file is not whole or of other variables.
    """
    expected = [(variable.shape, as_array(variable).dtype) for variable in variables]
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            text, values = str(arrays["text"]), [arrays[name] for name in arrays.files if name != "text"]
    except Exception as error:  # whatever damaged bytes make zipfile and NumPy raise
        raise ValueError(first_line(error)) from error
    if [(value.shape, value.dtype) for value in values] != expected:
        raise ValueError("it has other variables")
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)
    return text
