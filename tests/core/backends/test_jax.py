"""Training on JAX. Keras has one backend per process, so `make test-jax` runs the tests marked `jax`."""

import re
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from pipeline.core.backends import load_backend
from pipeline.core.backends.base import Backend, Pass
from pipeline.core.dataset import Split
from pipeline.core.errors import PipelineError
from pipeline.stages.train.checkpoint import kept_weights
from pipeline.stages.train.training import set_up
from tests.conftest import Project, configured

IMPORTED = """
import os, runpy, sys
leave, heavy = os._exit, {"jax", "keras", "tensorflow", "torch"}
os._exit = lambda code: print("imported:", sorted(heavy & {*sys.modules}), flush=True) or leave(code)
runpy.run_module("pipeline.stages.%s", run_name="__main__")
"""
SHIFT = {"_target_": "pipeline.stages.train.augmentation.RandomShift", "pixels": 1}
ROW: dict[str, dict[str, Any]]
ROW = {"Flatten": {}, "Dense": {"units": 16}, "BatchNormalization": {}, "Dropout": {"rate": 0.3}}
LAYERS = [{"_target_": f"keras.layers.{name}", **arguments} for name, arguments in ROW.items()]
CONVOLUTION: list[dict[str, Any]]
CONVOLUTION = [
    {"_target_": "keras.layers.Reshape", "target_shape": [8, 8, 1]},
    {"_target_": "keras.layers.Conv2D", "filters": 2, "kernel_size": 3},
]
RANDOM = np.random.default_rng(0)
LABELS = RANDOM.integers(0, 10, 500).astype(np.uint8)
IMAGES = (RANDOM.integers(0, 100, (500, 8, 8)) + 15 * LABELS[:, None, None]).astype(np.uint8)
TRAIN, VALIDATION = Split(IMAGES[:400], LABELS[:400]), Split(IMAGES[400:], LABELS[400:])


def data_of(size: int, count: int, validation: int) -> Pass:
    """A pass over the first `count` training images of a random order, and over `validation` validation images."""
    order = np.random.default_rng(1).permutation(400).astype(np.int32)[:count]
    labels = keras.utils.to_categorical(LABELS, 10).astype(np.float32)
    return Pass(order, np.arange(400, 400 + validation, dtype=np.int32), labels, size)


def state_of(learner: keras.Model) -> list[Any]:
    return [keras.ops.convert_to_numpy(v) for v in [*kept_weights(learner), *learner.optimizer.variables]]


@pytest.mark.jax
@pytest.mark.parametrize("convolution", [[], CONVOLUTION])
def test_an_epoch_matches_keras(tmp_path: Path, convolution: list[dict[str, Any]]) -> None:
    """Start from the same weights, with a smaller last batch, dropout, augmentation and validation images.

    The network without a convolution is trained in a loop on the device.
    """
    from pipeline.core.backends.jax import has_convolutions

    training = {"epochs": 4, "augmentation": [SHIFT], "label_smoothing": 0.1}
    model = {"name": "mlp", "layers": [*convolution, *LAYERS]}
    config = configured(tmp_path, model=model, optimizer={"name": "adamw"}, training=training)
    backend, outcomes = load_backend(), []
    assert type(backend).fit_epoch is not Backend.fit_epoch
    for fit_epoch in (backend.fit_epoch, lambda *arguments: Backend.fit_epoch(backend, *arguments)):
        _, learner = set_up(config, TRAIN, VALIDATION, "cpu")
        assert has_convolutions(learner) is bool(convolution)
        metrics = [fit_epoch(learner, data_of(*sizes), []) for sizes in ((64, 400, 100), (64, 144, 0))]
        outcomes.append((metrics, state_of(learner)))
    (mine, ours), (keras_metrics, theirs) = outcomes
    for one, other in zip(mine, keras_metrics, strict=True):
        assert one.keys() == other.keys()
        np.testing.assert_allclose([*one.values()], [other[name] for name in one], rtol=1e-5)
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.jax
@pytest.mark.parametrize("convolution", [[], CONVOLUTION])
def test_compilation_in_advance_changes_nothing_and_covers_every_epoch(
    tmp_path: Path, convolution: list[dict[str, Any]]
) -> None:
    import jax

    training = {"epochs": 4, "augmentation": [SHIFT], "warm_up": 0.25, "decay": "cosine"}
    config = configured(tmp_path, model={"name": "mlp", "layers": [*convolution, *LAYERS]}, training=training)
    _, learner = set_up(config, TRAIN, VALIDATION, "cpu")
    backend, before = load_backend(), state_of(learner)
    for count in (400, 144):
        backend.compile(learner, data_of(64, count, 100))
    for one, other in zip(state_of(learner), before, strict=True):
        np.testing.assert_array_equal(one, other)
    compiled: list[str] = []
    jax.monitoring.register_event_duration_secs_listener(lambda name, *_, **__: compiled.append(name))
    for count in (400, 144, 128, 144):  # full batches need no compilation for their number
        figures = backend.fit_epoch(learner, data_of(64, count, 100), [])
        assert np.isfinite(figures["val_loss"])
    assert [name for name in compiled if "backend_compile" in name] == []
    assert backend.learning_rate(learner.optimizer) > 0  # compiles the operations that follow the warm-up
    compiled.clear()
    assert backend.learning_rate(learner.optimizer) > 0
    jax.monitoring.clear_event_listeners()
    assert [name for name in compiled if "jaxpr_to_mlir" in name] == []


