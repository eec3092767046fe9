"""Cost of predictions: a network in three engines within one process, and the served champion over HTTP."""

import functools
import io
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import requests
from numpy.typing import NDArray
from PIL import Image

from benchmarks.figures import Figures, add
from pipeline.commands.ports import free_port
from pipeline.commands.runs.ui import wait_until_up
from pipeline.commands.serve.limits import LARGEST as LARGEST_BODY
from pipeline.commands.serve.limits import WAITING
from pipeline.commands.serve.picture import LARGEST

Images = NDArray[np.uint8]
Engine = Callable[[Images], Any]
Process = subprocess.Popen[bytes]

SHAPE = (28, 28)
PIXELS = math.prod(SHAPE)
NETWORKS = ("mlp", "cnn")
BATCHES = {1: 300, 100: 100, 10_000: 1}  # images per call -> calls that are timed together
CLIENTS = (1, 8, WAITING)  # more are refused
REQUESTS = 640  # of one image each, in total over all clients
AT_ONCE = 12  # concurrent requests of the largest size
MIB = 1 << 20
POSTS = {1: 200, 100: 40, 4_000: 2}  # at most what the server accepts; images per request -> sequential requests


def measure_engines(conf: Path, rounds: int) -> Figures:
    """Alternately measure milliseconds per call of each engine, and its largest difference from TensorFlow."""
    from pipeline.registry.servable import TOLERANCE

    figures: Figures = {}
    for network in NETWORKS:
        with tempfile.TemporaryDirectory() as folder:
            engines = build_engines(network, conf, Path(folder))
            for batch, calls in BATCHES.items():
                images = np.random.default_rng(batch).integers(0, 256, (batch, *SHAPE), dtype=np.uint8)
                expected = np.asarray(engines["tensorflow"](images))
                for name, engine in engines.items():
                    difference = float(np.abs(np.asarray(engine(images)) - expected).max())
                    if difference > TOLERANCE:
                        sys.exit(f"benchmarks: {name} and TensorFlow differ by {difference:.2g} > {TOLERANCE:g}")
                    add(figures, f"engine_{network}_{batch}_{name}_difference", difference, "probability")
                for _ in range(rounds):
                    taken = {name: seconds(engine, images, calls) for name, engine in engines.items()}
                    for name, each in taken.items():
                        add(figures, f"engine_{network}_{batch}_{name}_ms", 1000 * each, "ms")
                        if name != "onnxruntime":
                            ratio = each / taken["onnxruntime"]
                            add(figures, f"engine_{network}_{batch}_{name}_over_onnxruntime", ratio, "ratio")
    return figures


def seconds(engine: Engine, images: Images, calls: int) -> float:
    """Mean seconds per call."""
    started = time.perf_counter()
    for _ in range(calls):
        engine(images)
    return (time.perf_counter() - started) / calls


def build_engines(name: str, conf: Path, folder: Path) -> dict[str, Engine]:
    """Load an untrained network of conf/model/ into each engine; speed does not depend on the weights."""
    import tensorflow as tf
    from ai_edge_litert.interpreter import Interpreter

    from pipeline.core.validation import parse_config
    from pipeline.registry.classifier import DigitClassifier
    from pipeline.registry.conversion import ONNX, convert
    from pipeline.stages.compose.composition import compose_config
    from pipeline.stages.train.archive import save_network
    from pipeline.stages.train.network import build_network

    (folder / "params.yaml").write_text(f"model: {{name: {name}}}\n", encoding="utf-8")
    config = parse_config(compose_config(conf, folder / "params.yaml"), {}, "")
    network = build_network(config.model, SHAPE, config.dataset.classes)
    save_network(folder / "model.keras", network)
    converted = convert(folder / "model.keras", folder, np.zeros((1, *SHAPE), np.uint8))
    network.export(folder / "model.tflite", format="litert", verbose=False)
    compiled = tf.function(
        lambda images: network(images, training=False), input_signature=[tf.TensorSpec((None, *SHAPE), tf.uint8)]
    )
    interpreter = Interpreter(str(folder / "model.tflite"), num_threads=os.cpu_count())
    return {
        "tensorflow": lambda images: compiled(tf.constant(images)).numpy(),
        "onnxruntime": DigitClassifier(converted.folder / ONNX).predict,
        "litert": LiteRt(interpreter),
    }


class LiteRt:
    """A LiteRT engine, whose input is resized when the number of images changes."""

    def __init__(self, interpreter: Any) -> None:
        self._interpreter = interpreter
        self._input = interpreter.get_input_details()[0]["index"]
        self._output = interpreter.get_output_details()[0]["index"]
        self._shape: tuple[int, ...] = ()

    def __call__(self, images: Images) -> Any:
        """Return the probabilities."""
        if images.shape != self._shape:
            self._interpreter.resize_tensor_input(self._input, images.shape)
            self._interpreter.allocate_tensors()
            self._shape = images.shape
        self._interpreter.set_tensor(self._input, images)
        self._interpreter.invoke()
        return self._interpreter.get_tensor(self._output)


