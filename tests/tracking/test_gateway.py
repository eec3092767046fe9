"""A tracking server behind a corporate gateway."""

import shutil
import warnings
from pathlib import Path

import pytest
from mlflow import MlflowClient

from pipeline.core.errors import PipelineError
from pipeline.tracking.outbox import RunAddress
from pipeline.tracking.recorder import Recorder
from pipeline.tracking.store import experiment_id, open_store
from tests.conftest import Start, free_port, serve_store
from tests.tracking.gateway import TOKEN, gateway

CERTIFICATE = "MLFLOW_TRACKING_SERVER_CERT_PATH"


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl to make a certificate")
def test_a_server_behind_a_gateway(tmp_path: Path, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    port = free_port()
    serve_store(start, tmp_path, port)
    with gateway(tmp_path, f"http://127.0.0.1:{port}") as (address, certificate):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        with pytest.raises(PipelineError, match=f"certificate .* is not trusted: set {CERTIFICATE} to") as refused:
            open_store(tmp_path)
        assert "\n" not in str(refused.value)
        monkeypatch.setenv(CERTIFICATE, str(tmp_path / "lost.pem"))
        with pytest.raises(PipelineError, match=r"lost\.pem"):
            open_store(tmp_path)
        monkeypatch.setenv(CERTIFICATE, str(certificate))
        with pytest.raises(
            PipelineError, match="requires a login: set MLFLOW_TRACKING_TOKEN, or MLFLOW_TRACKING_USERNAME"
        ):
            open_store(tmp_path)
        monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", TOKEN)
        store = open_store(tmp_path)
        client = MlflowClient(address)
        experiment = experiment_id(store, "mnist")
        run = client.create_run(experiment)
        recorder = Recorder(RunAddress(address, run.info.run_id, experiment, tmp_path))
        recorder.metrics({"train/loss": 1.0}, 1)
        recorder.text("note.txt", "through the gateway")
        assert not recorder.is_incomplete()
        assert client.get_run(run.info.run_id).data.metrics == {"train/loss": 1.0}
        monkeypatch.delenv(CERTIFICATE)
        monkeypatch.setenv("MLFLOW_TRACKING_INSECURE_TLS", "true")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # urllib3 warns that the connection is insecure
            assert open_store(tmp_path).uri == address
