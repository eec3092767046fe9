"""Serving the MLflow UI, lean, and opening it where the runs are."""

import argparse
import os
import signal
import socket
import subprocess
import sys
import time
import webbrowser
from pathlib import Path
from typing import Any

import requests

from pipeline.config import load_config
from pipeline.errors import PipelineError
from pipeline.tracking.store import PATIENCE, open_store, page, run_list

HOST = "127.0.0.1"
LEAN = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}  # the jobs are for judging language models
PATIENCE_SECONDS = 120
LAST_PORT = 65535


def serve(root: Path, port: int) -> None:
    """Serve the store's UI on loopback until interrupted, and say at which address the runs are.

    Where MLFLOW_TRACKING_URI names a server, that one is pointed to instead. Raises PipelineError if the server ends.
    """
    store = open_store(root)
    runs = run_list(store, load_config().dataset.name)
    if store.remote:
        print(f"The runs are at {page(store, runs)}")
        return
    port = free_port(port)
    command = [sys.executable, "-m", "mlflow", "server", "--host", HOST]
    command += ["--port", str(port), "--workers", "1", "--artifacts-destination", store.artifacts.as_uri()]
    command += ["--allowed-hosts", f"{HOST}:{port},localhost:{port}"]  # by default MLflow answers to 10.any.name, too
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # so that the server ends with this process
    place = {"MLFLOW_BACKEND_STORE_URI": store.uri}  # and no argument, which all users of a machine can read
    server = subprocess.Popen(command, env=os.environ | PATIENCE | LEAN | place)
    try:
        wait_until_up(server, port)
        address = page(store, runs, port)
        print(f"\nThe runs are at {address}\nCtrl-C ends it.", flush=True)
        if sys.stdout.isatty():
            webbrowser.open(address)
        server.wait()
    except KeyboardInterrupt:
        print()
    finally:
        server.terminate()
        server.wait()


def wait_until_up(server: "subprocess.Popen[Any]", port: int) -> None:
    """Return when the server answers. Raises PipelineError if it ends first, or does not answer in time."""
    end = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < end:
        if server.poll() is not None:
            raise PipelineError(f"the MLflow server ended with status {server.returncode}; its reason stands above")
        try:
            if requests.get(f"http://{HOST}:{port}/health", timeout=2).ok:
                return
        except requests.RequestException:
            time.sleep(0.2)
    raise PipelineError(f"the MLflow server did not answer within {PATIENCE_SECONDS} seconds")


def port_number(text: str) -> int:
    """A port from a command line. Raises ArgumentTypeError if it is none that a server can listen on."""
    number = int(text) if text.isdecimal() else 0
    if not 1 <= number <= LAST_PORT:
        raise argparse.ArgumentTypeError(f"{text!r} is no port: from 1 to {LAST_PORT}")
    return number


def free_port(first: int) -> int:
    """The first port from `first` on that nothing listens on. Raises PipelineError if that is none of a hundred."""
    last = min(first + 99, LAST_PORT)
    for port in range(first, last + 1):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
            return port
    raise PipelineError(f"no free port from {first} to {last}")
