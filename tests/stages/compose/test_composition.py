import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.core.config import Config
from pipeline.core.errors import PipelineError
from pipeline.core.validation import load_config, parse_config
from pipeline.stages.compose.composition import compose_config, options, to_yaml
from tests.conftest import CONF, compose_ours

EVERY_OPTION = [(group, option) for group, names in options(CONF).items() for option in names]
SCHEDULE = "{_target_: keras.optimizers.schedules.CosineDecay, initial_learning_rate: 1e-3, decay_steps: 100}"


def compose_text(tmp_path: Path, text: str, conf: Path = CONF) -> dict[str, Any]:
    params = tmp_path / "params.yaml"
    params.write_text(text, encoding="utf-8")
    return compose_ours(params) if conf == CONF else compose_config(conf, params)


def typed(values: dict[str, Any]) -> Config:
    return parse_config(values, {}, "test")


@pytest.mark.parametrize(
    "text",
    [
        "hydra: {searchpath: [pkg://conf.package]}\n",
        "# @package hydra\nsearchpath: [pkg://conf.package]\n",
        "defaults: [override hydra/launcher: basic]\n",
        "defaults: [pkg://conf.package/model]\n",
        "hydra: {searchpath: [pkg://this]}\nx: !!python/object/apply:pathlib.Path [a]\n",
    ],
)
def test_conf_cannot_configure_hydra(tmp_path: Path, text: str) -> None:
    """Hydra could import a package, which can run any code."""
    shutil.copytree(CONF, tmp_path / "conf")
    (tmp_path / "conf" / "recipe" / "theirs.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(PipelineError, match=r"recipe/theirs\.yaml(: configures Hydra itself| is not valid)"):
        compose_text(tmp_path, "recipe: baseline", tmp_path / "conf")


@pytest.mark.parametrize(
    "text",
    [
        "day: 2024-99-99\n",
        f"number: {'9' * 5000}\n",
        "a: &a {b: *a}\n",
        f"a: {'[' * 1500}\n",
        "defaults: 5\n",
        "gate: {seed_noise: '${oc.env:HOME}'}\n",
        "gate: {seed_noise: '${oc.create:{mnist: {seeds: ${oc.env:HOME}}}}'}\n",
        "recipe: ../../theirs\ngate: 5\n",
    ],
)
def test_an_invalid_recipe_is_an_error_without_secrets(
    tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "s3cret")
    shutil.copytree(CONF, tmp_path / "conf")
    (tmp_path / "theirs.yaml").write_text("gate: {seed_noise: {mnist: s3cret}}\n", encoding="utf-8")
    (tmp_path / "conf" / "recipe" / "theirs.yaml").write_text(f"# @package _global_\n{text}", encoding="utf-8")
    with pytest.raises(PipelineError) as error:
        compose_text(tmp_path, "recipe: theirs", tmp_path / "conf")
    assert "s3cret" not in str(error.value)


@pytest.mark.parametrize(("group", "option"), EVERY_OPTION)
def test_every_option_file_composes(tmp_path: Path, group: str, option: str) -> None:
    composed = typed(compose_text(tmp_path, f"{group}: {option}"))
    chosen = getattr(composed, group)
    assert option == (chosen if group == "recipe" else chosen.name)


def test_params_yaml_selects_the_baseline(tmp_path: Path) -> None:
    shipped = compose_config(CONF, CONF.parent / "params.yaml")
    assert shipped == compose_text(tmp_path, "recipe: baseline")
    assert shipped["recipe"] == "baseline"


def test_recipe_notebook_has_the_settings_of_the_notebook(tmp_path: Path) -> None:
    composed = compose_text(tmp_path, "recipe: notebook")
    assert (
        composed["training"]
        | {
            "epochs": 20,
            "batch_size": 128,
            "validation_fraction": 0.0,
            "validate_on": "test",
            "early_stopping": None,
            "keep_best_epoch": False,
        }
        == composed["training"]
    )
    # Keras's defaults for RMSprop, which the notebook uses.
    assert composed["optimizer"] == {
        "name": "rmsprop",
        "_target_": "keras.optimizers.RMSprop",
        "learning_rate": 0.001,
        "rho": 0.9,
        "momentum": 0.0,
    }
    layers = [(layer["_target_"].split(".")[-1], *list(layer.values())[1:]) for layer in composed["model"]["layers"]]
    dense, dropout = ("Dense", 512, "relu"), ("Dropout", 0.2)
    assert layers == [("Flatten",), dense, dropout, dense, dropout]


def test_baseline_differs_from_the_notebook_only_in_its_validation_set(tmp_path: Path) -> None:
    baseline, notebook = (compose_text(tmp_path, f"recipe: {name}") for name in ("baseline", "notebook"))
    baseline["training"] |= {"validation_fraction": 0.0, "validate_on": "test"}
    assert baseline | {"recipe": "notebook", "gate": notebook["gate"]} == notebook


def test_a_name_selects_an_option_and_a_mapping_overrides_its_values(tmp_path: Path) -> None:
    composed = compose_text(tmp_path, "model: {name: cnn, filters: 16}\ntraining: {epochs: 7, batch_size: null}")
    assert composed["model"]["layers"][0]["filters"] == 16
    assert (composed["training"]["epochs"], composed["training"]["batch_size"]) == (7, 128)


def test_params_override_the_recipe(tmp_path: Path) -> None:
    composed = compose_text(tmp_path, "recipe: smoke\ndataset: mnist\ntraining: {epochs: 9}")
    assert (composed["dataset"]["name"], composed["training"]["epochs"]) == ("mnist", 9)


def test_a_learning_rate_schedule_composes(tmp_path: Path) -> None:
    composed = compose_text(tmp_path, f"optimizer: {{name: null, learning_rate: {SCHEDULE}}}")
    assert composed["optimizer"]["learning_rate"]["decay_steps"] == 100


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "recipe: nobook",
            "params.yaml: recipe: 'nobook' is not one of conf/recipe/: baseline, champion, fast, notebook, ",
        ),
        ("model: mpl", "params.yaml: model: 'mpl' is not one of conf/model/: cnn, convnet, mlp. Did you mean 'mlp'?"),
        ("dataset: mnits", "params.yaml: dataset: 'mnits' is not one of conf/dataset/: digits, mnist"),
        ("optimizer: sdg", "params.yaml: optimizer: 'sdg' is not one of conf/optimizer/: adam, adamw, rmsprop"),
        ("model: 3", "params.yaml: model: 3 is not one of conf/model/"),
        ("training: {epoch: 5}", "params.yaml: training.epoch: unknown key 'epoch'; training has epochs, "),
        ("trainning: {epochs: 5}", "unknown key 'trainning'; the top level has"),
        ("trainning: {epochs: 5}", "Did you mean 'training'?"),
        (
            "training: {epochs: 010}",
            "params.yaml is not valid YAML: YAML reads 010 as another number, octal or in base 60",
        ),
        ("training: {epochs: 1:30}", "params.yaml is not valid YAML: YAML reads 1:30 as another number"),
        ("training: {epochs: abc}", "params.yaml: training.epochs: got 'abc'; input should be a valid integer"),
        ("training: {epochs: 2.5}", "params.yaml: training.epochs: got 2.5; input should be a valid integer"),
        ("training: {epochs: true}", "params.yaml: training.epochs: got True; input should be a valid integer"),
        ("training: {epochs: 0}", "params.yaml: training.epochs: got 0; input should be greater than 0"),
        ("training: {batch_size: -1}", "params.yaml: training.batch_size: got -1; input should be greater than 0"),
        (
            "training: {validation_fraction: 1.0}",
            "training.validation_fraction: got 1.0; input should be less than 1",
        ),
        (
            "training: {validation_fraction: -0.1}",
            "validation_fraction: got -0.1; input should be greater than or equal",
        ),
        ("training: {precision: float8}", "training.precision: got 'float8'; input should be 'auto', 'float32', "),
        ("training: {validate_on: train}", "training.validate_on: got 'train'"),
        ("training: 5", "params.yaml: training: got 5"),
        ("seed: -1", "params.yaml: seed: got -1"),
        (
            "optimizer: {name: , learning_rate: 0}",
            "params.yaml: optimizer.learning_rate: got 0; a learning rate must be",
        ),
        ("optimizer: {name: , learning_rate: .nan}", "optimizer.learning_rate: got nan; a learning rate must be"),
        ("optimizer: {name: , learning_rate: .inf}", "optimizer.learning_rate: got inf; a learning rate must be"),
        (
            "optimizer: {name: , learning_rate: abc}",
            "params.yaml: optimizer.learning_rate: got 'abc'; a learning rate",
        ),
        (
            "optimizer: {name: , learning_rate: {a: 1}}",
            "optimizer.learning_rate: has no _target_: set it to a class or function",
        ),
        ("training: {xla: maybe}", "params.yaml: training.xla: got 'maybe'; input should be 'auto', True or False"),
        ("traning: {epochs: null}", "params.yaml: traning.epochs: unknown key 'traning'"),
        (
            "model: {hidden_units: 3}",
            "params.yaml: model: has values but no name: set model.name to one of cnn, convnet, mlp",
        ),
        ("model: {name: , layers: [{units: 3}]}", "model.layers.0: has no _target_: set it to a class or function"),
        ("optimizer: {name: , learning_rate: -0.1}", "params.yaml: optimizer.learning_rate: got -0.1"),
        (
            "optimizer: {name: , _target_: os.system}",
            "'os.system' is not allowed: it must name an object in keras.layers, optimizers,",
        ),
        (
            "model: {name: , layers: [{_target_: subprocess.run}]}",
            "model.layers.0: _target_ 'subprocess.run' is not allowed",
        ),
        ("model: {name: , layers: [{_target_: keras.src.os.system}]}", "_target_ 'keras.src.os.system' is not allowed"),
        ("model: {name: , layers: [{_target_: kerasx.Dense}]}", "_target_ 'kerasx.Dense' is not allowed"),
        ("model: {name: , layers: [{_target_: keras.utils.get_file}]}", "'keras.utils.get_file' is not allowed"),
        ("model: {name: , layers: [{_target_: keras.saving.load_model}]}", "'keras.saving.load_model' is not allowed"),
        (
            "model: {name: convnet, builder: {_target_: pipeline.repository.git.git}}",
            "'pipeline.repository.git.git' is not allowed",
        ),
        ("model: {name: convnet, builder: {_target_: pipeline.trained.x}}", "'pipeline.trained.x' is not allowed"),
        (
            "model: {name: convnet, builder: {_target_: pipeline.stages.train}}",
            "'pipeline.stages.train' is not allowed",
        ),
        ("model: &model {name: cnn, more: *model}", "the alias *model is inside its own anchor"),
        ("a: &a [*a]", "params.yaml is not valid YAML: the alias *a is inside its own anchor"),
        ("model: {name: , layers: []}", "model: a model needs either layers or a builder"),
        ("seed: ${oc.env:HOME}", "composed.yaml is committed, so it must not depend on one machine's"),
        ("seed: '${ oc.env : HOME}'", "composed.yaml is committed, so it must not depend"),
        ("seed: ${oc.decode:${oc.env:SEED,1}}", "composed.yaml is committed, so it must not depend"),
        ("seed: '${oc.${oc.decode:env}:HOME}'", "composed.yaml is committed, so it must not depend"),
        ("recipe: ${oc.env:HOME}", "is not one of conf/recipe/"),
        ("seed: '${now:%H}'", "composed.yaml is committed, so it must not depend"),
        ("gate: {alpha: '${oc.env:HOME}'}", "composed.yaml is committed, so it must not depend"),
        ("seed: ${nothing}", "cannot compose "),
        ("[a", "params.yaml is not valid YAML"),
        ("- a", "params.yaml must be a mapping"),
        ("training: {validation_fraction: 0}", "validation_fraction is 0, so the validation set is empty"),
        ("training: {validate_on: none}", "but validate_on is none, so the held-out images are not used"),
        ("recipe: notebook\ntraining: {validation_fraction: 0.1}", "but validate_on is test, so the held-out images"),
        ("training: {warm_up: 0.1}", "training: warm_up is 0.1, but decay is none: set training.decay=cosine, or"),
        ("training: {warm_up: 1.0, decay: cosine}", "training.warm_up: got 1.0; input should be less than 1"),
        ("training: {decay: linear}", "training.decay: got 'linear'; input should be 'none' or 'cosine'"),
        ("training: {label_smoothing: -0.1}", "training.label_smoothing: got -0.1; input should be greater than or"),
        ("training: {label_smoothing: 1.0}", "training.label_smoothing: got 1.0; input should be less than 1"),
        ("model: {name: , members: 0}", "params.yaml: model.members: got 0; input should be greater than 0"),
        ("model: {name: , members: 1.5}", "params.yaml: model.members: got 1.5; input should be a valid integer"),
        ("model: {name: , test_time_shift: -1}", "model.test_time_shift: got -1; input should be greater than or"),
        ("training: {recalibrate: 5}", "params.yaml: training.recalibrate: got 5; input should be a valid boolean"),
        (
            "training: {augmentation: [{shift: 1}]}",
            "training.augmentation.0: has no _target_: set it to a class or function",
        ),
        ("training: {augmentation: [{_target_: os.abort}]}", "_target_ 'os.abort' is not allowed"),
        ("training: {augmentation: 3}", "params.yaml: training.augmentation: got 3; input should be a valid list"),
        (
            f"training: {{decay: cosine}}\noptimizer: {{name: , learning_rate: {SCHEDULE}}}",
            "is a schedule, and training",
        ),
    ],
)
def test_an_error_names_the_invalid_value_and_the_allowed_ones(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(PipelineError) as error:
        compose_text(tmp_path, text)
    assert message in str(error.value)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("choice", ["early_stopping: 3", "keep_best_epoch: true"])
@pytest.mark.parametrize("validate_on", ["test", "none"])
def test_model_selection_on_the_test_set_is_rejected(tmp_path: Path, choice: str, validate_on: str) -> None:
    with pytest.raises(PipelineError, match="would select on"):
        compose_text(tmp_path, f"training: {{validate_on: {validate_on}, {choice}}}")
    assert compose_text(tmp_path, f"training: {{validate_on: validation, {choice}}}")


def test_all_errors_are_reported_at_once(tmp_path: Path) -> None:
    with pytest.raises(PipelineError) as error:
        compose_text(tmp_path, "training: {epochs: 0, batch_size: x}\nseed: -1")
    assert len(str(error.value).splitlines()) == 3


def test_an_error_in_an_option_file_is_not_attributed_to_params(tmp_path: Path) -> None:
    conf = tmp_path / "conf"
    shutil.copytree(CONF, conf)
    (conf / "optimizer" / "rmsprop.yaml").write_text("name: rmsprop\nlearning_rate: 1.0\n", encoding="utf-8")
    with pytest.raises(PipelineError, match=r"conf/: optimizer\._target_: is missing"):
        compose_text(tmp_path, "seed: 2", conf)


@pytest.mark.parametrize("content", [b"name: [", b"name: \xff"])
def test_an_unreadable_option_file_is_a_one_line_error(tmp_path: Path, content: bytes) -> None:
    shutil.copytree(CONF, tmp_path / "conf")
    (tmp_path / "conf" / "optimizer" / "rmsprop.yaml").write_bytes(content)
    with pytest.raises(PipelineError, match=r"rmsprop\.yaml is not valid YAML: ") as error:
        compose_text(tmp_path, "seed: 2", tmp_path / "conf")
    assert len(str(error.value).splitlines()) == 1
    (tmp_path / "params.yaml").write_bytes(content)
    with pytest.raises(PipelineError, match=r"params\.yaml is not valid YAML"):
        compose_config(CONF, tmp_path / "params.yaml")


@pytest.mark.parametrize("content", ["true", "false", "0", "0.5", "text", "[]", "[1]", "2024-01-02", '""'])
def test_a_file_that_is_not_a_mapping_is_refused(tmp_path: Path, content: str) -> None:
    shutil.copytree(CONF, tmp_path / "conf")
    (tmp_path / "conf" / "optimizer" / "rmsprop.yaml").write_text(content, encoding="utf-8")
    with pytest.raises(PipelineError, match=r"rmsprop\.yaml must be a mapping of keys to values"):
        compose_config(tmp_path / "conf", CONF.parent / "params.yaml")


@pytest.mark.parametrize(
    "entry", ["{1: 2}", "{true: cnn}", "5", "{}", "{model: [cnn, 1]}", "../../outside", "{model: ../cnn}"]
)
def test_a_default_that_is_no_option_is_refused(tmp_path: Path, entry: str) -> None:
    """`..` leads out of conf/, where DVC sees no change."""
    shutil.copytree(CONF, tmp_path / "conf")
    (tmp_path / "outside.yaml").write_text("# @package _global_\nseed: 77\n", encoding="utf-8")
    file = tmp_path / "conf" / "optimizer" / "rmsprop.yaml"
    file.write_text(f"defaults: [{entry}]\n{file.read_text(encoding='utf-8')}", encoding="utf-8")
    with pytest.raises(PipelineError, match=r"rmsprop\.yaml: defaults: must be a list of options"):
        compose_config(tmp_path / "conf", CONF.parent / "params.yaml")


def test_a_link_to_a_folder_is_refused(tmp_path: Path) -> None:
    shutil.copytree(CONF, tmp_path / "conf")
    (tmp_path / "conf" / "optimizer").rename(tmp_path / "options")
    (tmp_path / "conf" / "optimizer").symlink_to(tmp_path / "options")
    with pytest.raises(PipelineError, match="optimizer is a link to a folder"):
        compose_config(tmp_path / "conf", CONF.parent / "params.yaml")


def test_composed_yaml_round_trips(tmp_path: Path) -> None:
    values = compose_text(tmp_path, "recipe: smoke")
    path = tmp_path / "composed.yaml"
    path.write_text(to_yaml(values), encoding="utf-8")
    assert load_config(path) == typed(values)
    assert yaml.safe_load(to_yaml(values)) == values


def test_an_edited_composed_yaml_is_validated_again(tmp_path: Path) -> None:
    path = tmp_path / "composed.yaml"
    with pytest.raises(PipelineError, match=r"composed\.yaml is missing.*run `dvc repro`"):
        load_config(path)
    path.write_text("a: [", encoding="utf-8")
    with pytest.raises(PipelineError, match=r"is not YAML.*run `dvc repro`"):
        load_config(path)
    values = compose_text(tmp_path, "recipe: smoke")
    values["training"]["epochs"] = "many"
    path.write_text(to_yaml(values), encoding="utf-8")
    with pytest.raises(PipelineError, match=r"training\.epochs: got 'many'.*run `dvc repro`"):
        load_config(path)


@pytest.mark.parametrize("recipe", options(CONF)["recipe"])
@pytest.mark.parametrize("model", options(CONF)["model"])
def test_every_recipe_composes_with_every_model(tmp_path: Path, recipe: str, model: str) -> None:
    assert typed(compose_text(tmp_path, f"recipe: {recipe}\nmodel: {model}")).model.name == model


def test_a_model_file_can_set_the_number_of_ensemble_members(tmp_path: Path) -> None:
    shutil.copytree(CONF, tmp_path / "conf")
    file = tmp_path / "conf" / "model" / "mlp.yaml"
    file.write_text(file.read_text(encoding="utf-8") + "members: 2\n", encoding="utf-8")
    assert compose_text(tmp_path, "recipe: fast", tmp_path / "conf")["model"]["members"] == 2
    assert compose_text(tmp_path, "model: {name: mlp, members: 5}", tmp_path / "conf")["model"]["members"] == 5


def test_a_recipe_does_not_inherit_seed_noise(tmp_path: Path) -> None:
    assert set(compose_text(tmp_path, "recipe: baseline")["gate"]["seed_noise"]) == {"mnist", "digits"}
    assert set(compose_text(tmp_path, "recipe: champion")["gate"]["seed_noise"]) == {"mnist"}
    assert "- champion" in (CONF / "recipe" / "tiny.yaml").read_text(encoding="utf-8")
    assert compose_text(tmp_path, "recipe: tiny")["gate"]["seed_noise"] == {}


@pytest.mark.parametrize("alpha", [0, 0.5, 0.9, -1])
def test_alpha_is_above_0_and_below_a_half(tmp_path: Path, alpha: float) -> None:
    with pytest.raises(PipelineError, match=f"gate.alpha: got {alpha}; input should be "):
        compose_text(tmp_path, f"gate: {{alpha: {alpha}}}")


@pytest.mark.parametrize("gate", ["", "gate:\n", "gate: {seed_noise: }\n", "gate: {alpha: 0.1}\n"])
def test_a_recipe_without_recorded_seed_noise_has_none(tmp_path: Path, gate: str) -> None:
    shutil.copytree(CONF, tmp_path / "conf")
    text = f"# @package _global_\nrecipe: mine\n{gate}"
    (tmp_path / "conf" / "recipe" / "mine.yaml").write_text(text, encoding="utf-8")
    if gate == "gate:\n":
        with pytest.raises(PipelineError, match=r"conf/: gate: got None; input should be"):
            compose_text(tmp_path, "recipe: mine", tmp_path / "conf")
    else:
        assert compose_text(tmp_path, "recipe: mine", tmp_path / "conf")["gate"]["seed_noise"] == {}
