"""Record runs with real stores, including servers and workers that stop."""

import contextlib
import json
import os
import signal
import sys
import time
from pathlib import Path

import keras
import pytest
import requests
from mlflow import MlflowClient
from mlflow.entities import LoggedModelOutput
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import BAD_REQUEST, INVALID_PARAMETER_VALUE

from pipeline.core.process.worker import Worker
from pipeline.stages.train.archive import save_network
from pipeline.tracking.events import is_refused
from pipeline.tracking.outbox import RunAddress, keep_event, send_unsent
from pipeline.tracking.recorder import Recorder
from pipeline.tracking.store import experiment_id, open_store
from tests.conftest import Start, free_port, kill_all, serve_store


def test_events_are_kept_while_the_server_is_down_and_sent_later(
    tmp_path: Path, start: Start, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    port = free_port()
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
    process = serve_store(start, tmp_path, port)
    client = MlflowClient(f"http://127.0.0.1:{port}")
    run_id = client.create_run("0").info.run_id
    recorder = Recorder(RunAddress(f"http://127.0.0.1:{port}", run_id, "0", tmp_path))
    recorder.metrics({"train/loss": 3.0}, 1)
    assert not recorder.is_incomplete()

    kill_all(process)
    picture, network = tmp_path / "picture.png", tmp_path / "model.keras"
    picture.write_bytes(b"first")
    keras.Sequential([keras.Input((4, 4), dtype="uint8"), keras.layers.Flatten(), keras.layers.Dense(2)]).save(network)
    recorder.metrics({"train/loss": 2.0}, 2)
    recorder.artifact(picture, "plots")
    picture.write_bytes(b"replaced before it was sent")
    recorder.model(network, (4, 4), 2, "tensorflow")
    recorder.tags({"device": "cpu"})
    recorder.status("FINISHED")
    assert recorder.is_incomplete()
    assert capsys.readouterr().out.count("tracking: ") == 1, "printed once, not for each event"
    sent, problems = send_unsent(tmp_path)
    assert (sent, len(problems)) == (0, 1)

    serve_store(start, tmp_path, port)
    recorder.metrics({"train/loss": 1.0}, 3)  # queued behind the kept events
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


def test_records_of_two_stores_are_kept_apart(
    tmp_path: Path, start: Start, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And MLflow's asynchronous logging, which would lose them, is off."""
    monkeypatch.setenv("MLFLOW_ENABLE_ASYNC_LOGGING", "true")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    port, other = free_port(), f"http://127.0.0.1:{free_port()}"
    uri = f"http://127.0.0.1:{port}"
    process = serve_store(start, tmp_path, port)
    run_id = MlflowClient(uri).create_run("0").info.run_id
    kill_all(process)
    for name, address in (("a", uri), ("b", other), ("c", uri)):  # train records in one, and evaluate in another
        Recorder(RunAddress(address, run_id, "0", tmp_path)).metrics({name: 1.0}, 1)
    assert len([*(tmp_path / ".unsent").iterdir()]) == 2
    serve_store(start, tmp_path, port)
    sent, (problem,) = send_unsent(tmp_path)
    assert sent == 1
    assert f"run {run_id}~ is still incomplete: " in problem
    assert MlflowClient(uri).get_run(run_id).data.metrics == {"a": 1, "c": 1}
    (tmp_path / ".unsent" / f"{run_id}~" / "uri").write_text(uri, encoding="utf-8")  # it is available
    assert send_unsent(tmp_path) == (1, [])
    assert "Traceback" not in capsys.readouterr().out


def test_sending_removes_what_a_killed_process_left_among_the_artifacts(tmp_path: Path) -> None:
    client, run = new_run(tmp_path)
    keep_event(run, {"kind": "text", "name": "note.txt", "content": "a"}, None)
    client.log_text(run.run_id, "b", "plots/other.txt")
    folder = Path(client.get_run(run.run_id).info.artifact_uri.removeprefix("file://"))
    (folder / "plots" / ".artifact.uploading.abc").touch()
    assert send_unsent(tmp_path) == (1, [])
    assert sorted(path.name for path in folder.rglob("*") if path.is_file()) == ["note.txt", "other.txt"]


def test_files_that_are_no_outbox_stay(tmp_path: Path) -> None:
    _, run = new_run(tmp_path)
    keep_event(run, {"kind": "tags", "values": {"a": "b"}}, None)
    others = ["refused/0123/event-000000.json", "refused.zip", ".DS_Store", "backup/refused/event-000000.json"]
    for name in others:
        (tmp_path / ".unsent" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / ".unsent" / name).write_text("{}", encoding="utf-8")
    (tmp_path / ".unsent" / "killed").mkdir()
    (tmp_path / ".unsent" / "0123.lock").touch()
    assert send_unsent(tmp_path) == (1, [])
    left = (path for path in (tmp_path / ".unsent").rglob("*") if path.is_file())
    assert sorted(str(path.relative_to(tmp_path / ".unsent")) for path in left) == sorted(others)
    assert not (tmp_path / ".unsent" / "killed").exists()


def test_events_of_a_killed_worker_are_kept_and_sent_later(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    client = MlflowClient(uri)
    run_id = client.create_run("0").info.run_id
    with Worker() as worker:
        recorder = Recorder(RunAddress(uri, run_id, "0", tmp_path), worker)
        recorder.metrics({"train/loss": 3.0}, 1)
        recorder.flush()
        pid = worker.submit(os.getpid).result()
        worker.submit(time.sleep, 60)
        recorder.metrics({"train/loss": 2.0}, 2)
        recorder.tags({"device": "cpu"})
        os.kill(pid, signal.SIGKILL)
        recorder.metrics({"train/loss": 1.0}, 3)
        assert recorder.is_incomplete()
    assert [point.step for point in client.get_metric_history(run_id, "train/loss")] == [1]
    assert send_unsent(tmp_path) == (1, [])
    history = sorted((metric.step, metric.value) for metric in client.get_metric_history(run_id, "train/loss"))
    assert history == [(1, 3.0), (2, 2.0), (3, 1.0)]
    assert client.get_run(run_id).data.tags["device"] == "cpu"


@pytest.mark.parametrize("writable", [True, False])
def test_a_dead_worker_is_reported_and_its_events_are_kept_or_an_error(
    tmp_path: Path, writable: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    if not writable:
        (tmp_path / ".unsent").write_text("in the way", encoding="utf-8")
    with Worker() as worker:
        recorder = Recorder(RunAddress(f"sqlite:///{tmp_path}/mlflow.db", "1", "0", tmp_path), worker)
        os.kill(worker.submit(os.getpid).result(), signal.SIGKILL)
        for number in range(3):
            recorder.tags({"number": number})
        if writable:
            assert recorder.is_incomplete()
        else:
            with pytest.raises(OSError, match=r"File exists|Not a directory"):
                recorder.flush()
    assert capsys.readouterr().out.count("the process that records this run died") == writable


def test_a_hanging_worker_is_ended_and_its_events_are_kept(tmp_path: Path) -> None:
    with Worker() as worker:
        recorder = Recorder(RunAddress(f"sqlite:///{tmp_path}/mlflow.db", "1", "0", tmp_path), worker)
        worker.submit(time.sleep, 600)
        recorder.status("KILLED")
        recorder.flush(patience=0.5)
        assert recorder.is_incomplete()


def test_events_are_kept_in_order_after_a_partial_send(tmp_path: Path) -> None:
    run, picture = RunAddress("sqlite://", "1", "0", tmp_path), tmp_path / "picture.png"
    picture.write_bytes(b"picture")
    for number in range(4):
        keep_event(run, {"number": number}, picture if number % 2 else None)
    for sent in ("event-000000.json", "event-000001.json"):
        (run.outbox / sent).unlink()
    for number in range(4, 8):
        keep_event(run, {"number": number}, picture if number % 2 else None)
    waiting = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(run.outbox.glob("event-*.json"))]
    assert [event["number"] for event in waiting] == [2, 3, 4, 5, 6, 7]
    assert all((run.outbox / event["file"]).exists() for event in waiting if "file" in event)


def test_events_are_kept_before_the_message_is_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder(RunAddress("sqlite:////dev/null/mlflow.db", "1", "0", tmp_path))
    with Path("/dev/full").open("w", encoding="utf-8") as full:
        monkeypatch.setattr(sys, "stdout", full)
        recorder.tags({"device": "cpu"})
        monkeypatch.undo()
        assert recorder.is_incomplete()
        with contextlib.suppress(OSError):
            full.close()


def test_an_event_that_can_be_neither_written_nor_kept_is_an_error(tmp_path: Path) -> None:
    (tmp_path / ".unsent").write_text("in the way", encoding="utf-8")
    with Worker() as worker:
        recorder = Recorder(RunAddress("sqlite:////dev/null/mlflow.db", "1", "0", tmp_path), worker)
        recorder.tags({"device": "cpu"})
        with pytest.raises(OSError, match=r"File exists|Not a directory"):
            recorder.flush()


def test_a_model_that_an_earlier_version_kept_is_sent(tmp_path: Path) -> None:
    client, run = new_run(tmp_path)
    network = tmp_path / "model.keras"
    keras.Sequential([keras.Input((4, 4), dtype="uint8"), keras.layers.Flatten(), keras.layers.Dense(2)]).save(network)
    keep_event(run, {"kind": "model"}, network)
    assert send_unsent(tmp_path) == (1, [])
    assert len(client.get_run(run.run_id).outputs.model_outputs) == 1


def test_a_network_is_logged_once(tmp_path: Path) -> None:
    """A training that is killed after it logged its model logs the same network again."""
    client, run = new_run(tmp_path)
    network = tmp_path / "model.keras"
    for units in (2, 3):
        layers = [keras.Input((4, 4), dtype="uint8"), keras.layers.Flatten(), keras.layers.Dense(units)]
        save_network(network, keras.Sequential(layers))
        for _ in range(2):
            Recorder(run).model(network, (4, 4), units, "tensorflow")
    assert len(client.get_run(run.run_id).outputs.model_outputs) == 2, "they are two networks"


@pytest.mark.parametrize("part", ["event-000001.json", "file-1/picture.png"])
def test_a_damaged_event_is_set_aside(tmp_path: Path, capsys: pytest.CaptureFixture[str], part: str) -> None:
    client, run = new_run(tmp_path)
    picture = tmp_path / "picture.png"
    picture.write_bytes(b"picture")
    keep_event(run, {"kind": "metrics", "values": {"loss": 1.5}, "step": 1, "timestamp": 1}, None)
    keep_event(run, {"kind": "artifact", "folder": "plots"}, picture)
    keep_event(run, {"kind": "tags", "values": {"device": "cpu"}}, None)
    path = run.outbox / part
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert send_unsent(tmp_path) == (1, [])
    assert "event-000001.json is damaged" in capsys.readouterr().out
    sent = client.get_run(run.run_id).data
    assert (sent.metrics, sent.tags["device"]) == ({"loss": 1.5}, "cpu")
    assert client.list_artifacts(run.run_id) == []
    aside = run.root / ".unsent" / "refused" / run.run_id
    assert {entry.name for entry in aside.iterdir()} == {"event-000001.json", "file-1"}


def test_a_kept_event_is_sent_as_it_was_recorded(tmp_path: Path) -> None:
    client, run = new_run(tmp_path)
    Recorder(run).params({"seed": 1})
    run.outbox.mkdir()  # as if the store had not accepted something before
    recorder = Recorder(run)
    recorder.dataset("digits", "train", "a" * 32, 3, [8, 8])
    recorder.metrics({"loss": 0.1 + 0.2}, 1, 1.5)
    recorder.text("note.txt", "né\n\t中")
    assert send_unsent(tmp_path) == (1, [])
    sent = client.get_run(run.run_id)
    (dataset,) = sent.inputs.dataset_inputs
    assert (dataset.dataset.digest, dataset.tags[0].value) == ("a" * 32, "train")
    assert sent.data.metrics == {"loss": 0.1 + 0.2}
    assert Path(client.download_artifacts(run.run_id, "note.txt")).read_text(encoding="utf-8") == "né\n\t中"


def test_damaged_events_with_the_same_number_are_all_set_aside(tmp_path: Path) -> None:
    _, run = new_run(tmp_path)
    picture = tmp_path / "picture.png"
    for content in (b"first", b"second"):
        picture.write_bytes(content)
        keep_event(run, {"kind": "artifact", "folder": "plots"}, picture)
        (run.outbox / "file-0" / "picture.png").write_bytes(content + b" damaged")
        assert send_unsent(tmp_path) == (0, [])
    aside = run.root / ".unsent" / "refused" / run.run_id
    assert {path.read_bytes() for path in aside.glob("*/picture.png")} == {b"first damaged", b"second damaged"}
    assert len(list(aside.glob("event-*.json"))) == 2


def test_events_of_a_database_that_does_not_exist_stay(tmp_path: Path) -> None:
    keep_event(RunAddress(f"sqlite:///{tmp_path}/absent.db", "1", "0", tmp_path), {"kind": "tags", "values": {}}, None)
    sent, (problem,) = send_unsent(tmp_path)
    assert sent == 0
    assert "run 1 is still incomplete: there is no database" in problem
    assert not (tmp_path / "absent.db").exists()


def test_a_store_that_does_not_respond_is_asked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    for number in range(3):
        run = RunAddress("http://127.0.0.1:9", str(number), "0", tmp_path)
        keep_event(run, {"kind": "tags", "values": {"device": "cpu"}}, None)
    sent, problems = send_unsent(tmp_path)
    assert sent == 0
    assert "Max retries exceeded" in problems[0]
    assert problems[1:] == [f"run {number} is still incomplete: the store did not respond" for number in (1, 2)]


def test_a_lock_that_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / ".unsent").mkdir()
    (tmp_path / ".unsent" / "1.lock").touch()
    assert send_unsent(tmp_path) == (0, [])
    assert list((tmp_path / ".unsent").iterdir()) == []


def test_equal_metrics_are_recorded_once(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    client = MlflowClient(uri)
    recorder = Recorder(RunAddress(uri, client.create_run("0").info.run_id, "0", tmp_path))
    for _ in range(2):
        recorder.metrics({"train/loss": 2.0}, 1, timestamp=1e9)
    assert len(client.get_metric_history(recorder.run_id, "train/loss")) == 1


def test_a_model_card_is_added_to_the_runs_own_model_and_not_to_the_registered_one(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    client = MlflowClient(uri)
    place = client.create_experiment("digits", (tmp_path / "artifacts").as_uri())
    run_id = client.create_run(place).info.run_id
    card = tmp_path / "model_card.md"
    card.write_text("# Model card", encoding="utf-8")
    models = [client.create_logged_model(place, name=name, source_run_id=run_id) for name in ("model", "served")]
    client.log_outputs(run_id, [LoggedModelOutput(model.model_id, 0) for model in models])
    Recorder(RunAddress(uri, run_id, place, tmp_path)).model_file(card)
    listed = [[file.path for file in client.list_logged_model_artifacts(model.model_id)] for model in models]
    assert listed == [["model_card.md"], []]


def new_run(folder: Path) -> tuple[MlflowClient, RunAddress]:
    """A run in a new database."""
    uri = f"sqlite:///{folder}/mlflow.db"
    client = MlflowClient(uri)
    place = client.create_experiment("digits", (folder / "artifacts").as_uri())
    return client, RunAddress(uri, client.create_run(place).info.run_id, place, folder)


def aside(run: RunAddress) -> list[str]:
    """The kinds of the events that were set aside."""
    paths = sorted((run.root / ".unsent" / "refused" / run.run_id).glob("event-*.json"))
    return [json.loads(path.read_text(encoding="utf-8"))["kind"] for path in paths]


def test_a_refused_event_is_set_aside_and_later_events_are_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    client, run = new_run(tmp_path)
    recorder = Recorder(run)
    recorder.metrics({"no*stars": 1.0}, 1)
    recorder.tags({"device": "cpu"})
    assert not recorder.is_incomplete()
    assert client.get_run(run.run_id).data.tags["device"] == "cpu"
    assert aside(run) == ["metrics"]
    (line,) = capsys.readouterr().out.splitlines()
    assert f"refuses the metrics of run {run.run_id} (" in line
    assert "set aside in .unsent/refused/" in line
    assert send_unsent(tmp_path) == (0, []), "reported once"


def test_an_event_that_is_refused_later_does_not_block_the_outbox(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    client, run = new_run(tmp_path)
    picture = tmp_path / "picture.png"
    picture.write_bytes(b"picture")
    keep_event(run, {"kind": "metrics", "values": {"no*stars": 1.0}, "step": 1, "timestamp": 1}, None)
    keep_event(run, {"kind": "artifact", "folder": "plots"}, picture)
    keep_event(run, {"kind": "tags", "values": {"device": "cpu"}}, None)
    assert send_unsent(tmp_path) == (1, [])
    assert client.get_run(run.run_id).data.tags["device"] == "cpu"
    assert [file.path for file in client.list_artifacts(run.run_id, "plots")] == ["plots/picture.png"]
    assert aside(run) == ["metrics"]
    assert f"refuses the metrics of run {run.run_id}" in capsys.readouterr().out
    assert not run.outbox.exists()


def test_events_of_a_removed_run_are_set_aside(tmp_path: Path) -> None:
    _, run = new_run(tmp_path)
    gone = run._replace(run_id="0" * 32)
    Recorder(gone).tags({"device": "cpu"})
    assert aside(gone) == ["tags"]


@pytest.mark.parametrize(
    ("status", "refused"),
    [(400, True), (404, True), (413, True), (401, False), (403, False), (429, False), (502, False)],
)
def test_an_unreachable_store_is_not_a_refusal(tmp_path: Path, status: int, refused: bool) -> None:
    _, run = new_run(tmp_path)
    response = requests.Response()
    response.status_code = status
    assert is_refused(requests.HTTPError(response=response), run.uri, run.run_id) is refused
    assert not is_refused(requests.HTTPError(response=response), f"sqlite:////dev/null/{status}.db", run.run_id)
    assert not is_refused(requests.ConnectionError(), run.uri, run.run_id)


def test_a_temporary_database_error_is_not_a_refusal(tmp_path: Path) -> None:
    """MLflow uses a single error code for all database errors."""
    _, run = new_run(tmp_path)
    for error in (MlflowException("connection already closed", BAD_REQUEST), MlflowException("what?")):
        assert not is_refused(error, run.uri, run.run_id)
    large = "API request to endpoint /x failed with error code 413 != 200. Response body: ''"
    assert is_refused(MlflowException(large), run.uri, run.run_id)
    assert is_refused(MlflowException("no", INVALID_PARAMETER_VALUE), run.uri, run.run_id)


def test_an_empty_outbox_is_removed(tmp_path: Path) -> None:
    (tmp_path / ".unsent" / "0").mkdir(parents=True)
    assert send_unsent(tmp_path)[1] == []
    assert not (tmp_path / ".unsent" / "0").exists()


def test_a_model_is_sent_once_after_a_failed_upload(tmp_path: Path) -> None:
    client, run = new_run(tmp_path)
    network = tmp_path / "model.keras"
    keras.Sequential([keras.Input((4, 4), dtype="uint8"), keras.layers.Flatten(), keras.layers.Dense(2)]).save(network)
    place = tmp_path / "artifacts"
    place.write_text("in the way", encoding="utf-8")
    recorder = Recorder(run)
    recorder.model(network, (4, 4), 2, "tensorflow")
    assert recorder.is_incomplete()
    place.unlink()
    assert send_unsent(tmp_path) == (1, [])
    (model,) = client.search_logged_models([str(run.experiment_id)])
    assert model.status == "READY"
    assert len(client.get_run(run.run_id).outputs.model_outputs) == 1


@pytest.mark.parametrize("absolute", [False, True])  # earlier versions kept absolute addresses
def test_events_of_a_moved_project_are_sent_to_the_store_that_moved_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, absolute: bool
) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir()
    store = open_store(old)
    run_id = MlflowClient(store.uri).create_run(experiment_id(store, "mnist")).info.run_id
    event = {"kind": "metrics", "values": {"train/loss": 1.0}, "step": 1, "timestamp": 1}
    keep_event(RunAddress(store.uri, run_id, None, old), event, None)
    if absolute:
        (old / ".unsent" / run_id / "uri").write_text(store.uri, encoding="utf-8")
    old.rename(new)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")  # it names the old location in this process
    assert send_unsent(new) == (1, [])
    assert MlflowClient(open_store(new).uri).get_run(run_id).data.metrics == {"train/loss": 1.0}
    assert not old.exists()
