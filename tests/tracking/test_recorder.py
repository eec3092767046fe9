"""A real MLflow server that goes away and comes back."""

from pathlib import Path

import keras
import pytest
from mlflow import MlflowClient
from mlflow.entities import LoggedModelOutput

from pipeline.tracking.recorder import Recorder, send_unsent
from tests.conftest import Start, free_port, kill_all, serve_store


def test_what_the_server_misses_is_kept_and_sent_once_it_is_back(
    tmp_path: Path, start: Start, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    port = free_port()
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
    process = serve_store(start, tmp_path, port)
    client = MlflowClient(f"http://127.0.0.1:{port}")
    run_id = client.create_run("0").info.run_id
    recorder = Recorder(f"http://127.0.0.1:{port}", run_id, tmp_path)
    recorder.metrics({"train/loss": 3.0}, 1)
    assert not recorder.is_incomplete()

    kill_all(process)
    picture, network = tmp_path / "picture.png", tmp_path / "model.keras"
    picture.write_bytes(b"first")
    keras.Sequential([keras.Input((4, 4), dtype="uint8"), keras.layers.Flatten(), keras.layers.Dense(2)]).save(network)
    recorder.metrics({"train/loss": 2.0}, 2)
    recorder.artifact(picture, "plots")
    picture.write_bytes(b"replaced before it was sent")
    recorder.model(network)
    recorder.tags({"device": "cpu"})
    recorder.status("FINISHED")
    assert recorder.is_incomplete()
    assert capsys.readouterr().out.count("tracking: ") == 1, "said once, not for each event"
    sent, problems = send_unsent(tmp_path)
    assert (sent, len(problems)) == (0, 1)

    serve_store(start, tmp_path, port)
    recorder.metrics({"train/loss": 1.0}, 3)  # after what is waiting, not before it
    assert recorder.is_incomplete()
    sent, problems = send_unsent(tmp_path)
    assert (sent, problems) == (1, []), problems
    assert not recorder.is_incomplete()
    run = client.get_run(run_id)
    history = sorted((metric.step, metric.value) for metric in client.get_metric_history(run_id, "train/loss"))
    assert history == [(1, 3.0), (2, 2.0), (3, 1.0)]
    assert (run.info.status, run.data.tags["device"]) == ("FINISHED", "cpu")
    assert Path(client.download_artifacts(run_id, "plots/picture.png")).read_bytes() == b"first"
    assert len(run.outputs.model_outputs) == 1
    assert send_unsent(tmp_path) == (0, [])


def test_the_same_figures_are_recorded_once(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    client = MlflowClient(uri)
    recorder = Recorder(uri, client.create_run("0").info.run_id, tmp_path)
    for _ in range(2):
        recorder.metrics({"train/loss": 2.0}, 1, timestamp=1e9)
    assert len(client.get_metric_history(recorder.run_id, "train/loss")) == 1


def test_a_card_lies_beside_the_run_s_own_model_and_not_beside_what_was_registered(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    client = MlflowClient(uri)
    place = client.create_experiment("digits", (tmp_path / "artifacts").as_uri())
    run_id = client.create_run(place).info.run_id
    card = tmp_path / "model_card.md"
    card.write_text("# Model card", encoding="utf-8")
    models = [client.create_logged_model(place, name=name, source_run_id=run_id) for name in ("model", "served")]
    client.log_outputs(run_id, [LoggedModelOutput(model.model_id, 0) for model in models])
    Recorder(uri, run_id, tmp_path).model_file(card)
    listed = [[file.path for file in client.list_logged_model_artifacts(model.model_id)] for model in models]
    assert listed == [["model_card.md"], []]
