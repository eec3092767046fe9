"""Several devices share each batch, and the result is that of one device; here, they are virtual CPU devices."""

import json
import re
import shutil
import subprocess
import sys
from typing import Any

import pytest

from pipeline.core import device
from pipeline.core.device import check_batch_size, use_devices, wanted_count
from pipeline.core.errors import PipelineError
from tests.conftest import ROOT, Project, environment

DIVERGING = "one image that overflows"
PARTS = " in parts"  # interrupted on one device, and continued on several
FEW = "schedule", "RMSprop", "convolution", "small batches", "noise", "few images in the last batch", DIVERGING
OTHER_NOISE = "noise"  # on TensorFlow, each device has its own random numbers
UNSUPPORTED = {  # by TensorFlow on several devices
    "averages written back": "optimizer.ema_overwrite_frequency: Keras does not support it on several devices",
    "accumulation": "optimizer.gradient_accumulation_steps: Keras does not support it on several devices",
    "clipped norms": "optimizer.clipnorm: Keras does not support it on several devices",
    "clipped values": "optimizer.clipvalue: Keras does not support it on several devices",
    "clipped norm of all": "optimizer.global_clipnorm: Keras does not support it on several devices",
    "xla": "training.xla: true: XLA on TensorFlow does not support several devices",
    "few images in the last batch": "the last batch of 407 images has 3, fewer than the 4 devices",
}
Results = dict[str, dict[int, Any]]


def train_cases(backend: str, devices: int, *cases: str) -> Results:
    """Results by case and number of devices."""
    command = [sys.executable, "-m", "tests.core.backends.several", str(devices), *cases]
    settings = environment({"KERAS_BACKEND": backend})
    output = subprocess.run(command, cwd=ROOT, env=settings, capture_output=True, text=True, check=False)
    assert output.returncode == 0, output.stderr
    results: Results = {}
    for name, count, result in map(json.loads, re.findall(r"^\[\".*", output.stdout, re.MULTILINE)):
        results.setdefault(name, {})[count] = result
    return results


