"""Events, the records of a run: how MLflow stores each kind, and whether it refused one for good."""

import functools
import json
import re
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from pipeline.core.errors import first_line
from pipeline.tracking.store import be_patient, silence_mlflow

BATCH = 100  # MLflow's maximum of params or tags per request
REFUSALS = {*range(400, 500)} - {401, 403, 407, 408, 425, 429}  # except authentication, timeouts and rate limits
FAILED = re.compile(r"failed with error code (\d{3})")  # MLflow's message if a response is not JSON

UPLOADING = ".artifact.uploading."  # prefix of MLflow's temporary files

Event = dict[str, Any]


def send_event(client: Any, run_id: str, event: Event, path: Path | None) -> None:  # noqa: PLR0912 (one case per kind)
    """Write one event to the store. Raises any exception that MLflow raises."""
    from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag

    from pipeline.tracking.keras_model import NAME, describe_network, log_network

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
        case {"kind": "model", "image_shape": shape, "classes": classes, "backend": backend}:
            assert path is not None
            log_network(client, run_id, path, shape, classes, backend)
        case {"kind": "model"}:  # kept by an earlier version, which did not record the rest
            assert path is not None
            log_network(client, run_id, path, *describe_network(path))
        case {"kind": "model file", "folder": folder}:
            models = (client.get_logged_model(each.model_id) for each in client.get_run(run_id).outputs.model_outputs)
            for own in [model for model in models if model.name == NAME][-1:]:  # registered models stay unchanged
                client.log_model_artifact(own.model_id, str(path), folder or None)
        case {"kind": "status", "status": "RUNNING"}:
            client.update_run(run_id, "RUNNING")
        case {"kind": "status", "status": status, "time": stamp}:
            client.set_terminated(run_id, status, stamp)
        case _:
            raise ValueError(f"unknown event {event}")


def is_refused(error: Exception, uri: str, run_id: str) -> bool:
    """Whether the store rejected an event for good, rather than being unreachable or busy.

    Authentication errors, rate limits and stores that cannot return the run itself count as temporary.
    """
    if status_of(error) not in REFUSALS:
        return False
    try:
        client_of(uri).get_run(run_id)
    except Exception as other:  # a run that no longer exists accepts nothing
        return getattr(other, "error_code", "") == "RESOURCE_DOES_NOT_EXIST"
    return True


def status_of(error: Exception) -> int | None:
    """The HTTP status of an error, which MLflow's database errors also have; None if the error has none."""
    # MLflow uses BAD_REQUEST for every database error, including temporary ones.
    if getattr(error, "error_code", "") == "BAD_REQUEST":
        return None
    if found := FAILED.search(str(error)):
        return int(found[1])
    ask = getattr(error, "get_http_status_code", None)
    status = ask() if ask else getattr(getattr(error, "response", None), "status_code", None)
    return int(status) if status is not None else None


@functools.cache
def client_of(uri: str) -> Any:
    """MLflow's client for a store, created on first use because it opens the database, which may fail."""
    be_patient()
    from mlflow import MlflowClient

    silence_mlflow()
    return MlflowClient(uri)


def reason(error: Exception) -> str:
    """The reason why an event was not sent, in one line."""
    return first_line(error)[:200]


def remove_partial_uploads(client: Any, run: Any) -> None:
    """Remove what a killed process left in the folders of a run and of its models; MLflow would list it."""
    if not run.artifact_uri.startswith("file:"):
        return
    models = client.search_logged_models([run.experiment_id], f"source_run_id = '{run.run_id}'")
    for location in (run.artifact_uri, *(model.artifact_location for model in models)):
        for path in Path(url2pathname(urlsplit(location).path)).rglob(f"{UPLOADING}*"):
            with suppress(OSError):
                path.unlink()
