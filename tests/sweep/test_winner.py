"""From a winner to params.yaml."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.core.errors import PipelineError
from pipeline.stages.compose.composition import read_params
from pipeline.sweep.winner import apply, edits

Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Write params.yaml."""
    monkeypatch.chdir(tmp_path)

    def put(text: str) -> Path:
        path = tmp_path / "params.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return put


@pytest.mark.parametrize(
    ("text", "params"),
    [
        ("recipe: smoke # the small one\n", {"recipe": "smoke", "model": {"hidden_units": 5}}),
        ("# only a comment\n", {"seed": 3}),
        ("", {"seed": 3}),
        ("# above\nmodel: {name: cnn, dropout: 0.3} # beside\n", {"model": {"name": "mlp", "hidden_units": 5}}),
        ("# above\nmodel:\n  name: cnn # beside\n  dropout: 0.3\nseed: 1\n", {"model": {"name": "cnn"}, "seed": 1}),
        ("model: mlp # beside\n", {"model": {"name": "cnn", "filters": 8}}),
        ("# above\na: 1e-4\nb: [1, 1e-3]\n", {"a": 1e-4, "b": [1, 1e-3], "c": 0.00001, "d": "on", "e": ["off", "1"]}),
        ("# above\na: [1, 2]\n", {"a": [1, 2, {"b": None}], "c": True}),
    ],
)
def test_params_get_exactly_the_values_and_keep_their_comments(write: Write, text: str, params: dict[str, Any]) -> None:
    path = write(text)
    apply(params, read_params(path) if yaml.safe_load(text) else {})
    assert read_params(path) == params
    if "# above" in text:
        assert "# above" in path.read_text(encoding="utf-8")


def test_what_was_edited_during_the_sweep_is_not_undone(write: Write) -> None:
    path = write("seed: 7 # edited\n")
    with pytest.raises(PipelineError, match=r"params\.yaml has changed since the study was started \(seed\)"):
        apply({"seed": 1, "recipe": "smoke"}, {"seed": 1})
    assert path.read_text(encoding="utf-8") == "seed: 7 # edited\n"


def test_anchors_are_not_changed(write: Write) -> None:
    text = "model: &same {name: null}\noptimizer: *same\n"
    path = write(text)
    with pytest.raises(PipelineError, match="anchors"):
        apply({"model": {"name": "mlp"}, "optimizer": {"name": "adam"}}, yaml.safe_load(text))
    assert path.read_text(encoding="utf-8") == text


def test_edits_are_lines_of_yaml() -> None:
    current = {"model": {"name": "mlp", "dropout": 0.3}, "seed": 1, "optimizer": "adam"}
    params = {
        "optimizer": {"name": "adamw"},
        "model": {"name": None, "convolutions": [8, 16]},
        "seed": 1,
        "augmentation": [],
    }
    found = edits(params, current)
    assert edits({"optimizer": "adam"}, {"optimizer": {"name": None}}) == {"optimizer": '"adam"'}
    assert found == {
        "optimizer.name": '"adamw"',
        "model.name": "null",
        "model.convolutions": "[8, 16]",
        "augmentation": "[]",
        "model.dropout": "(remove)",
    }
