"""Checkpoints, from which a killed training run resumes after its last finished epoch."""

import hashlib
import json
import tempfile
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from pipeline.core.completion import COMPLETE, LOCK, hold, remove
from pipeline.core.errors import PipelineError, first_line
from pipeline.core.files import replacing, sha256, text_digest, write_json, write_text
from pipeline.stages.train.feeding import ImagePool

BEST = "best.npz"
RUN = "run.json"
TAG = "tag"

Epoch = dict[str, float]


def fingerprint(config: Any, files: Iterable[Path]) -> str:
    """Digest of everything that a training run depends on. Runs with the same digest can resume each other."""
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    for path in files:
        digest.update(sha256(path).encode())
    return digest.hexdigest()[:16]


@contextmanager
def open_checkpoint(parent: Path, name: str) -> Iterator["Checkpoint"]:
    """Open the checkpoint of the training run called `name` and lock it for this process.

    If the same training runs several times at once, each process has its own folder. A new process resumes from the
    most advanced unlocked folder. When a training run has finished, its unlocked folders are removed.
    """
    with suppress(FileExistsError):  # another process is removing it
        (parent / name).mkdir(parents=True, exist_ok=True)
    lock = next(filter(None, map(hold, sorted(copies(parent, name), key=last_epoch, reverse=True))), None)
    while lock is None:  # another process may lock or remove a new folder before this one locks it
        lock = hold(Path(tempfile.mkdtemp(prefix=f"{name}-", dir=parent)))
    folder = Path(lock.lock_file).parent
    try:
        yield Checkpoint(folder)
    finally:
        lock.release()
        if not folder.exists() or (folder / COMPLETE).exists():
            others = (other for other in copies(parent, name) if other != folder)
            for other in filter(None, map(hold, others)):
                remove(Path(other.lock_file).parent)
                other.release()


def copies(parent: Path, name: str) -> list[Path]:
    """Folders of one training run: the first, and those of processes that ran at the same time."""
    return [folder for folder in (parent / name, *parent.glob(f"{name}-*")) if folder.is_dir()]


def last_epoch(folder: Path) -> str:
    """Name of a folder's newest checkpoint; empty if it has none, or if another process removes the folder."""
    with suppress(FileNotFoundError):
        return max((path.name for path in folder.glob("epoch-*.npz")), default="")
    return ""


