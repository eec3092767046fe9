"""Search spaces: what they allow, and what is refused before anything runs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml

from pipeline.core.errors import PipelineError
from pipeline.sweep.settings import Settings, probes
from pipeline.sweep.space import Sweep, merged, nested, read_sweep, suggest
from tests.conftest import ROOT

SPACE: dict[str, Any] = {
    "model.hidden_units": {"low": 32, "high": 256, "log": True},
    "optimizer.name": {"choices": ["rmsprop", "adamw"]},
    "optimizer.momentum": {"low": 0.0, "high": 0.9, "when": {"optimizer.name": "rmsprop"}},
    "training.batch_size": {"low": 64, "high": 256, "step": 64},
}
VALID: dict[str, Any] = {
    "objectives": ["val_accuracy"],
    "trials": 3,
    "settings": {"recipe": "baseline"},
    "space": SPACE,
}

Write = Callable[..., Settings]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Write a sweep and read it, with conf/ and params.yaml of the project."""
    for name in ("conf", "params.yaml", "requirements.txt"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "sweeps").mkdir()
    monkeypatch.chdir(tmp_path)

    def read(**changes: Any) -> Settings:
        (tmp_path / "sweeps" / "s.yaml").write_text(yaml.safe_dump(VALID | changes, sort_keys=False), encoding="utf-8")
        return Settings("s", read_sweep("s"))

    return read