def check_results(backend: str, devices: int, *cases: str) -> None:
    """Compare the results on several devices with those on one."""
    results = train_cases(backend, devices, *cases)
    assert set(cases) <= set(results)
    assert results.pop("many images") == {devices: {"sums": [7 * 28 * 28] * 2}}
    if backend == "jax":
        assert results.pop("shares of 8") == {devices: [8 // devices] * devices}
    for name in [name for name in results if name.endswith(PARTS)]:
        whole = name.removesuffix(PARTS)
        results[name][1] = results[whole][1]
    for name, by_count in results.items():
        one, several = by_count[1], by_count[devices]
        if backend == "tensorflow" and name in UNSUPPORTED and not (name.startswith("few") and devices == 2):
            assert several["error"].startswith(UNSUPPORTED[name]), name
            continue
        if name == DIVERGING:
            assert "in epoch 1: the training diverged" in one["error"]
            assert "in epoch 1: the training diverged" in several["error"]
            continue
        loose = backend == "tensorflow" and name == OTHER_NOISE
        assert several["losses"] == pytest.approx(one["losses"], rel=0.02 if loose else 1e-4), name
        assert several["last losses"] == pytest.approx(one["last losses"], rel=0.02 if loose else 1e-4), name
        if loose:
            assert several["losses"] != one["losses"]
        else:
            assert several["weights"] == pytest.approx(one["weights"], rel=1e-3, abs=1e-4), name
            assert several["accuracies"] == pytest.approx(one["accuracies"], abs=0.011), name  # one of 101 images


@pytest.mark.tensorflow
@pytest.mark.long
def test_four_devices_train_as_one() -> None:
    check_results("tensorflow", 4, *FEW)


@pytest.mark.jax
@pytest.mark.parametrize("devices", [2, 4])
def test_devices_train_as_one_on_jax(devices: int) -> None:
    check_results("jax", devices, *FEW)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["tensorflow", "jax"])
def test_every_option_has_the_same_effect_on_two_devices(backend: str) -> None:
    check_results(backend, 2)


@pytest.mark.parametrize(("text", "count"), [("", 1), ("1", 1), ("4", 4), ("all", None), (" ALL ", None)])
def test_the_number_of_devices(monkeypatch: pytest.MonkeyPatch, text: str, count: int | None) -> None:
    monkeypatch.setenv("DEVICES", text)
    assert wanted_count() == count


@pytest.mark.parametrize("text", ["0", "-1", "two", "1.5", "2,3", "\u0663", "99999"])
def test_a_number_that_is_none(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("DEVICES", text)
    with pytest.raises(PipelineError, match=f"^DEVICES={re.escape(text)}: must be a number of devices, or all$"):
        use_devices(64)


class Gpus:
    """A backend that sees two GPUs."""

    divides_batches, devices = True, 1

    def available_devices(self) -> int:
        return 2

    def use_devices(self, count: int) -> None:
        self.devices = count


@pytest.mark.parametrize(
    ("count", "size", "message"),
    [
        ("4", 64, "DEVICES=4, but tensorflow sees 2 GPUs: set DEVICES=2"),
        ("2", 63, "training.batch_size=63 cannot be divided among 2 devices: set a multiple of 2, or another DEVICES"),
        ("all", 63, "training.batch_size=63 cannot be divided among 2 devices: set a multiple of 2, or another"),
        ("9999", 64, "training.batch_size=64 cannot be divided among 9999 devices"),
    ],
)
def test_more_devices_than_there_are_or_than_fit(
    monkeypatch: pytest.MonkeyPatch, count: str, size: int, message: str
) -> None:
    monkeypatch.setenv("DEVICES", count)
    monkeypatch.setattr(device, "load_backend", Gpus)
    monkeypatch.setattr(device, "use_device", lambda *_, **__: "gpu")
    with pytest.raises(PipelineError) as raised:
        use_devices(size)
    assert str(raised.value).startswith(message)


def test_one_device_takes_any_batch() -> None:
    check_batch_size(63, 1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"DEVICES": "2"}, "train: DEVICES=2, but tensorflow sees no GPU; DEVICE=cpu divides the processor into"),
        ({"DEVICES": "3", "DEVICE": "cpu"}, "train: training.batch_size=128 cannot be divided among 3 devices: set a"),
        ({"DEVICES": "two"}, "train: DEVICES=two: must be a number of devices, or all"),
        ({"JAX_NUM_PROCESSES": "2"}, "train: JAX_PROCESS_ID=: must be 0 to 1, another one for each process"),
    ],
)
def test_the_stage_explains_what_it_cannot_do(trained: Project, settings: dict[str, str], message: str) -> None:
    if settings.get("DEVICE") != "cpu" and shutil.which("nvidia-smi"):
        pytest.skip("there is a GPU")
    result = trained.run("python", "-m", "pipeline.stages.train", KERAS_BACKEND="tensorflow", **settings)
    assert (result.returncode, result.stdout.strip().splitlines()[-1][: len(message)]) == (1, message)


@pytest.mark.tensorflow
def test_a_run_tells_its_devices(trained: Project) -> None:
    """The stages train on two devices, and the network is evaluated on one."""
    settings = {"DEVICE": "cpu", "DEVICES": "2", "KERAS_BACKEND": "tensorflow"}
    losses = [trained.report("evaluation.json")["test"]["loss"]]
    trained.succeed(sys.executable, "-m", "pipeline.stages.train", **settings)
    assert "2 × cpu" in trained.succeed("python", "-m", "pipeline.stages.evaluate", **settings)
    losses.append(trained.report("evaluation.json")["test"]["loss"])
    assert losses[1] == pytest.approx(losses[0], rel=0.1)  # dropout differs
    run = json.loads((trained.root / "models" / "run.json").read_text(encoding="utf-8"))
    assert (run["device"], run["devices"]) == ("cpu", 2)
    assert "DEVICES=2" in run["environment"]
    assert "2 × cpu" in (trained.root / "reports" / "report.html").read_text(encoding="utf-8")
    assert "2 × CPU" in (trained.root / "reports" / "model_card.md").read_text(encoding="utf-8")