def measure_http(project: Path, run_id: str, name: str, rounds: int) -> Figures:
    """Alternately time the champion in `make serve` and the run's Keras model in MLflow's server, on this machine."""
    figures: Figures = {}
    keras_model = ["-m", "mlflow", "models", "serve", "-m", f"runs:/{run_id}/model", "--env-manager", "local"]
    settings = {"MLFLOW_TRACKING_URI": f"sqlite:///{project}/mlflow.db"}
    with (
        server(project, ["-m", "pipeline.commands.serve", "--name", name], settings) as (champion, start, _),
        server(project, keras_model, settings) as (other, other_start, _),
    ):
        add(figures, "serve_start_seconds", start, "s")
        add(figures, "serve_keras_start_seconds", other_start, "s")
        for address in (champion, other):
            latencies(address, 1, 20)  # the first responses are slower
        for _ in range(rounds):
            for clients in CLIENTS:
                p50, p99 = np.percentile(latencies(champion, clients, REQUESTS), [50, 99])
                add(figures, f"serve_{clients}_clients_p50_ms", 1000 * p50, "ms")
                add(figures, f"serve_{clients}_clients_p99_ms", 1000 * p99, "ms")
            slow = float(np.median(latencies(other, 1, REQUESTS // 8)))
            fast = float(np.median(latencies(champion, 1, REQUESTS // 8)))
            add(figures, "serve_keras_1_clients_p50_ms", 1000 * slow, "ms")
            add(figures, "serve_keras_over_champion_p50", slow / fast, "ratio")
            for batch, posts in POSTS.items():
                took = sum(latencies(champion, 1, posts, batch))
                add(figures, f"serve_batch_{batch}_images_per_second", batch * posts / took, "1/s")
    return figures


def measure_memory(project: Path, name: str) -> Figures:
    """Measure the memory of `make serve` after startup, and its peak under concurrent requests of the largest size."""
    figures: Figures = {}
    settings = {"MLFLOW_TRACKING_URI": f"sqlite:///{project}/mlflow.db"}
    noise = np.random.default_rng(1).integers(0, 256, (LARGEST, LARGEST), dtype=np.uint8)
    body = json.dumps({"inputs": noise[:1000, : 4 * PIXELS].reshape(-1, *SHAPE).tolist()}).encode()
    loads = {
        "images": ("/invocations", "application/json", body),
        "cut_off": ("/invocations", "application/json", (body * 2)[:LARGEST_BODY]),  # invalid JSON
        "pictures": ("/read", "image/png", png(np.pad(noise[:8, :8], (0, LARGEST - 8)))),
        "noisy_pictures": ("/read", "image/png", png(noise[: LARGEST * 15 // 16])),  # PNG does not compress noise
    }
    with server(project, ["-m", "pipeline.commands.serve", "--name", name], settings) as (address, _, process):
        latencies(address, 1, 20)
        add(figures, "serve_memory_mib", memory(process.pid), "MiB")
        for load, (path, kind, body) in loads.items():
            post = functools.partial(
                requests.post, f"{address}{path}", body, headers={"Content-Type": kind}, timeout=300
            )
            with ThreadPoolExecutor(AT_ONCE) as pool:
                posted = [pool.submit(post) for _ in range(2 * AT_ONCE)]
                peak = 0.0
                while not all(each.done() for each in posted):
                    peak = max(peak, memory(process.pid))
                    time.sleep(0.01)
            statuses = {each.result().status_code for each in posted}
            print(f"{load}: {len(body) / MIB:.1f} MiB, status codes {statuses}")
            add(figures, f"serve_memory_{load}_mib", peak, "MiB")
    return figures


def memory(pid: int) -> float:
    """Current resident memory of a process, in MiB."""
    return float(psutil.Process(pid).memory_info().rss) / MIB


def png(pixels: Images) -> bytes:
    """Encode a picture as PNG."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@contextmanager
def server(folder: Path, arguments: list[str], settings: dict[str, str]) -> Iterator[tuple[str, float, Process]]:
    """Run a server on a free port; yield its address, its startup time in seconds, and its process."""
    port, started = free_port(5100), time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, *arguments, "--port", str(port)],
        cwd=folder,
        env=os.environ | settings,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_until_up(process, port)
        yield f"http://127.0.0.1:{port}", time.perf_counter() - started, process
    finally:
        process.terminate()
        process.wait()


def latencies(address: str, clients: int, total: int, batch: int = 1) -> list[float]:
    """Seconds of each request with `clients` concurrent clients, without the time to encode JSON."""
    images = np.random.default_rng(batch).integers(0, 256, (batch, *SHAPE), dtype=np.uint8)
    body = json.dumps({"inputs": images.tolist()}).encode()

    def client(requested: int) -> list[float]:
        taken = []
        with requests.Session() as session:
            session.headers["Content-Type"] = "application/json"
            for _ in range(requested):
                started = time.perf_counter()
                session.post(f"{address}/invocations", data=body, timeout=120).raise_for_status()
                taken.append(time.perf_counter() - started)
        return taken

    with ThreadPoolExecutor(clients) as pool:
        return [each for taken in pool.map(client, [total // clients] * clients) for each in taken]