class Checkpoint:
    """The state of one training run after its last finished epoch, in its own folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(self, learner: keras.Model, epochs: list[Epoch]) -> None:
        """Save weights, optimizer and metrics of all epochs so far. A kill at any time leaves a complete checkpoint."""
        path = self.folder / f"epoch-{len(epochs):05}.npz"
        write_values(path, [*kept_weights(learner), *learner.optimizer.variables], json.dumps(epochs))
        for old in self.folder.glob("epoch-*"):
            if old != path:
                old.unlink(missing_ok=True)

    def files(self) -> list[Path]:
        """Files that hold the state of the training."""
        return [*self.folder.glob("epoch-*.npz"), *self.folder.glob(BEST)]

    def restore(self, learner: keras.Model) -> list[Epoch]:
        """Load the last finished epoch into `learner` and return the metrics of all so far; empty for a new start."""
        for path in sorted(self.folder.glob("epoch-*.npz"), reverse=True):
            try:
                text = read_values(path, [*kept_weights(learner), *learner.optimizer.variables])
                epochs: list[Epoch] = json.loads(text)
            except ValueError as error:
                print(f"train: the checkpoint {path.stem} cannot be read ({error}): training starts without it")
                continue
            return epochs
        return []

    def forget_damaged(self) -> str | None:
        """Delete the state if a part of it cannot be read, and return the ID of its MLflow run, if it had one.

        The training then starts again, in a new run: the other has the epochs that are lost.
        """
        for path in self.files():
            try:
                read_arrays(path)
            except ValueError as error:
                print(f"train: the checkpoint {path.stem} cannot be read ({error}): training starts without it")
                run_id = self.run_id
                for part in self.folder.iterdir():
                    if part.name != LOCK:
                        part.unlink()
                return run_id
        return None

    def save_best(self, learner: keras.Model, number: int) -> None:
        """Save the current weights, of epoch `number`, as the best so far."""
        write_values(self.folder / BEST, kept_weights(learner), str(number))

    def restore_best(self, learner: keras.Model, number: int) -> None:
        """Load the best weights, of epoch `number`. Raises PipelineError if they are missing or damaged.

        They are of another epoch if a process was killed after it saved them and before it saved the epoch, and the
        next one, whose figures may differ in the last digits, found that epoch not to be the best.
        """
        path = self.folder / BEST
        try:
            if (saved := read_values(path, kept_weights(learner))) != str(number):
                raise ValueError(f"it has epoch {saved} instead of {number}")
        except ValueError as error:
            self.discard()
            raise PipelineError(f"{path} cannot be read ({error}): run the stage again to train from scratch") from None

    @property
    def tag(self) -> tuple[str, bool]:
        """A random tag for the MLflow run, and whether an earlier process chose it.

        A process that is killed between the start of its run and the record of the run's ID leaves a run with it.
        """
        path = self.folder / TAG
        known = path.exists()
        if not known:
            write_text(path, uuid.uuid4().hex)
        return path.read_text(encoding="utf-8", errors="replace"), known

    @property
    def run_id(self) -> str | None:
        """ID of the MLflow run of the killed training run; None if there was none, or if the file is damaged."""
        with suppress(FileNotFoundError, ValueError, TypeError, RecursionError):
            run_id, digest = map(str, json.loads((self.folder / RUN).read_text(encoding="utf-8")))
            return run_id if digest == text_digest(run_id) else None
        return None

    @run_id.setter
    def run_id(self, value: str) -> None:
        write_json(self.folder / RUN, [value, text_digest(value)])

    def discard(self) -> None:
        """Delete the checkpoint, because the training run has ended."""
        remove(self.folder)


def kept_weights(learner: keras.Model) -> list[keras.Variable]:
    """Weights of a learner, without the images."""
    pools = (layer for layer in learner.layers if isinstance(layer, ImagePool))
    images = {id(variable) for pool in pools for variable in pool.weights}
    return [variable for variable in learner.weights if id(variable) not in images]


def write_values(path: Path, variables: list[keras.Variable], text: str = "") -> None:
    """Write variables in order, and a text, atomically. This is several times as fast as Keras's format."""
    values = {str(index): as_array(variable) for index, variable in enumerate(variables)}
    with replacing(path) as temporary:
        np.savez(temporary, allow_pickle=False, text=np.array(text), **values)


def as_array(variable: keras.Variable) -> NDArray[Any]:
    """Value of a variable in a NumPy dtype: bfloat16, which NumPy lacks, becomes float32."""
    value: NDArray[Any] = keras.ops.convert_to_numpy(variable)
    return value.astype(np.float32) if value.dtype.kind == "V" or value.dtype.name == "bfloat16" else value


def read_values(path: Path, variables: list[keras.Variable]) -> str:
    """Load what `write_values` wrote into the same variables, all or none, and return the text.

    Raises ValueError if the file is damaged or holds other variables.
    """
    expected = [(variable.shape, as_array(variable).dtype) for variable in variables]
    text, values = read_arrays(path)
    if [(value.shape, value.dtype) for value in values] != expected:
        raise ValueError("it holds other variables")
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)
    return text


def read_arrays(path: Path) -> tuple[str, list[NDArray[Any]]]:
    """Read what `write_values` wrote: the text, and the variables' values. Raises ValueError if it is damaged."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return str(arrays["text"]), [arrays[name] for name in arrays.files if name != "text"]
    except Exception as error:  # zipfile and NumPy raise many kinds for damaged bytes
        raise ValueError(first_line(error)) from error
