"""Serve the MLflow UI with few processes, and open it at the list of runs."""

import os
import signal
import subprocess
import sys
import time
import webbrowser
from pathlib import Path
from typing import Any

import requests

from pipeline.commands.ports import HOST, free_port
from pipeline.core.errors import PipelineError
from pipeline.core.validation import load_config
from pipeline.tracking.store import PATIENCE, open_store, page, run_list

LEAN = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}  # the jobs evaluate language models
PATIENCE_SECONDS = 120


def serve(root: Path, port: int) -> None:
    """Serve the store's UI on loopback until interrupted, and print the address of the runs.

    If MLFLOW_TRACKING_URI names a server, print its address instead. Raises PipelineError if the UI's server exits.
    """
    store = open_store(root)
    runs = run_list(store, load_config().dataset.name)
    if store.remote:
        print(f"The runs are at {page(store, runs)}")
        return
    port = free_port(port)
    command = [sys.executable, "-m", "mlflow", "server", "--host", HOST]
    command += ["--port", str(port), "--workers", "1", "--artifacts-destination", store.artifacts.as_uri()]
    command += ["--allowed-hosts", f"{HOST}:{port},localhost:{port}"]  # by default MLflow also answers to 10.any.name
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # ends the server with this process
    place = {"MLFLOW_BACKEND_STORE_URI": store.uri}  # not an argument, which all users of a machine can read
    # Its log is not the result of this command, and MLflow prints a traceback if it cannot write to standard output.
    server = subprocess.Popen(command, env=os.environ | PATIENCE | LEAN | place, stdout=sys.stderr)
    try:
        wait_until_up(server, port)
        address = page(store, runs, port)
        print(f"\nThe runs are at {address}\nPress Ctrl-C to stop.", flush=True)
        if sys.stdout.isatty():
            webbrowser.open(address)
        server.wait()
    except KeyboardInterrupt:
        print()
    finally:
        server.terminate()
        server.wait()


def wait_until_up(server: "subprocess.Popen[Any]", port: int) -> None:
    """Wait until the server answers. Raises PipelineError if it exits first, or does not answer in time."""
    end = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < end:
        if server.poll() is not None:
            raise PipelineError(f"the MLflow server exited with status {server.returncode}: see its output above")
        try:
            if requests.get(f"http://{HOST}:{port}/health", timeout=2).ok:
                return
        except requests.RequestException:
            time.sleep(0.2)
    raise PipelineError(f"the MLflow server did not answer within {PATIENCE_SECONDS} seconds")
