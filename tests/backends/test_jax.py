"""Training on JAX, in processes of its own: Keras has one backend a process."""

import os
import re
import subprocess
import sys

import pytest

from tests.conftest import ROOT, Project

IMPORTED = """
import os, runpy, sys
leave, heavy = os._exit, {"jax", "keras", "tensorflow", "torch"}
os._exit = lambda code: print("imported:", sorted(heavy & {*sys.modules}), flush=True) or leave(code)
runpy.run_module("pipeline.%s", run_name="__main__")
"""

# Both ways from the same weights, over an odd last batch, with dropout, augmentation and images that are watched.
AS_KERAS_DOES = """
import pathlib, tempfile
import keras, numpy as np
from pipeline.backends import load_backend
from pipeline.backends.base import Backend, Pass
from pipeline.dataset import Split
from pipeline.train.checkpoint import kept_weights
from pipeline.train.training import set_up
from tests.conftest import configured

random = np.random.default_rng(0)
labels = random.integers(0, 10, 500).astype(np.uint8)
images = (random.integers(0, 100, (500, 8, 8)) + 15 * labels[:, None, None]).astype(np.uint8)
train, watched = Split(images[:400], labels[:400]), Split(images[400:], labels[400:])
shift = {"_target_": "pipeline.train.augmentation.RandomShift", "pixels": 1}
training = {"epochs": 4, "augmentation": [shift], "label_smoothing": 0.1}
row = [("Flatten", {}), ("Dense", {"units": 16}), ("BatchNormalization", {}), ("Dropout", {"rate": 0.3})]
layers = [{"_target_": f"keras.layers.{name}", **arguments} for name, arguments in row]
model = {"name": "mlp", "layers": layers}
config = configured(pathlib.Path(tempfile.mkdtemp()), model=model, optimizer={"name": "adamw"}, training=training)
order = random.permutation(400).astype(np.int32)
one_hot = keras.utils.to_categorical(labels, 10).astype(np.float32)
backend, outcomes = load_backend(), []
assert type(backend).fit_epoch is not Backend.fit_epoch
for way in (backend.fit_epoch, lambda *arguments: Backend.fit_epoch(backend, *arguments)):
    _, learner = set_up(config, train, watched, "cpu")
    told = []
    for size, count, seen in ((64, 400, 100), (64, 144, 0)):
        data = Pass(order[:count], np.arange(400, 400 + seen, dtype=np.int32), one_hot, size)
        told.append(way(learner, data, []))
    values = [keras.ops.convert_to_numpy(v) for v in [*kept_weights(learner), *learner.optimizer.variables]]
    outcomes.append((told, values))
(mine, ours), (keras_told, theirs) = outcomes
for one, other in zip(mine, keras_told, strict=True):
    assert one.keys() == other.keys(), (one, other)
    np.testing.assert_allclose([*one.values()], [other[name] for name in one], rtol=1e-5)
for one, other in zip(ours, theirs, strict=True):
    np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
"""

# What compiles in an epoch with as many updates as an earlier one, or fewer.
COMPILES = """
import jax, keras
from pipeline.backends.jax import over_batches
import numpy as np
counts = []
def step(state, batch):
    counts.append(1)
    return {}, state + batch[0].sum()
run = over_batches(step)
batches, labels = np.ones((5, 3), np.int32), np.zeros((9, 10), np.float32)
for stop in (5, 2, 0):
    assert float(run(np.float32(0), batches, 0, stop, labels)) == 3 * stop
assert len(counts) <= 2, counts
"""


def python(script: str) -> None:
    environment = os.environ | {"KERAS_BACKEND": "jax"}
    command = [sys.executable, "-c", script]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def test_an_epoch_is_that_of_keras() -> None:
    python(AS_KERAS_DOES)


def test_an_epoch_of_another_length_compiles_nothing() -> None:
    python(COMPILES)


def test_the_stages_run_on_it_and_never_import_tensorflow(trained: Project) -> None:
    jax = {"KERAS_BACKEND": "jax", "DEVICE": "cpu"}
    for stage in ("train", "evaluate"):
        output = trained.succeed(sys.executable, "-c", IMPORTED % stage, **jax)
        assert "imported: ['jax', 'keras']" in output
    facts, metrics = trained.report("metrics.json")["training"], trained.report("metrics.json")["test"]
    assert (facts["backend"], facts["device"]) == ("jax", "cpu")
    assert metrics["accuracy"] > 0.8
    trained.succeed("python", "-m", "pipeline.evaluate")  # the same network on TensorFlow
    assert trained.report("metrics.json")["test"]["loss"] == pytest.approx(metrics["loss"], rel=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"KERAS_BACKEND": "jax", "DEVICE": "gpu"}, r"train: DEVICE=gpu, but jax sees no GPU: .*; or use DEVICE=cpu"),
        ({"KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cuda"}, r"train: JAX finds no device \(JAX_PLATFORMS=cuda\): .*"),
        ({"KERAS_BACKEND": "openvino"}, r"train: KERAS_BACKEND=openvino: must be jax, tensorflow, torch"),
        ({"KERAS_BACKEND": "torhc"}, r"train: KERAS_BACKEND=torhc: must be jax, tensorflow, torch"),
        ({"KERAS_BACKEND": "torch"}, r"train: KERAS_BACKEND=torch: torch is not installed: pip install torch"),
    ],
)
def test_what_is_not_there_is_said_in_a_line(trained: Project, settings: dict[str, str], message: str) -> None:
    result = trained.run(sys.executable, "-m", "pipeline.train", CUDA_VISIBLE_DEVICES="", **settings)
    assert result.returncode == 1
    assert re.fullmatch(message, result.stdout.strip().splitlines()[-1])
    assert "Traceback" not in result.stdout


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"training": {"xla": False}}, "training.xla: false: jax computes with XLA alone; auto or true"),
        ({"optimizer": {"name": "averaged"}}, "optimizer.use_ema: has no effect on jax: leave it out"),
    ],
)
def test_what_it_cannot_do_is_refused(trained: Project, params: dict[str, object], message: str) -> None:
    averaged = "name: averaged\n_target_: keras.optimizers.SGD\nlearning_rate: 0.1\nuse_ema: true\n"
    (trained.root / "conf" / "optimizer" / "averaged.yaml").write_text(averaged, encoding="utf-8")
    trained.params(recipe="smoke", **params)
    trained.succeed("python", "-m", "pipeline.compose")
    result = trained.run(sys.executable, "-m", "pipeline.train", KERAS_BACKEND="jax")
    assert (result.returncode, "Traceback" in result.stdout) == (1, False)
    assert f"train: {message}" in result.stdout
