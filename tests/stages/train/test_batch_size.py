"""Exhausted memory: the stages name a batch size that fits."""

import re
import sys

import numpy as np
import pytest
import yaml

from pipeline.core.errors import is_exhausted
from pipeline.stages.train.batch_size import sizes_to_try
from tests.conftest import PATH, Project

UP = "keras.layers.UpSampling2D"
LAYERS = [
    {"_target_": "keras.layers.Reshape", "target_shape": [8, 8, 1]},
    {"_target_": UP, "size": 200},  # 10 MB for each image
    {"_target_": "keras.layers.GlobalAveragePooling2D"},
]
SUGGESTION = (
    r"train: training.batch_size=1400 does not fit in memory, but (\d+) does: dvc exp run -S training.batch_size=\1"
)
LIMIT = ("prlimit", f"--as={9 * 10**9}")


@pytest.mark.parametrize(
    "message",
    [
        "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 257.89GiB with allocator GPU_0_bfc on device 0.",
        "INTERNAL: Error dispatching computation: Out of memory allocating 554760074440 bytes.",
        "CUDA out of memory. Tried to allocate 257.89 GiB. GPU 0 has a total capacity of 139.80 GiB",
        "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to",
        "OOM when allocating tensor with shape[1188,8000,8,1000,1] and type float on /job:localhost/replica:0/task:0",
        "CUDNN_STATUS_ALLOC_FAILED",
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
    ("size", "images", "sizes"),
    [(8, 100, [8, 4, 2, 1]), (100, 10, [100, 5, 2, 1]), (1, 10, [1]), (3, 3, [3, 1]), (50, 1, [50, 1])],
)
def test_sizes_are_halved_down_to_one_image(size: int, images: int, sizes: list[int]) -> None:
    assert sizes_to_try(size, images) == sizes


@pytest.mark.slow
@pytest.mark.tensorflow
def test_a_batch_size_that_fits_is_suggested_and_fits(trained: Project) -> None:
    """With a real limit on memory."""
    params = {"recipe": "smoke", "dataset": "digits", "model": {"name": "mlp", "layers": LAYERS}}

    def train(size: int) -> tuple[int, str]:
        training = {"epochs": 1, "batch_size": size}
        (trained.root / "params.yaml").write_text(yaml.safe_dump(params | {"training": training}), encoding="utf-8")
        trained.succeed("python", "-m", "pipeline.stages.compose")
        result = trained.run(*LIMIT, sys.executable, "-m", "pipeline.stages.train", PATH=PATH)
        return result.returncode, result.stdout

    status, output = train(1400)
    line = output.strip().splitlines()[-1]
    assert status == 1
    found = re.fullmatch(SUGGESTION, line)
    assert found, output
    assert "Traceback" not in output
    assert "TensorFlow" not in output
    status, output = train(int(found[1]))
    assert status == 0, output
    evaluated = trained.run("prlimit", f"--as={6 * 10**9}", sys.executable, "-m", "pipeline.stages.evaluate", PATH=PATH)
    assert (evaluated.returncode, evaluated.stdout.splitlines()[-1]) == (
        1,
        "evaluate: a batch of 1000 images does not fit in memory: end other processes, or use DEVICE=cpu",
    )
