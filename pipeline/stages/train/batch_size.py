"""Suggest a batch size after memory was exhausted: the largest that fits, found by training one batch of each size.

The train stage replaces itself by this program, so that its memory is free. Each size is tried in a process of its
own: some libraries crash when memory is exhausted, and the kernel may kill the process.
"""

import contextlib
import subprocess
import sys

from pipeline.core import paths
from pipeline.core.containers import limited_memory
from pipeline.core.dataset import load_split
from pipeline.core.process.stage import importing_keras
from pipeline.core.process.surroundings import settle
from pipeline.core.validation import load_config

PROGRAM = (sys.executable, "-m", "pipeline.stages.train.batch_size")


def explain_exhaustion() -> str:
    """Error text that names the configured batch size and one that fits."""
    size = load_config(stage="train").training.batch_size
    print(f"train: training.batch_size={size} does not fit in memory; looking for one that fits …", flush=True)
    sizes = sizes_to_try(size, len(load_split(paths.TRAIN).images))
    fitting = next(filter(fits, sizes), None) if fits(1) else None
    if fitting is None:
        return (
            f"training.batch_size={size} does not fit in memory, and neither does a batch of one image: reduce the "
            "model, or free the memory that others use (nvidia-smi and `make doctor` show it), or use DEVICE=cpu"
        )
    if fitting == size:
        return (
            f"memory was exhausted, but training.batch_size={size} fits now: another process may have used the "
            "memory. `dvc repro` continues after the last finished epoch"
        )
    remedy = f"dvc exp run -S training.batch_size={fitting}"
    return f"training.batch_size={size} does not fit in memory, but {fitting} does: {remedy}"


def sizes_to_try(size: int, images: int) -> list[int]:
    """The configured batch size, then the half, a quarter … of it, or of the number of images, down to 1."""
    sizes = [size]
    while sizes[-1] > 1:
        sizes.append(min(sizes[-1], images + 1) // 2)
    return sizes


def fits(size: int) -> bool:
    """Whether an update with a batch of this size fits in memory."""
    return subprocess.run([*PROGRAM, str(size)], capture_output=True, check=False).returncode == 0


def train_one_batch(size: int) -> None:
    """Train with a batch of this size, and evaluate a batch of validation images."""
    train, validation = load_split(paths.TRAIN), load_split(paths.VALIDATION)
    with importing_keras():
        from pipeline.core.backends.base import VALIDATION_BATCH
        from pipeline.core.device import use_device
        from pipeline.stages.train.fitting import fit_epoch, one_hot
        from pipeline.stages.train.training import set_up

    config = load_config(stage="train")
    config = config.model_copy(update={"training": config.training.model_copy(update={"batch_size": size})})
    train, validation = train.first(size), validation.first(VALIDATION_BATCH)
    device = use_device()
    with limited_memory() if device == "cpu" else contextlib.nullcontext():
        _, learner = set_up(config, train, validation, device)
        fit_epoch(learner, one_hot(train, validation, config), size, config, 1)


if __name__ == "__main__":
    settle()
    if len(sys.argv) > 1:
        train_one_batch(int(sys.argv[1]))
    else:
        sys.exit(f"train: {explain_exhaustion()}")
