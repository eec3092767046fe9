"""Suggest a batch size after memory was exhausted: the first half, quarter … that fits, found by training one batch.

The train stage replaces itself by this program, so that its memory is free. Each size is tried in a process of its
own: some libraries crash when memory is exhausted, and the kernel may kill the process.
"""

import contextlib
import os
import subprocess
import sys
import threading

from pipeline.core import paths
from pipeline.core.config import Config
from pipeline.core.containers import limited_memory
from pipeline.core.dataset import Split, load_split
from pipeline.core.errors import PipelineError, first_line, is_exhausted
from pipeline.core.process.stage import importing_keras, run_stage
from pipeline.core.process.worker import end_with_parent
from pipeline.core.validation import load_config

PROGRAM = (sys.executable, "-m", "pipeline.stages.train.batch_size")
TRY = "from pipeline.stages.train.batch_size import try_batch; try_batch({size}, {validation})"
EXHAUSTED = 3  # exit status of a process that could not train the batch for want of memory


def explain_exhaustion() -> None:
    """Raise PipelineError with a message that names the configured batch size and one that fits."""
    size, images = load_config(stage="train").training.batch_size, len(load_split(paths.TRAIN).images)
    devices = int(os.environ.get("DEVICES") or 1)  # the train stage has set the number of those in use
    print("train: memory was exhausted; looking for a batch size that fits …", flush=True)
    elsewhere = ", or use DEVICE=cpu" if os.environ.get("DEVICE") == "gpu" else ""
    free = f"end other processes that use it (`make doctor` shows the memory in use), reduce the model{elsewhere}"
    if not fits(devices, validation=False):
        raise PipelineError(f"memory does not suffice, even for a batch of one image: {free}")
    if not fits(devices, validation=True):
        raise PipelineError(
            f"memory does not suffice for a batch of validation images: {free}, or set training.validate_on=none"
        )
    sizes = sizes_to_try(size, images, devices)
    fitting = next(each for each in sizes if each == devices or fits(each, validation=True))
    if fitting == size:
        raise PipelineError(
            f"memory was exhausted, although an update with training.batch_size={size} fits now: another process may "
            "have used the memory, or a later step needs more. `dvc repro` continues after the last finished epoch"
        )
    raise PipelineError(
        f"training.batch_size={size} does not fit in memory, but {fitting} does: use -S training.batch_size={fitting}"
    )


def sizes_to_try(size: int, images: int, devices: int) -> list[int]:
    """The configured batch size, then the half, a quarter … of it, or of the number of images, down to one per device.

    All are multiples of the number of devices.
    """
    sizes = [size]
    while sizes[-1] > devices:
        sizes.append(max(min(sizes[-1], images + 1) // 2 // devices, 1) * devices)
    return sizes


def fits(size: int, validation: bool) -> bool:
    """Whether an update with a batch of this size, and optionally a batch of validation images, fit in memory.

    Raises PipelineError if the update fails for another reason.
    """
    command = [sys.executable, "-c", TRY.format(size=size, validation=validation)]
    # The process ends when its input does, so it never outlives this one.
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        assert process.stdout is not None
        output = process.stdout.read().decode(errors="replace")
    status = process.returncode
    if status > 0 and status != EXHAUSTED:
        reason = output.strip().rpartition("\n")[2] or f"exit status {status}"
        raise PipelineError(f"memory was exhausted, and a smaller batch failed for another reason: {reason}")
    return status == 0  # negative if the process crashed or was killed


def try_batch(size: int, validation: bool) -> None:
    """Train with a batch of this size, and end the process with a status that says whether memory sufficed."""
    threading.Thread(target=end_with_parent, daemon=True).start()
    config = load_config(stage="train")
    train, others = load_split(paths.TRAIN), load_split(paths.VALIDATION)
    try:
        train_one_batch(config, train.first(size), others if validation else others.first(0), size)
    except Exception as error:
        exhausted = is_exhausted(error) or "YNNPACK" in str(error)  # JAX's library for CPUs does not say why it fails
        print(first_line(error))
        os._exit(EXHAUSTED if exhausted else 1)
    os._exit(0)


def train_one_batch(config: Config, train: Split, validation: Split, size: int) -> None:
    """Train with all of `train` as one batch, and evaluate a batch of the validation images."""
    with importing_keras():
        from pipeline.core.backends.base import VALIDATION_BATCH
        from pipeline.core.device import use_devices
        from pipeline.stages.train.fitting import fit_epoch, one_hot
        from pipeline.stages.train.training import set_up

    config = config.model_copy(update={"training": config.training.model_copy(update={"batch_size": size})})
    validation, device = validation.first(VALIDATION_BATCH), use_devices(size, config.training.deterministic)
    with limited_memory() if device == "cpu" else contextlib.nullcontext():
        _, learner = set_up(config, train, validation, device)
        fit_epoch(learner, one_hot(train, validation, config), len(train.images), config, 1)


if __name__ == "__main__":
    run_stage("train", __doc__, explain_exhaustion, cleared=True)
