import itertools
import re
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from pipeline.core.config import Model, Optimizer
from pipeline.core.errors import PipelineError
from pipeline.stages.compose.composition import options
from pipeline.stages.train.components import builder
from pipeline.stages.train.network import build_network, build_optimizer, members_of
from tests.conftest import CONF, configured

NOTEBOOK_PARAMETERS = 669_706


def images(side: int, count: int = 5) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return np.random.default_rng(0).integers(0, 256, (count, side, side)).astype(np.uint8)


def test_the_notebooks_network_has_the_notebooks_parameters(tmp_path: Path) -> None:
    network = build_network(configured(tmp_path, recipe="notebook").model, (28, 28), 10)
    assert network.count_params() == NOTEBOOK_PARAMETERS
    kernels = [tuple(weight.shape) for weight in network.trainable_weights]
    assert kernels == [(784, 512), (512,), (512, 512), (512,), (512, 10), (10,)]


def test_the_notebooks_network_gives_the_notebooks_output(tmp_path: Path) -> None:
    network = build_network(configured(tmp_path, recipe="notebook").model, (28, 28), 10)
    layers = keras.layers
    plain = keras.Sequential(
        [
            keras.Input((784,)),
            layers.Dense(512, "relu"),
            layers.Dropout(0.2),
            layers.Dense(512, "relu"),
            layers.Dropout(0.2),
            layers.Dense(10, "softmax"),
        ]
    )
    plain.set_weights(network.get_weights())
    scaled = images(28).reshape(5, 784).astype("float32") / 255
    expected = plain.predict(scaled, verbose=0)
    np.testing.assert_allclose(network.predict(images(28), verbose=0), expected, atol=1e-6)


@pytest.mark.parametrize("option", options(CONF)["model"])
@pytest.mark.parametrize("side", [28, 8])
def test_every_model_accepts_every_image_size(tmp_path: Path, option: str, side: int) -> None:
    network = build_network(configured(tmp_path, model=option).model, (side, side), 10)
    probabilities = network.predict(images(side), verbose=0)
    assert probabilities.shape == (5, 10)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("option", options(CONF)["optimizer"])
def test_every_optimizer_is_built_as_configured(tmp_path: Path, option: str) -> None:
    config = configured(tmp_path, optimizer={"name": option, "learning_rate": 0.25})
    optimizer = build_optimizer(config.optimizer, config.training, 100)
    assert float(optimizer.learning_rate) == 0.25


def test_a_schedule_is_built(tmp_path: Path) -> None:
    schedule = {
        "_target_": "keras.optimizers.schedules.CosineDecay",
        "initial_learning_rate": 0.5,
        "decay_steps": 10,
    }
    config = configured(tmp_path, optimizer={"name": None, "learning_rate": schedule})
    optimizer = build_optimizer(config.optimizer, config.training, 100)
    assert float(optimizer.learning_rate) == 0.5


def test_probabilities_are_float32_in_mixed_precision(tmp_path: Path) -> None:
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        network = build_network(configured(tmp_path).model, (28, 28), 10)
        assert network.layers[-3].compute_dtype == "bfloat16"
        assert network.predict(images(28), verbose=0).dtype == np.float32
    finally:
        keras.config.set_dtype_policy("float32")


def model(*layers: dict[str, Any], **builder: Any) -> Model:
    return Model(name="test", layers=list(layers), **builder)