@pytest.mark.parametrize("path", sorted((ROOT / "sweeps").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_sweep_is_valid(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    Settings(path.stem, read_sweep(path.stem)).check()


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"model.hiden_units": {"low": 1, "high": 2}}, "unknown key 'hiden_units'"),
        ({"model.hidden_units": {"low": 2, "high": 2}}, "space.model.hidden_units: low is 2, and high is 2"),
        ({"model.hidden_units": {"low": 3, "high": 2}}, "high must be larger"),
        ({"model.dropout": {"low": 0.0, "high": 1.0, "log": True}}, "a log scale requires a number above 0"),
        ({"model.hidden_units": {"low": 1, "high": 9, "log": True, "step": 2}}, "either a log scale or a step"),
        ({"model.hidden_units": {"low": 1, "high": 9, "step": 0}}, "step is 0"),
        ({"model.hidden_units": {"choices": []}}, "at least 1 item"),
        ({"model.hidden_units": {"low": 16, "high": 64.0}}, "write both with a decimal point, or neither"),
        ({"model.hidden_units": {"low": 1, "high": 10**30}}, "numbers may be at most 1e+15"),
        ({"model.dropout": {"low": -1.7e308, "high": 1.7e308}}, "numbers may be at most 1e+300"),
        ({"model.dropout": {"choices": [0, False]}}, "two choices are equal: False"),
        ({"model.convolutions": {"choices": [[8], "[8]"]}}, "two choices are equal: '[8]'"),
        ({"model.name": {"choices": [b"mlp"]}}, "choices may be text, numbers"),
        (
            {"optimizer.learning_rate": {"low": 0.1, "high": 0.2}, "optimizer": {"choices": ["adam"]}},
            "space.optimizer would replace optimizer.learning_rate: move it above",
        ),
        ({"training": {"choices": [{"validation_fraction": 0.1}]}}, "all trials have the same images"),
        ({"training": {"choices": [{"epochs": 1}, {"epochs": 2}]}}, "all trials have the same images"),
        (SPACE | {"optimizer.rho": {"low": 0.5, "high": 0.9, "when": {"optimizer.name": []}}}, "is never []"),
        (
            {"training.epochs": {"low": 1, "high": 5}}
            | {"model.dropout": {"low": 0.1, "high": 0.2, "when": {"training.epochs": 9}}},
            "training.epochs is never 9",
        ),
        ({"optimizer.name": {"choices": ["adam", "lion"]}}, "'lion' is not one of conf/optimizer/"),
        ({"training.batch_size": {"choices": [128, "many"]}}, "training.batch_size: got 'many'"),
        ({"training.epochs": {"low": 0, "high": 5}}, "training.epochs: got 0"),
        ({"training.warm_up": {"choices": [0.1]}}, "warm_up is 0.1, but decay is none"),
        ({"optimizer.momentum": SPACE["optimizer.momentum"]}, "optimizer.name is not a key of the space above"),
        (
            SPACE | {"optimizer.rho": {"low": 0.5, "high": 0.9, "when": {"optimizer.name": "lion"}}},
            "optimizer.name is never 'lion'",
        ),
        (
            SPACE | {"optimizer.weight_decay": {"low": 0.1, "high": 0.2, "when": {"optimizer.name": "rmsprop"}}},
            "unknown key 'weight_decay'",
        ),
        ({"seed": {"low": 1, "high": 5}}, "space.seed: all trials have the same images"),
        ({"dataset.name": {"choices": ["mnist"]}}, "all trials have the same images"),
        ({"training.validation_fraction": {"choices": [0.1]}}, "all trials have the same images"),
        ({}, "space"),
        ([], "space"),
    ],
)
def test_an_invalid_space_is_refused(write: Write, space: Any, message: str) -> None:
    with pytest.raises(PipelineError, match=r"s\.yaml") as error:
        write(space=space).check()
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objectives": ["test_accuracy"]}, "objectives.0: got 'test_accuracy'"),
        ({"objectives": ["val_loss", "val_loss"]}, "an objective is named twice"),
        ({"objectives": []}, "objectives"),
        ({"trials": 0}, "trials: got 0"),
        ({"minutes": 0}, "minutes: got 0"),
        ({"limits": {"parameters": 0}}, "limits.parameters: got 0"),
        ({"limits": {"seconds": 5}}, "limits.seconds"),
        ({"pruner": "random"}, "pruner: got 'random'"),
        ({"trails": 5}, "trails: is not a known key"),
        ({"settings": {"recipe": "notebook"}}, "a sweep compares trials on held-out training images"),
        ({"settings": {"recipe": "unknown"}}, "'unknown' is not one of conf/recipe/"),
    ],
)
def test_an_invalid_sweep_is_refused(write: Write, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(PipelineError, match=r"s\.yaml") as error:
        write(**changes).check()
    assert message in str(error.value)


@pytest.mark.parametrize("text", ["{", "5", "", "a: !!python/name:os.system", "objectives: &a [*a]"])
def test_a_file_that_is_no_sweep_is_refused(write: Write, text: str) -> None:
    write()
    Path("sweeps/s.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(PipelineError, match=r"s\.yaml"):
        read_sweep("s")


@pytest.mark.parametrize("name", ["other", "../s", ""])
def test_a_missing_sweep_names_those_that_exist(write: Write, name: str) -> None:
    write()
    with pytest.raises(PipelineError, match=r"sweeps/ has no sweep '.*', only s"):
        read_sweep(name)


def test_suggestions_are_in_the_space_and_respect_conditions(write: Write) -> None:
    settings, sweep = write(), read_sweep("s")
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    seen = set()
    for _ in range(50):
        chosen = suggest(study.ask(), sweep)
        assert isinstance(chosen["model.hidden_units"], int)
        assert chosen["training.batch_size"] in (64, 128, 192, 256)
        assert ("optimizer.momentum" in chosen) == (chosen["optimizer.name"] == "rmsprop")
        seen.add(chosen["optimizer.name"])
        config = settings.config(chosen)
        assert config.optimizer.name == chosen["optimizer.name"]
        assert config.training.batch_size == chosen["training.batch_size"]
    assert seen == {"rmsprop", "adamw"}


def test_choices_keep_their_types() -> None:
    """Optuna stores no lists, and takes true for 1."""
    choices = [[8, 16], [16, 32], "none", None, 0.5]
    sweep = Sweep.model_validate(VALID | {"space": {"a": {"choices": choices}}})
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    found = [suggest(study.ask(), sweep)["a"] for _ in range(50)]
    assert all(any(each is choice or each == choice for choice in choices) for each in found)
    assert {str(each) for each in found} == set(map(str, choices))


def test_each_end_and_each_choice_is_composed_before_anything_runs() -> None:
    found = [*probes(Sweep.model_validate(VALID))]
    for key, values in (
        ("model.hidden_units", [32, 256]),
        ("optimizer.name", ["rmsprop", "adamw"]),
        ("optimizer.momentum", [0.0, 0.9]),
        ("training.batch_size", [64, 256]),
    ):
        assert {each[key] for each in found if key in each} >= set(values)
    assert all(each["optimizer.name"] == "rmsprop" for each in found if "optimizer.momentum" in each)


def test_settings_are_merged_by_key() -> None:
    assert nested({"a.b": 1, "a.c": 2, "d": 3}) == {"a": {"b": 1, "c": 2}, "d": 3}
    assert merged({"model": "cnn"}, {"model": {"dropout": 0.1}}) == {"model": {"name": "cnn", "dropout": 0.1}}
    assert merged({"model": {"name": "cnn"}}, {"model": "mlp"}) == {"model": "mlp"}
    assert merged({"a": {"b": 1}}, {"a": {"c": 2}}, {"a": {"b": 3}}) == {"a": {"b": 3, "c": 2}}


def test_a_group_by_name_and_its_keys(write: Write) -> None:
    momentum = {"low": 0.0, "high": 0.9, "when": {"optimizer": "rmsprop"}}
    settings = write(space={"optimizer": {"choices": ["adam", "rmsprop"]}, "optimizer.momentum": momentum})
    settings.check()
    config = settings.config({"optimizer": "rmsprop", "optimizer.momentum": 0.3})
    assert config.optimizer.model_dump()["name"] == "rmsprop"
    assert config.optimizer.model_dump()["momentum"] == 0.3


def test_choices_that_are_mappings_stay_as_they_are() -> None:
    choices = [{"epochs": 1}, {"epochs": 2}]
    assert nested({"training": choices[0], "training.batch_size": 64}) == {"training": {"epochs": 1, "batch_size": 64}}
    assert choices == [{"epochs": 1}, {"epochs": 2}]


def test_a_trial_has_only_the_keys_of_the_space_that_were_chosen(write: Write) -> None:
    """params.yaml may have the winner of an earlier sweep, such as the momentum of another optimizer."""
    write(space=SPACE)
    applied = {"recipe": "baseline", "optimizer": {"name": "rmsprop", "momentum": 0.5}}
    settings = Settings("s", read_sweep("s"), applied)
    assert "momentum" not in settings.params({"optimizer.name": "adamw"})["optimizer"]
    assert settings.params({})["optimizer"] == {"name": "rmsprop", "momentum": 0.5}
    assert settings.params({"seed": 5})["optimizer"] == {"name": "rmsprop", "momentum": 0.5}
    settings.check()
