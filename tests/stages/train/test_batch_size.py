"""Exhausted memory: the stages name a batch size that fits."""

import re
import shutil
import signal
import sys

import numpy as np
import pytest

from pipeline.core.errors import is_exhausted
from pipeline.stages.train.batch_size import sizes_to_try
from tests.conftest import PATH, Project, Start
from tests.test_pipeline import runs

UP = "keras.layers.UpSampling2D"
LAYERS: list[dict[str, object]] = [
    {"_target_": "keras.layers.Reshape", "target_shape": [8, 8, 1]},
    {"_target_": UP, "size": 200},  # 10 MB for each image
    {"_target_": "keras.layers.GlobalAveragePooling2D"},
]
SUGGESTION = re.compile(
    r"train: training\.batch_size=1400 does not fit in memory, but (\d+) does: use -S training\.batch_size=\1"
)
GB = 10**9
limited = pytest.mark.skipif(shutil.which("prlimit") is None, reason="needs prlimit, to limit memory")


@pytest.mark.parametrize(
    "message",
    [
        "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 257.89GiB with allocator GPU_0_bfc on device 0.",
        "INTERNAL: Error dispatching computation: Out of memory allocating 554760074440 bytes.",
        "CUDA out of memory. Tried to allocate 257.89 GiB. GPU 0 has a total capacity of 139.80 GiB",
        "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to",
        "OOM when allocating tensor with shape[1188,8000,8,1000,1] and type float on /job:localhost/replica:0/task:0",
        "CUDNN_STATUS_ALLOC_FAILED",
        "CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
        "CUDA_ERROR_OUT_OF_MEMORY",
        "Failed copying input tensor from CPU:0 to GPU:0 in order to run Add: Dst tensor is not initialized.",
        "INTERNAL: Failed to allocate 4096 bytes",
        "[Errno 12] Cannot allocate memory",
        "Unable to allocate 5.59 TiB for an array with shape (768000000000,) and data type float64",
    ],
)
def test_messages_of_the_libraries_about_memory(message: str) -> None:
    assert is_exhausted(RuntimeError(message))


def test_other_errors_are_not_about_memory() -> None:
    assert is_exhausted(MemoryError())
    assert not is_exhausted(ValueError("Input 0 of layer dense is incompatible with the layer"))
    with pytest.raises(MemoryError) as caught:
        np.zeros((1 << 20, 1 << 20, 1 << 10))
    assert is_exhausted(caught.value)


@pytest.mark.parametrize(
    ("size", "images", "devices", "sizes"),
    [
        *((8, 100, 1, [8, 4, 2, 1]), (100, 10, 1, [100, 5, 2, 1]), (1, 10, 1, [1]), (3, 3, 1, [3, 1])),
        *((50, 1, 1, [50, 1]), (96, 1000, 8, [96, 48, 24, 8]), (64, 5, 4, [64, 4]), (4, 100, 4, [4])),
    ],
)
def test_sizes_are_halved_down_to_one_image_for_each_device(
    size: int, images: int, devices: int, sizes: list[int]
) -> None:
    assert sizes_to_try(size, images, devices) == sizes


def configure(project: Project, size: int, scale: int) -> None:
    """Prepare a training of one epoch, whose network scales images up until a batch takes gigabytes."""
    layers = [LAYERS[0], LAYERS[1] | {"size": scale}, LAYERS[2]]
    training = {"epochs": 1, "batch_size": size}
    project.params(recipe="smoke", model={"name": "mlp", "layers": layers}, training=training)
    project.succeed("python", "-m", "pipeline.stages.compose")


def run(project: Project, stage: str, gigabytes: int) -> tuple[int, str]:
    """Exit status and output of a stage in a process with a limit on its memory."""
    limit = ("prlimit", f"--as={gigabytes * GB}")
    result = project.run(*limit, sys.executable, "-m", f"pipeline.stages.{stage}", PATH=PATH, DEVICE="cpu")
    assert "Traceback" not in result.stdout
    return result.returncode, result.stdout


@limited
@pytest.mark.slow
@pytest.mark.tensorflow
def test_a_batch_size_that_fits_is_suggested_and_fits(trained: Project) -> None:
    """With a real limit on memory, under which a batch of 1,400 images does not fit, but the validation images do."""
    configure(trained, 1400, 200)
    status, output = run(trained, "train", 9)
    found = SUGGESTION.fullmatch(output.strip().splitlines()[-1])
    assert (status, bool(found)) == (1, True), output
    (newest, _) = runs(trained)
    assert newest.info.status == "FAILED"
    assert found is not None
    configure(trained, int(found[1]), 200)
    status, output = run(trained, "train", 9)
    assert status == 0, output
    message = "evaluate: the network and a batch of 1000 images do not fit in memory: end other processes\n"
    status, output = run(trained, "evaluate", 6)
    assert (status, output.endswith(message)) == (1, True), output


@limited
@pytest.mark.slow
@pytest.mark.tensorflow
@pytest.mark.parametrize(
    ("scale", "message"),
    [
        (4500, "train: memory does not suffice, even for a batch of one image: end other processes that use it "),
        (600, "train: memory does not suffice for a batch of validation images: end other processes that use it "),
    ],
)
def test_a_batch_of_one_image_does_not_fit(trained: Project, scale: int, message: str) -> None:
    configure(trained, 8, scale)
    status, output = run(trained, "train", 6)
    line = output.strip().splitlines()[-1]
    assert (status, line[: len(message)]) == (1, message), output
    assert "DEVICE" not in line, "it is a CPU"


@limited
@pytest.mark.slow
@pytest.mark.tensorflow
def test_an_interrupt_while_it_looks_for_a_batch_size(trained: Project, start: Start) -> None:
    configure(trained, 1400, 200)
    command = ["prlimit", f"--as={9 * GB}", sys.executable, "-m", "pipeline.stages.train"]
    process = start(command, trained.root, PATH=PATH, DEVICE="cpu")
    assert process.stdout
    next(line for line in process.stdout if "looking for a batch size" in line)
    process.send_signal(signal.SIGINT)
    output = process.stdout.read()
    assert process.wait() != 0
    assert "Traceback" not in output
    assert output.strip() == "train: interrupted; `dvc repro` continues from here"
