from typing import Any

from pipeline.commands.gate.results import Results, recipe_of

COMPOSED = {"recipe": "smoke", "seed": 1, "model": {"name": "mlp"}, "gate": {"alpha": 0.05}}


def results(code: str = "a", **settings: object) -> Results:
    train = {"cmd": "train", "deps": [{"path": "pipeline/stages/train", "md5": code}, {"path": "data", "md5": "d"}]}
    return Results("here", [], COMPOSED | settings, {"stages": {"compose": {"params": {}}, "train": train}})


def test_recipe_of_ignores_the_seed_and_the_gate_settings() -> None:
    same: list[dict[str, Any]] = [{"seed": 2}, {"gate": {"alpha": 0.01}}, {"seed": 3, "gate": {}}]
    others: list[dict[str, Any]] = [{"model": {"name": "cnn"}}, {"training": {"epochs": 2}}, {"gatekeeper": 1}]
    for settings in same:
        assert recipe_of(results(**settings)) == recipe_of(results())
    for settings in others:
        assert recipe_of(results(**settings)) != recipe_of(results())


def test_recipe_of_contains_the_code_but_not_the_data() -> None:
    assert recipe_of(results("b")) != recipe_of(results())
    other = results()
    other.lock["stages"]["train"]["deps"][1]["md5"] = "e"
    assert recipe_of(other) == recipe_of(results())
