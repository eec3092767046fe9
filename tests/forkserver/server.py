"""Runs `python -m MODULE` and `python -c CODE` for clients, each in a process forked from this one.

The process is a real one, with the client's arguments, environment, folder and standard streams; what it saves is
starting an interpreter and importing Keras, MLflow and DVC. The project's own modules are imported by the forks, from
the client's folder. A client that goes away takes its process with it.
"""

import atexit
import contextlib
import gc
import importlib
import io
import json
import multiprocessing
import os
import runpy
import selectors
import signal
import socket
import sys
import threading
import traceback
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

PRELOADED = (
    *("keras", "mlflow.keras", "mlflow.pyfunc", "onnxruntime", "tf2onnx", "scipy.special"),
    *("mlflow.store.tracking.sqlalchemy_workspace_store", "mlflow.store.model_registry.sqlalchemy_workspace_store"),
    *("mlflow.system_metrics.system_metrics_monitor", "mlflow.tracing.export", "opentelemetry.sdk.metrics"),
    *("alembic.command", "sqlalchemy.dialects.sqlite", "hydra", "jinja2", "rich.table", "rich._emoji_codes"),
    *("matplotlib.figure", "matplotlib.backends.backend_agg", "matplotlib.backends.backend_svg"),
    *("PIL.JpegImagePlugin", "tensorflow.python.data.ops.flat_map_op", "tensorflow.python.data.ops.range_op"),
    *("dvc.cli.parser", "dvc.daemon", "dvc.data_cloud", "dvc.utils.hydra", "dvc.repo.plots", "dvc.repo.graph"),
    *("dvc.repo.experiments.run", "dvc.repo.experiments.serialize", "dvc.repo.experiments.executor.local"),
    *("dvc.repo.experiments.queue.tasks", "dvc.repo.experiments.queue.workspace", "dvc_data.hashfile.db.local"),
    *("dvc.repo.experiments.queue.celery", "dvc.repo.index", "dvc.utils.strictyaml", "dvc_task.proc.manager"),
    *("scmrepo.git", "pygit2", "dulwich.porcelain", "ruamel.yaml", "celery.result", "networkx", "platformdirs.unix"),
    *("dvc.repo.metrics.show", "dvc.repo.params.show", "dvc.commands.experiments.run"),
)
SETTINGS = {  # as the stages have them
    "TF_ENABLE_ONEDNN_OPTS": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "ORT_DISABLE_TELEMETRY": "1",
}
STREAMS = 3
RARELY = 20_000  # as the stages have it; DVC gets it here, too


class Server:
    """Accepts clients on a listening socket and forks a process for each."""

    def __init__(self, listening: socket.socket) -> None:
        self._selector = selectors.DefaultSelector()
        self._selector.register(listening, selectors.EVENT_READ, self._accept)
        self._listening = listening

    def serve(self) -> NoReturn:
        """Serve until killed."""
        while True:
            for key, _ in self._selector.select():
                key.data(key.fileobj)

    def _accept(self, listening: socket.socket) -> None:
        client, _ = listening.accept()
        if PRELOADED[0] not in sys.modules:
            preload(
                Path(self._listening.getsockname()).parent
            )  # for the first client: whoever runs three tests may need none of it
        request, streams = receive(client)
        pid = os.fork()
        if not pid:
            self._selector.close()
            self._listening.close()
            client.close()
            become(request, streams)
        for stream in streams:
            os.close(stream)
        process = os.pidfd_open(pid)
        self._selector.register(client, selectors.EVENT_READ, lambda _: kill(pid))
        self._selector.register(process, selectors.EVENT_READ, lambda _: self._answer(client, pid, process))

    def _answer(self, client: socket.socket, pid: int, process: int) -> None:
        """Tell the client how its process ended."""
        self._selector.unregister(client)
        self._selector.unregister(process)
        os.close(process)
        _, status = os.waitpid(pid, 0)
        if os.WIFSIGNALED(status):
            kill(pid)  # its worker does not see it end: a fork holds both ends of the pipe
        with contextlib.suppress(OSError), client:
            client.sendall(str(os.waitstatus_to_exitcode(status)).encode())


