"""The logged model of a network, compared with the model that MLflow itself saves."""

from pathlib import Path
from typing import Any

import keras
import mlflow.keras
import numpy as np
import pytest
import yaml
from mlflow import MlflowClient
from mlflow.models import Model

from pipeline.stages.train.archive import save_network
from pipeline.stages.train.network import build_network
from pipeline.tracking.keras_model import describe_network, example, log_network, pinned, save_model, signature
from tests.conftest import configured

SHAPE, CLASSES = (8, 8), 10
OWN = {"utc_time_created", "model_uuid", "model_size_bytes"}  # differ between saved models


@pytest.fixture
def network_file(tmp_path: Path) -> Path:
    path = tmp_path / "model.keras"
    save_network(path, build_network(configured(tmp_path).model, SHAPE, CLASSES))
    return path


def mlmodel(folder: Path) -> dict[str, Any]:
    text = (folder / "MLmodel").read_text(encoding="utf-8")
    return {key: value for key, value in yaml.safe_load(text).items() if key not in OWN}


def test_the_saved_model_equals_the_one_that_mlflow_saves(network_file: Path, tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    save_model(str(ours), Model(), network_file, SHAPE, CLASSES, "tensorflow")
    theirs.mkdir()  # mlflow.keras writes the example before it creates the folder
    mlflow.keras.save_model(
        keras.saving.load_model(network_file, compile=False),
        str(theirs),
        signature=signature(SHAPE, CLASSES),
        input_example=example(SHAPE),
        pip_requirements=pinned("keras", "tensorflow", "numpy", "mlflow"),
    )
    files = {path.relative_to(theirs) for path in theirs.rglob("*") if path.is_file()}
    assert {path.relative_to(ours) for path in ours.rglob("*") if path.is_file()} == files
    for name in files - {Path("MLmodel"), Path("data/model.keras")}:
        assert (ours / name).read_bytes() == (theirs / name).read_bytes(), name
    written, original = mlmodel(ours), mlmodel(theirs)
    pyfunc = written["flavors"]["python_function"]
    assert [pyfunc.pop(name) for name in ("code", "streamable")] == [None, False], "explicit here, omitted there"
    assert written == original


def test_the_logged_network_loads_unchanged(network_file: Path, tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    client = MlflowClient(uri)
    place = client.create_experiment("digits", (tmp_path / "artifacts").as_uri())
    run_id = client.create_run(place).info.run_id
    log_network(client, run_id, network_file, list(SHAPE), CLASSES, "tensorflow")
    (output,) = client.get_run(run_id).outputs.model_outputs
    folder = tmp_path / "artifacts" / "models" / output.model_id / "artifacts"
    assert (folder / "data" / "model.keras").read_bytes() == network_file.read_bytes()
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "MLmodel"]
    size = yaml.safe_load((folder / "MLmodel").read_text(encoding="utf-8"))["model_size_bytes"]
    assert network_file.stat().st_size < size <= sum(path.stat().st_size for path in files)
    images = np.random.default_rng(1).integers(0, 256, (5, *SHAPE), dtype=np.uint8)
    expected = keras.saving.load_model(network_file).predict(images, verbose=0)
    np.testing.assert_array_equal(mlflow.keras.load_model(str(folder)).predict(images, verbose=0), expected)
    np.testing.assert_array_equal(mlflow.pyfunc.load_model(str(folder)).predict(images), expected)


def test_a_network_file_yields_its_shapes_and_backend(network_file: Path) -> None:
    assert describe_network(network_file) == ([8, 8], 10, "tensorflow")