def test_a_builder_returns_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    def two_layers(units: int) -> list[keras.Layer]:
        return [keras.layers.Flatten(), keras.layers.Dense(units)]

    two_layers.__module__ = "pipeline.stages.train.network"
    monkeypatch.setattr("pipeline.stages.train.network.two_layers", builder(two_layers), raising=False)
    built = model(builder={"_target_": "pipeline.stages.train.network.two_layers", "units": 7})
    assert build_network(built, (28, 28), 10).layers[-3].units == 7


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ({"_target_": "keras.layers.Dens", "units": 3}, "model.layers.0: keras.layers.Dens cannot be built: "),
        ({"_target_": "keras.layers.Dense", "unts": 3}, "model.layers.0: keras.layers.Dense cannot be built: "),
        ({"_target_": "keras.layers.Dense", "units": -3}, "model.layers.0: keras.layers.Dense cannot be built: "),
        ({"_target_": "keras.layers.LSTM", "units": 3}, "model.layers.0: does not fit the layer before it: "),
        (
            {"_target_": "keras.layers.Conv2D", "filters": 2, "kernel_size": 3},
            "model.layers: the output has shape (26, 26, 2)",
        ),
        ({"_target_": "keras.optimizers.SGD"}, "model.layers.0: SGD is not a Keras layer"),
        ({"_target_": "keras.layers.BatchNormalization", "axis": 9}, "model.layers.0: "),
        ({"_target_": "keras.layers.Dense", "units": 3, "x": {1: 2}}, "model.layers.0: "),
        ({"_target_": "keras.layers.Dense", "units": 3, "kernel_initializer": "Constant"}, "model.layers.0: "),
        ({"_target_": "pipeline.stages.train.feeding.ImagePool", "images": 1}, "model.layers.0: "),
    ],
)
def test_an_invalid_layer_is_named(layer: dict[str, Any], message: str) -> None:
    with pytest.raises(PipelineError) as error:
        build_network(model(layer), (28, 28), 10)
    assert message in str(error.value)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    "target",
    [
        "pipeline.stages.train.checkpoint.shutil.rmtree",
        "pipeline.stages.train.checkpoint.json.dumps",
        "pipeline.stages.train.training.train",
        "pipeline.stages.train.checkpoint.Checkpoint",
        "pipeline.stages.train.network.keras.utils.get_file",
        "keras.layers.deserialize",
        "keras.optimizers.get",
        "keras.layers.Lambda",
        "keras.layers.TFSMLayer",
    ],
)
@pytest.mark.parametrize("depth", [0, 1, 2])
def test_a_target_that_is_not_allowed_is_not_called(target: str, depth: int, tmp_path: Path) -> None:
    witness = tmp_path / "witness"
    witness.mkdir()
    spec: dict[str, Any] = {"_target_": target, "path": str(witness), "filepath": str(witness)}
    for _ in range(depth):
        spec = {"_target_": "keras.layers.Dense", "units": 3, "kernel_initializer": spec}
    with pytest.raises(
        PipelineError, match=rf"model\.layers\.0: {re.escape(target)} (is not allowed: it |cannot be built: No mod)"
    ):
        build_network(model(spec), (8, 8), 10)
    assert witness.exists()


@pytest.mark.parametrize("key", ["_partial_", "_args_", "_recursive_", "_convert_", "class_name"])
def test_special_keys_besides_target_are_rejected(key: str) -> None:
    for spec in (
        {"_target_": "keras.layers.Dense", "units": 3, key: True},
        {"_target_": "keras.layers.Dense", "units": 3, "kernel_initializer": {key: "Zeros"}},
    ):
        with pytest.raises(PipelineError, match=rf"model\.layers\.0: {key} is not allowed: give only _target_ and its"):
            build_network(model(spec), (8, 8), 10)


@pytest.mark.parametrize(
    ("argument", "target", "kind"),
    [
        ("kernel_regularizer", "keras.layers.Flatten", "Regularizer"),
        ("bias_constraint", "keras.regularizers.L2", "Constraint"),
        ("kernel_initializer", "keras.optimizers.SGD", "Initializer"),
        ("activation", "keras.regularizers.L2", "Layer"),
    ],
)
def test_a_part_of_the_wrong_type_is_named(argument: str, target: str, kind: str) -> None:
    spec = {"_target_": "keras.layers.Dense", "units": 3, argument: {"_target_": target}}
    with pytest.raises(
        PipelineError, match=rf"model\.layers\.0: {argument}: must be of type {kind}, not {re.escape(target)}"
    ):
        build_network(model(spec), (8, 8), 10)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["logits"], "model.layers.0: name: logits is reserved"),
        (["a", "member_1"], "model.layers.1: name: member_1 is reserved"),
        (["a", "a"], "model.layers.1: name: two layers are called a"),
    ],
)
def test_a_reserved_or_repeated_layer_name_is_rejected(names: list[str], message: str) -> None:
    layers = [{"_target_": "keras.layers.Dense", "units": 3, "name": name} for name in names]
    with pytest.raises(PipelineError, match=re.escape(message)):
        build_network(model(*layers, {"_target_": "keras.layers.Flatten"}), (8, 8), 10)


