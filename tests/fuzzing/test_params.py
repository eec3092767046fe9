"""params.yaml and conf/ with generated keys and values: a valid configuration, or one line for each invalid value."""

import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.core.config import flatten
from pipeline.core.files import parse_yaml
from pipeline.stages.compose.composition import compose_config, options
from tests.conftest import CONF
from tests.fuzzing.inputs import FUZZING, accepted, damaged, limited, peak_of
from tests.fuzzing.targets import COMPOSED, FOLDER, YAML_WORDS, compose_params

SECRET = "s3cr3t"
OPTIONS = [name for names in options(CONF).values() for name in names]
KEYS = [key for key, _ in flatten(parse_yaml(COMPOSED))]
PLANTED = [
    *(
        "${oc.env:SECRET}",
        "${oc.decode:${oc.env:SECRET}}",
        "${oc.create:{a: '${oc.env:SECRET}'}}",
        "\\${oc.env:SECRET}",
    ),
    *("${oc.${model.name}:SECRET}", "${oc.select:seed}", "${hydra:runtime.cwd}", "${now:%H}", "${seed}", "${.name}"),
    *("pkg://planted", "file:///etc/passwd", "../../../etc/passwd", "planted.run", "keras.layers.Dense", "???", "${"),
]
SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.sampled_from(OPTIONS + PLANTED)
)
NAMES = st.sampled_from(
    [*{part for key in KEYS for part in key.split(".")}, *OPTIONS, "_target_", "defaults", "hydra", "_global_", "a.b"]
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES | st.text(max_size=5), inner, max_size=3)
)


def nested(key: str, value: Any) -> dict[str, Any]:
    """The value of a dotted key in nested mappings."""
    first, _, rest = key.partition(".")
    return {first: nested(rest, value) if rest else value}


OVERRIDES = st.builds(nested, st.sampled_from(KEYS), VALUES)
GROUPS = st.fixed_dictionaries({}, optional=dict.fromkeys(("recipe", "dataset", "model"), st.sampled_from(OPTIONS)))
PARAMS = st.builds(lambda *parts: parts[0] | parts[1], OVERRIDES | st.dictionaries(NAMES, VALUES, max_size=3), GROUPS)


@pytest.fixture(autouse=True)
def planted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A secret in the environment, and a package that a file could make Hydra import."""
    monkeypatch.setenv("SECRET", SECRET)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "planted.py").write_text("def run(): ...\n", encoding="utf-8")


def check_nothing_else_is_read(result: Any) -> None:
    """Check that a configuration has no value of the environment, and that composing it imported no package."""
    assert SECRET not in str(result)
    assert "planted" not in sys.modules


@given(PARAMS)
@example({"model": {"name": "mlp", "name2": "${oc.env:SECRET}"}})
@example({"seed": 10**400})
@example({"optimizer": {"name": "adam", "learning_rate": 10**400}})
def test_any_mapping_composes_or_is_refused(values: dict[str, Any]) -> None:
    compose_params(yaml.safe_dump(values, allow_unicode=True).encode())
    check_nothing_else_is_read((FOLDER / "params.yaml").read_text(encoding="utf-8").replace("SECRET", ""))


@pytest.mark.parametrize("group", ["recipe", "model", "optimizer", "dataset"])
def test_a_damaged_option_composes_or_is_refused(group: str, tmp_path: Path) -> None:
    conf, params = tmp_path / "conf", tmp_path / "params.yaml"
    shutil.copytree(CONF, conf)
    name = options(CONF)[group][0]
    intact = (CONF / group / f"{name}.yaml").read_bytes()
    params.write_text(f"{group}: {name}\n", encoding="utf-8")

    @settings(max_examples=300 if FUZZING else 3)  # Hydra takes 50 ms to read all files
    @given(
        damaged([intact], [*YAML_WORDS, *(word.encode() for word in PLANTED), b"defaults: [", b"# @package hydra\n"])
    )
    def check(content: bytes) -> None:
        (conf / group / f"{name}.yaml").write_bytes(content)
        check_nothing_else_is_read(accepted(lambda: compose_config(conf, params), "conf/"))

    check()


def referring(again: str, levels: int) -> bytes:
    """References to references to references …, in a list, which can have any content."""
    lines = ["- " + again.replace("AGAIN", f"training.augmentation[{level}]") for level in range(levels)]
    return "\n".join(["training:", "  augmentation:", "  - xxxxxxxxxx", *(f"  {line}" for line in lines)]).encode()


BOMBS = {
    "texts": referring("'${AGAIN}${AGAIN}'", 40),
    "lists": referring("['${AGAIN}', '${AGAIN}']", 40),
    "mappings": referring("{x: '${AGAIN}', y: '${ AGAIN }'}", 40),
    "resolver": referring("'${oc.select:AGAIN}${oc.select:AGAIN}'", 40),
    "nested": referring("'${AGAIN}${${training.decay}}'", 40),
    "chain": referring("'${AGAIN}'", 900),
    "circle": b"training: {augmentation: ['${training.augmentation[1]}', '${training.augmentation[0]}']}",
    "deep": b"seed: '" + b"${" * 100_000 + b"'",
    "long": b"seed: '${a:" + b"[" * 100_000 + b"'",
}


@pytest.mark.parametrize("name", BOMBS)
def test_references_to_references_take_little_memory_and_time(name: str) -> None:
    with limited():
        assert peak_of(lambda: compose_params(BOMBS[name])) <= 60 * len(BOMBS[name]) + (16 << 20)


def test_references_to_references_compose() -> None:
    path = FOLDER / "params.yaml"
    path.write_bytes(
        b"training: {augmentation: [{_target_: keras.layers.RandomRotation, factor: '${.seed}', seed: '${seed}'},"
        b" '${training.augmentation[0]}']}"
    )
    composed = accepted(lambda: compose_config(CONF, path), "params.yaml")
    assert composed
    assert [layer["factor"] for layer in composed["training"]["augmentation"]] == [1, 1]
