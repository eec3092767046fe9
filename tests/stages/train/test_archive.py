import zipfile
from pathlib import Path

import keras
import numpy as np

from pipeline.stages.train.archive import normalize, save_network


def network() -> keras.Model:
    keras.utils.set_random_seed(1)
    return keras.Sequential([keras.Input((3,), name="input"), keras.layers.Dense(2, name="only")], name="network")


def test_the_same_weights_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_network(tmp_path / name / "model.keras", network())
    assert (tmp_path / "a" / "model.keras").read_bytes() == (tmp_path / "b" / "model.keras").read_bytes()
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["model.keras"]


def test_other_weights_give_other_bytes(tmp_path: Path) -> None:
    one, other = network(), network()
    other.set_weights([weight + 1 for weight in other.get_weights()])
    save_network(tmp_path / "a.keras", one)
    save_network(tmp_path / "b.keras", other)
    assert (tmp_path / "a.keras").read_bytes() != (tmp_path / "b.keras").read_bytes()


def test_keras_loads_the_archive_in_safe_mode(tmp_path: Path) -> None:
    save_network(tmp_path / "model.keras", network())
    loaded = keras.saving.load_model(tmp_path / "model.keras", safe_mode=True)
    inputs = np.ones((2, 3), np.float32)
    np.testing.assert_array_equal(loaded(inputs), network()(inputs))


def test_the_archive_has_a_fixed_date(tmp_path: Path) -> None:
    save_network(tmp_path / "model.keras", network())
    with zipfile.ZipFile(tmp_path / "model.keras") as archive:
        assert {entry.date_time[0] for entry in archive.infolist()} == {1980}
        assert b"1980-01-01" in archive.read("metadata.json")


def test_addresses_become_numbers() -> None:
    text = '{"a": {"shared_object_id": 1402}, "b": {"shared_object_id": 99}, "c": {"shared_object_id": 1402}}'
    expected = '{"a": {"shared_object_id": 0}, "b": {"shared_object_id": 1}, "c": {"shared_object_id": 0}}'
    assert normalize(text) == expected
