"""Writing one MLflow run, without ever losing what the store did not take.

Everything that is recorded is an event: a small JSON object, with a file for pictures and models. An event that the
store does not take is kept in .unsent/RUN_ID/ with all that come after it, and sent, in order, by the next command.
"""

import json
import shutil
import time
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from filelock import FileLock
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag

from pipeline.errors import first_line
from pipeline.files import write_json, write_text
from pipeline.tracking.keras_model import NAME, log_network

OUTBOX = ".unsent"
BATCH = 100  # params and tags that MLflow takes at once

Event = dict[str, Any]


class Recorder:
    """One run that is being written to. No method raises when the store fails: what it missed is kept."""

    def __init__(self, uri: str, run_id: str, root: Path) -> None:
        self.uri = uri
        self.run_id = run_id
        self.outbox = root / OUTBOX / run_id

    @cached_property
    def _client(self) -> MlflowClient:
        """Made when it is first used: making it opens a database, which may fail as any sending may."""
        return MlflowClient(self.uri)

    @property
    def experiment_id(self) -> str | None:
        """The experiment that the run belongs to; None while the store does not answer."""
        try:
            return str(self._client.get_run(self.run_id).info.experiment_id)
        except Exception:  # it is for an address on the screen only
            return None

    def params(self, values: Mapping[str, Any]) -> None:
        """Record the configuration, flat: {'training.epochs': 20}."""
        self._record({"kind": "params", "values": {key: str(value) for key, value in values.items()}})

    def tags(self, values: Mapping[str, Any]) -> None:
        """Record facts to search by."""
        self._record({"kind": "tags", "values": {key: str(value) for key, value in values.items()}})

    def metrics(self, values: Mapping[str, float], step: int, timestamp: float | None = None) -> None:
        """Record figures after `step` epochs; the same figures with the same time stamp are recorded once."""
        stamp = int(1000 * (timestamp or time.time()))
        self._record({"kind": "metrics", "values": dict(values), "step": step, "timestamp": stamp})

    def text(self, name: str, content: str) -> None:
        """Record a text as an artifact."""
        self._record({"kind": "text", "name": name, "content": content})

    def artifact(self, path: Path, folder: str = "") -> None:
        """Record a file as an artifact, at the top or in a folder of the run's."""
        self._record({"kind": "artifact", "folder": folder}, path)

    def dataset(self, name: str, context: str, digest: str, images: int, shape: list[int]) -> None:
        """Record which data was used, and for what."""
        profile = {"images": images, "shape": shape}
        self._record({"kind": "dataset", "name": name, "context": context, "digest": digest, "profile": profile})

    def model(self, path: Path) -> None:
        """Record the network in a `.keras` file as the run's model."""
        self._record({"kind": "model"}, path)

    def model_file(self, path: Path, folder: str = "") -> None:
        """Put a file beside the run's model, if the run has one."""
        self._record({"kind": "model file", "folder": folder}, path)

    def status(self, status: str) -> None:
        """Say how the run stands: RUNNING, FINISHED, FAILED or KILLED."""
        self._record({"kind": "status", "status": status, "time": int(1000 * time.time())})

    def is_incomplete(self) -> bool:
        """Whether the store has not got everything."""
        return self.outbox.exists()

    def _record(self, event: Event, path: Path | None = None) -> None:
        with outbox_lock(self.outbox):  # another process may be sending what is waiting
            if not self.is_incomplete():
                try:
                    send_event(self._client, self.run_id, event, path)
                    return
                except Exception as error:  # whatever ails the store, it must not cost a training
                    print(
                        f"tracking: {self.uri} does not take this run's {event['kind']} ({reason(error)}). What it "
                        f"misses is kept in {OUTBOX}/ and sent by the next training, or by "
                        "`python -m pipeline.tracking send`",
                        flush=True,
                    )
            self._keep(event, path)

    def _keep(self, event: Event, path: Path | None) -> None:
        self.outbox.mkdir(parents=True, exist_ok=True)
        number = len(list(self.outbox.iterdir()))
        write_text(self.outbox / "uri", self.uri)
        if path is not None:  # the file may be replaced before it is sent
            folder = self.outbox / f"file-{number}"
            folder.mkdir()
            shutil.copy(path, folder)
            event = event | {"file": f"{folder.name}/{path.name}"}
        write_json(self.outbox / f"event-{number:06}.json", event)


def outbox_lock(outbox: Path) -> FileLock:
    """What whoever reads or writes an outbox must hold."""
    outbox.parent.mkdir(exist_ok=True)
    return FileLock(outbox.with_suffix(".lock"))


def reason(error: Exception) -> str:
    """Why something was not sent, in a line."""
    return first_line(error)[:200]


def send_event(client: MlflowClient, run_id: str, event: Event, path: Path | None) -> None:  # noqa: PLR0912 (one case a kind)
    """Write one event to the store. Raises whatever MLflow raises."""
    match event:
        case {"kind": "params", "values": values}:
            params = [Param(key, value) for key, value in values.items()]
            for start in range(0, len(params), BATCH):
                client.log_batch(run_id, params=params[start : start + BATCH])
        case {"kind": "tags", "values": values}:
            client.log_batch(run_id, tags=[RunTag(key, value) for key, value in values.items()])
        case {"kind": "metrics", "values": values, "step": step, "timestamp": stamp}:
            client.log_batch(run_id, metrics=[Metric(key, value, stamp, step) for key, value in values.items()])
        case {"kind": "text", "name": name, "content": content}:
            client.log_text(run_id, content, name)
        case {"kind": "artifact", "folder": folder}:
            client.log_artifact(run_id, str(path), folder or None)
        case {"kind": "dataset", "name": name, "context": context, "digest": digest, "profile": profile}:
            source = json.dumps({"uri": f"data/prepared/{context}.npz"})
            dataset = Dataset(name, digest, "local", source, profile=json.dumps(profile))
            client.log_inputs(run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", context)])])
        case {"kind": "model"}:
            assert path is not None
            log_network(client, run_id, path)
        case {"kind": "model file", "folder": folder}:
            models = (client.get_logged_model(each.model_id) for each in client.get_run(run_id).outputs.model_outputs)
            for own in [model for model in models if model.name == NAME][-1:]:  # what was registered stays as it was
                client.log_model_artifact(own.model_id, str(path), folder or None)
        case {"kind": "status", "status": "RUNNING"}:
            client.update_run(run_id, "RUNNING")
        case {"kind": "status", "status": status, "time": stamp}:
            client.set_terminated(run_id, status, stamp)
        case _:
            raise ValueError(f"unknown event {event}")


def send_unsent(root: Path) -> tuple[int, list[str]]:
    """Send what earlier commands could not. Returns how many runs are complete now, and a line for each that is not.

    An event that was sent just before a failure may be sent twice; MLflow keeps one of two equal figures.
    """
    sent, problems = 0, []
    for outbox in sorted((root / OUTBOX).glob("*/")):
        with outbox_lock(outbox):
            try:
                _send_outbox(outbox)
                sent += 1
            except Exception as error:  # as above: reported, never in the way
                problems.append(f"run {outbox.name} is still incomplete: {reason(error)}")
    return sent, problems


def _send_outbox(outbox: Path) -> None:
    if not outbox.exists():  # another process was faster
        return
    client = MlflowClient((outbox / "uri").read_text(encoding="utf-8"))
    for path in sorted(outbox.glob("event-*.json")):
        event = json.loads(path.read_text(encoding="utf-8"))
        send_event(client, outbox.name, event, outbox / event["file"] if "file" in event else None)
        path.unlink()
    shutil.rmtree(outbox)