def preload(folder: Path) -> None:
    """Import what takes seconds, and nothing of the project: clients have copies of their own.

    What MLflow looks up once in every process is looked up, too: its list of all installed packages takes a second.
    What is made once for all is in `folder`.
    """
    os.environ.update(SETTINGS)
    gc.set_threshold(RARELY)
    for name in PRELOADED:
        importlib.import_module(name)
    importlib.import_module("mlflow.utils.requirements_utils").warn_dependency_requirement_mismatches(["mlflow"])
    importlib.import_module("sqlalchemy.orm").configure_mappers()
    importlib.import_module("tests.tables").copy_tables(folder)
    draw_everything()
    importlib.import_module("colorama").deinit()  # DVC's import has it wrap this process's streams
    for name in [name for name in sys.modules if name.partition(".")[0] in ("pipeline", "tests")]:
        del sys.modules[name]
    gc.collect()
    gc.freeze()  # a fork that collects garbage would look at, and so copy, all that was imported


def draw_everything() -> None:
    """Have matplotlib measure letters and read its fonts before there are forks."""
    figure = importlib.import_module("matplotlib.figure").Figure()
    axes = figure.add_subplot(title="0123456789 abcdefghijklmnopqrstuvwxyz", xlabel="$10^{-1}$", yscale="log")
    axes.plot([0, 1], [0.001, 1], label="label")
    axes.legend()
    for form in ("png", "svg"):
        figure.savefig(io.BytesIO(), format=form)


def receive(client: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """A client's request, which ends with a line end, and its standard streams."""
    content, streams, _, _ = socket.recv_fds(client, 1 << 16, STREAMS)
    while not content.endswith(b"\n"):
        content += client.recv(1 << 16)
    request: dict[str, Any] = json.loads(content)
    return request, streams


def kill(pid: int) -> None:
    """Kill a client's process, and what it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def become(request: dict[str, Any], streams: list[int]) -> NoReturn:
    """Turn this process into the one that the client asked for."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    sys.stdin, sys.stdout = open(0), open(1, "w")  # noqa: SIM115 (as Python does when it starts)
    sys.stderr = open(2, "w", buffering=1, errors="backslashreplace")  # noqa: SIM115
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    option, what, *arguments = request["arguments"]
    if what == "dvc":
        importlib.import_module("colorama").init()
    sys.executable = request["executable"]  # what this process starts is forked, too
    sys.argv = [what if option == "-m" else option, *arguments]
    sys.path[0] = request["folder"]
    multiprocessing.get_context = in_forks(multiprocessing.get_context)
    end(status_of(option, what))


def status_of(option: str, what: str) -> int:
    """Run a module, or code, as the main module, and return the exit status that Python would end with."""
    try:
        run_main(option, what)
    except SystemExit as leave:
        if leave.code is None or isinstance(leave.code, int):
            return leave.code or 0
        print(leave.code, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def end(status: int) -> NoReturn:
    """End as Python does, but without destroying what TensorFlow has made: its threads are not in a fork."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status & 0xFF)


def run_main(option: str, what: str) -> None:
    """Run a module, or code, as the main module."""
    if option == "-m":
        runpy.run_module(what, run_name="__main__", alter_sys=True)
        return
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    exec(compile(what, "<string>", "exec"), vars(main))


def in_forks(get_context: Callable[..., Any]) -> Callable[..., Any]:
    """`get_context` for processes that are forked, so that a stage's worker has MLflow, too."""
    return lambda _=None: get_context("fork")


def main() -> None:
    """Listen and serve."""
    address, *_ = sys.argv[1:]
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(address)
    listening.listen(64)
    Server(listening).serve()


if __name__ == "__main__":
    sys.path[0] = str(Path.cwd())
    main()