@pytest.mark.jax
def test_xla_cannot_be_disabled(tmp_path: Path) -> None:
    message = "training.xla: false: JAX always uses XLA; set auto or true"
    with pytest.raises(PipelineError, match=re.escape(message)):
        set_up(configured(tmp_path, training={"xla": False}), TRAIN, VALIDATION, "cpu")


@pytest.mark.jax
def test_the_stages_run_on_jax_and_never_import_tensorflow(trained: Project) -> None:
    jax = {"KERAS_BACKEND": "jax", "DEVICE": "cpu"}
    requirements = trained.root / "requirements-jax.txt"
    text = requirements.read_text(encoding="utf-8")
    requirements.write_text(re.sub(r"^jax==\S+", "jax==9", text, flags=re.MULTILINE), encoding="utf-8")
    for stage in ("train", "evaluate"):
        output = trained.succeed(sys.executable, "-c", IMPORTED % stage, **jax)
        assert "imported: ['jax', 'keras']" in output
        assert "is installed, but requirements-jax.txt pins 9: results may differ" in output
    page = (trained.root / "reports" / "report.html").read_text(encoding="utf-8")
    assert "KERAS_BACKEND=jax dvc" in page
    facts, metrics = trained.report("evaluation.json")["training"], trained.report("evaluation.json")["test"]
    assert (facts["backend"], facts["device"]) == ("jax", "cpu")
    assert metrics["accuracy"] > 0.8
    tensorflow = {"KERAS_BACKEND": "tensorflow", "DEVICE": "cpu"}
    trained.succeed("python", "-m", "pipeline.stages.evaluate", **tensorflow)  # the same network
    assert trained.report("evaluation.json")["test"]["loss"] == pytest.approx(metrics["loss"], rel=1e-5)
    losses = []
    trained.succeed("python", "-m", "pipeline.stages.train", **tensorflow)
    for settings in (tensorflow, jax):
        trained.succeed("python", "-m", "pipeline.stages.evaluate", **settings)
        losses.append(trained.report("evaluation.json")["test"]["loss"])
    assert trained.report("evaluation.json")["training"]["backend"] == "tensorflow"
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


MISSING = """
import runpy, sys
sys.modules.update(dict.fromkeys({missing}))
runpy.run_module("pipeline.stages.train", run_name="__main__")
"""
JAX_INSTALLED = ", and KERAS_BACKEND=jax uses jax, which is installed"


@pytest.mark.parametrize(
    ("missing", "chosen", "rest"),
    [
        (["torch", "tensorflow"], "torch", JAX_INSTALLED),
        (["torch", "tensorflow"], "", JAX_INSTALLED),
        (["torch", "tensorflow", "jax"], "jax", ""),
    ],
)
def test_a_backend_that_is_not_installed(trained: Project, missing: list[str], chosen: str, rest: str) -> None:
    result = trained.run(sys.executable, "-c", MISSING.format(missing=missing), KERAS_BACKEND=chosen)
    name = chosen or "tensorflow"
    message = f"train: KERAS_BACKEND={name}: {name} is not installed; make repro BACKEND={name} installs it{rest}"
    assert (result.returncode, result.stdout.strip().splitlines()[-1]) == (1, message)


NO_GPU = r"train: DEVICE=gpu, but jax sees no GPU: .*; or use DEVICE=cpu"
NO_PLATFORM = r"train: JAX finds no device \(JAX_PLATFORMS=cuda\): .*"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        pytest.param({"KERAS_BACKEND": "jax", "DEVICE": "gpu"}, NO_GPU, marks=pytest.mark.jax),
        pytest.param({"KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cuda"}, NO_PLATFORM, marks=pytest.mark.jax),
        ({"KERAS_BACKEND": "openvino"}, r"train: KERAS_BACKEND=openvino: must be one of jax, tensorflow, torch"),
        ({"KERAS_BACKEND": "torhc"}, r"train: KERAS_BACKEND=torhc: must be one of jax, tensorflow, torch"),
    ],
)
def test_a_missing_backend_or_device_is_one_line(trained: Project, settings: dict[str, str], message: str) -> None:
    result = trained.run(sys.executable, "-m", "pipeline.stages.train", CUDA_VISIBLE_DEVICES="", **settings)
    assert result.returncode == 1
    assert re.fullmatch(message, result.stdout.strip().splitlines()[-1])
    assert "Traceback" not in result.stdout


@pytest.mark.jax
def test_a_network_of_jax_is_promoted(trained: Project) -> None:
    trained.succeed("dvc", "repro", KERAS_BACKEND="jax", DEVICE="cpu")
    trained.commit()
    output = trained.succeed("python", "-m", "pipeline.commands.promote", "--base", "HEAD", KERAS_BACKEND="jax")
    assert "digits version 1" in output