def test_a_remaining_interpolation_is_plain_text(tmp_path: Path) -> None:
    spec = {"_target_": "keras.layers.Dense", "units": 3, "kernel_initializer": "${oc.create:{_target_: os.abort}}"}
    with pytest.raises(
        PipelineError, match=r"model\.layers\.0: keras\.layers\.Dense cannot be built: Could not interpret"
    ):
        build_network(model(spec), (8, 8), 10)


def test_a_custom_layer_is_rejected_because_it_could_not_be_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    class Own(keras.layers.Layer):  # type: ignore[misc]
        pass

    Own.__module__ = "pipeline.stages.train.network"
    monkeypatch.setattr("pipeline.stages.train.network.Own", Own, raising=False)
    with pytest.raises(
        PipelineError, match=r"model\.layers\.0: Own is not a built-in Keras layer, and a saved network"
    ):
        build_network(model({"_target_": "pipeline.stages.train.network.Own"}), (8, 8), 10)


@pytest.mark.parametrize("dtype", ["int8_from_float32", "int4_from_mixed_bfloat16", "gptq/4/128_from_float32"])
def test_quantized_weights_are_rejected_because_they_do_not_learn(dtype: str) -> None:
    dense = {"_target_": "keras.layers.Dense", "units": 4, "dtype": dtype}
    for spec in (dense, {"_target_": "keras.layers.SpectralNormalization", "layer": dense}):
        with pytest.raises(PipelineError, match=rf"model\.layers\.1: dtype {dtype}: Keras does not train quantized"):
            build_network(model({"_target_": "keras.layers.Flatten"}, spec), (8, 8), 10)


@pytest.mark.parametrize("dtype", ["float8_from_float32", "bfloat16", "mixed_bfloat16"])
def test_other_dtypes_are_built(dtype: str) -> None:
    dense = {"_target_": "keras.layers.Dense", "units": 4, "dtype": dtype}
    assert build_network(model({"_target_": "keras.layers.Flatten"}, dense), (8, 8), 10).count_params() > 0


def test_a_builder_must_return_layers() -> None:
    built = model(builder={"_target_": "keras.layers.Flatten"})
    with pytest.raises(PipelineError, match=r"keras\.layers\.Flatten must return a list of Keras layers"):
        build_network(built, (8, 8), 10)


def test_each_convolution_has_its_own_kernel_size(tmp_path: Path) -> None:
    network = build_network(configured(tmp_path, model="convnet").model, (28, 28), 10)
    convolutions = [layer for layer in network.layers if isinstance(layer, keras.layers.Conv2D)]
    kernels = [tuple(layer.kernel.shape) for layer in convolutions]
    assert kernels == [(5, 5, 1, 32), (3, 3, 32, 64), (5, 5, 64, 64), (3, 3, 64, 64)]
    assert [layer.output.shape[1] for layer in convolutions] == [14, 7, 7, 7], "the first two halve the image"
    assert network.count_params() == 562_602, "conf/model/convnet.yaml says so"


@pytest.mark.parametrize(
    "knobs", [{"kernels": [5, 3]}, {"kernels": 3}, {"convolutions": 32}, {"convolutions": [8, 8, 8, 8, 8]}]
)
def test_mismatched_convolutions_and_kernels_are_named(tmp_path: Path, knobs: dict[str, Any]) -> None:
    config = configured(tmp_path, model={"name": "convnet"} | knobs)
    with pytest.raises(PipelineError) as error:
        build_network(config.model, (28, 28), 10)
    (line,) = str(error.value).splitlines()
    assert line.startswith("model.builder: ")
    assert " convolutions and kernels must be lists of the same length, not " in line
    assert f"{next(iter(knobs.values()))}" in line


