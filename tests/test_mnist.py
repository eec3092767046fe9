"""Tests that take minutes: the real MNIST, a server that stops during a training, a served model."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest
import requests
from mlflow import MlflowClient

from pipeline.core.dataset import load_split
from tests.conftest import MIRROR, Project, Start, free_port, kill_all, serve, serve_store

pytestmark = pytest.mark.slow


def test_a_recipe_trains_on_mnist(mnist_once: Project) -> None:
    """`make repro` and `make gate` train the default recipe and compare it with the committed reports."""
    found = mnist_once.report("evaluation.json")
    assert found["test"]["accuracy"] >= 0.984
    assert found["test"]["images"] == 10_000
    assert found["training"] | {"epochs": 6, "parameters": 669_706} == found["training"]
    data = mnist_once.report("data/statistics.json")
    assert [data[part]["images"] for part in ("train", "validation", "test")] == [60_000, 0, 10_000]
    assert data["duplicates"] == {"within_train": 0, "within_test": 0, "test_in_train": 0}


def test_the_notebook_trains_on_all_images_and_validates_on_the_test_images(project: Project) -> None:
    project.params(recipe="notebook", training={"epochs": 2})
    project.succeed("dvc", "repro", **MIRROR)
    found = project.report("evaluation.json")
    data = project.report("data/statistics.json")
    assert [data[part]["images"] for part in ("train", "validation", "test")] == [60_000, 10_000, 10_000]
    last = (project.root / "models" / "history.csv").read_text(encoding="utf-8").splitlines()[-1].split(",")
    assert float(last[4]) == pytest.approx(found["test"]["accuracy"], abs=1e-6)
    assert float(last[3]) == pytest.approx(found["test"]["loss"], abs=1e-4), "the loss is the one that Keras computes"


def test_a_training_survives_a_server_that_stops(trained: Project, tmp_path: Path, start: Start) -> None:
    port = free_port()
    uri = f"http://127.0.0.1:{port}"
    server = serve_store(start, tmp_path, port)
    trained.params(recipe="smoke", training={"epochs": 60})
    trained.succeed("dvc", "repro", "compose")
    training = start([str(Path(sys.executable).parent / "dvc"), "repro"], trained.root, MLFLOW_TRACKING_URI=uri)
    assert training.stdout
    for line in training.stdout:
        if line.startswith("epoch   3/60"):
            kill_all(server)
            break
    output = training.communicate()[0]
    assert training.returncode == 0, output
    assert "are kept in .unsent/" in output
    assert "make send" in output
    assert trained.report("evaluation.json")["training"]["epochs"] == 60

    assert "is still incomplete" in trained.fail(
        "python", "-m", "pipeline.commands.runs", "send", MLFLOW_TRACKING_URI=f"sqlite:///{tmp_path}/other.db"
    )
    serve_store(start, tmp_path, port)
    assert "1 run" in trained.succeed("python", "-m", "pipeline.commands.runs", "send", MLFLOW_TRACKING_URI=uri)
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("digits")
    (run,) = client.search_runs([experiment.experiment_id])
    history = client.get_metric_history(run.info.run_id, "train/loss")
    assert sorted(point.step for point in history) == list(range(1, 61))
    assert run.data.metrics["test/accuracy"] == trained.report("evaluation.json")["test"]["accuracy"]
    assert (run.info.status, len(run.outputs.model_outputs)) == ("FINISHED", 1)
    assert {file.path for file in client.list_artifacts(run.info.run_id, "plots")} >= {"plots/curves.png"}


def test_the_model_is_served_over_http(trained_once: Project, start: Start) -> None:
    store = f"sqlite:///{trained_once.root}/mlflow.db"
    client = MlflowClient(store)
    (run,) = client.search_runs([client.get_experiment_by_name("digits").experiment_id])
    port = free_port()
    model = f"runs:/{run.info.run_id}/model"
    command = ("models", "serve", "-m", model, "--env-manager", "local")
    serve(start, trained_once.root, port, *command, MLFLOW_TRACKING_URI=store)
    test = load_split(trained_once.root / "data" / "prepared" / "test.npz")
    answer = requests.post(
        f"http://127.0.0.1:{port}/invocations", json={"inputs": test.images[:20].tolist()}, timeout=60
    )
    assert answer.ok, answer.text
    probabilities = np.array(answer.json()["predictions"])
    assert probabilities.shape == (20, 10)
    assert (probabilities.argmax(axis=1) == test.labels[:20]).mean() > 0.5


def test_the_ui_opens_at_the_list_of_runs(trained_once: Project, start: Start) -> None:
    command = [sys.executable, "-m", "pipeline.commands.runs", "ui", "--port", str(free_port())]
    process = start(command, trained_once.root, HTTP_PROXY="http://127.0.0.1:9", http_proxy="http://127.0.0.1:9")
    assert process.stdout
    for line in process.stdout:
        if found := re.search(r"The runs are at (http://127\.0\.0\.1:\d+)/#/experiments/(\d+)/runs\?(.*)", line):
            break
    else:
        raise AssertionError("no address was printed")
    base, experiment, query = found.groups()
    assert query == "viewStateShareKey=results&workflowType=machine_learning"
    client = MlflowClient(base)
    for host, status in (("localhost", 200), ("10.evil.example", 403), ("digits.example", 403)):
        port = base.rpartition(":")[2]
        assert requests.get(base, headers={"Host": f"{host}:{port}"}, timeout=60).status_code == status, host
    assert client.get_experiment(experiment).name == "digits"
    assert len(client.search_runs([experiment])) == 1
    process.terminate()
    process.wait()
    with pytest.raises(requests.ConnectionError):
        requests.get(base, timeout=5)