def test_a_target_that_is_not_an_optimizer_is_named(tmp_path: Path) -> None:
    bad = Optimizer.model_validate({"name": "Dense", "_target_": "keras.layers.Flatten", "learning_rate": 0.1})
    with pytest.raises(PipelineError, match=r"optimizer: keras\.layers\.Flatten"):
        build_optimizer(bad, configured(tmp_path).training, 100)


def test_an_invalid_argument_of_an_optimizer_is_named(tmp_path: Path) -> None:
    bad = Optimizer.model_validate(
        {"name": "rmsprop", "_target_": "keras.optimizers.RMSprop", "learning_rate": 0.1, "rhoo": 1}
    )
    with pytest.raises(PipelineError, match=r"optimizer: keras\.optimizers\.RMSprop cannot be built: .*rhoo"):
        build_optimizer(bad, configured(tmp_path).training, 100)


def test_an_ensemble_predicts_the_mean_of_its_members(tmp_path: Path) -> None:
    network = build_network(configured(tmp_path, model={"name": "mlp", "members": 3}).model, (28, 28), 10)
    members = members_of(network)
    alone = [keras.ops.softmax(member.predict(images(28), verbose=0)) for member in members]
    assert network.count_params() == 3 * NOTEBOOK_PARAMETERS
    assert np.abs(alone[0] - alone[1]).max() > 0.01, "members have different initial weights"
    np.testing.assert_allclose(network.predict(images(28), verbose=0), np.mean(alone, axis=0), atol=1e-6)


@pytest.mark.parametrize("pixels", [1, 2])
def test_shifted_views_are_averaged(tmp_path: Path, pixels: int) -> None:
    network = build_network(configured(tmp_path, model={"name": "mlp", "test_time_shift": pixels}).model, (28, 28), 10)
    (member,) = members_of(network)
    framed = images(28)
    framed[:, :pixels] = framed[:, -pixels:] = framed[:, :, :pixels] = framed[:, :, -pixels:] = 0
    moves = itertools.product((0, pixels, -pixels), repeat=2)
    views = [member.predict(np.roll(framed, move, axis=(1, 2)), verbose=0) for move in moves]
    expected = np.mean([keras.ops.softmax(view) for view in views], axis=0)
    np.testing.assert_allclose(network.predict(framed, verbose=0), expected, atol=1e-6)


def test_shifted_pixels_do_not_wrap_around(tmp_path: Path) -> None:
    network = build_network(configured(tmp_path, model={"name": "mlp", "test_time_shift": 1}).model, (4, 4), 10)
    (member,) = members_of(network)
    padded = np.pad(np.full((1, 4, 4), 255, np.uint8), ((0, 0), (1, 1), (1, 1)))
    views = [padded[:, y : y + 4, x : x + 4] for y, x in itertools.product(range(3), repeat=2)]
    expected = np.mean([keras.ops.softmax(member.predict(view, verbose=0)) for view in views], axis=0)
    np.testing.assert_allclose(network.predict(padded[:, 1:5, 1:5], verbose=0), expected, atol=1e-6)


@pytest.mark.parametrize(("pixels", "passes"), [(27, True), (28, False), (100, False)])
def test_a_shift_must_leave_part_of_the_image(tmp_path: Path, pixels: int, passes: bool) -> None:
    model = configured(tmp_path, model={"name": "mlp", "test_time_shift": pixels}).model
    if passes:
        build_network(model, (28, 30), 10)
    else:
        with pytest.raises(
            PipelineError,
            match=rf"model\.test_time_shift: a shift by {pixels} pixels leaves nothing of 28×30 images; set at most 27",
        ):
            build_network(model, (28, 30), 10)


def test_without_a_dense_layer_the_mean_of_each_filter_counts(tmp_path: Path) -> None:
    knobs = {"convolutions": [8, 16, 16, 16], "kernels": [5, 3, 3, 3], "units": 0}
    network = build_network(configured(tmp_path, model={"name": "convnet"} | knobs).model, (28, 28), 10)
    assert not [layer for layer in network.layers if isinstance(layer, keras.layers.Flatten)]
    assert network.count_params() == 200 + 1152 + 2 * 2304 + 4 * 56 + 170
