"""Run `python -m MODULE` and `python -c CODE` for clients, each in a fork of this process.

Every fork has its client's arguments, environment, working directory and standard streams. It only skips the start of
an interpreter and the import of Keras, MLflow and DVC. Forks import the project's own modules from the client's working
directory. If a client disconnects, its process is killed.
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
import tempfile
import threading
import traceback
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from pipeline.core.process.worker import RARELY
from tests.forkserver.opened import VARIABLE, record_opened

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
SETTINGS = {  # as in the stages
    "TF_ENABLE_ONEDNN_OPTS": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "ORT_DISABLE_TELEMETRY": "1",
}
STREAMS = 3


class Server:
    """Accept clients on a listening socket and fork a process for each."""

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
            # Only for the first client: a run of a few tests may not need the imports.
            preload(Path(self._listening.getsockname()).parent)
        try:
            request, streams = receive(client)
        except (EOFError, OSError):  # the client was killed
            client.close()
            return
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
        """Send the exit status of a process to its client."""
        self._selector.unregister(client)
        self._selector.unregister(process)
        os.close(process)
        _, status = os.waitpid(pid, 0)
        if os.WIFSIGNALED(status):
            kill(pid)  # its worker does not notice its end, because a fork holds both ends of the pipe
        with contextlib.suppress(OSError), client:
            client.sendall(str(os.waitstatus_to_exitcode(status)).encode())


def preload(folder: Path) -> None:
    """Import the packages that take seconds, and no modules of the project: clients have their own copies.

    Also look up what MLflow looks up once per process: its list of all installed packages takes a second. `folder`
    contains what all processes share.
    """
    os.environ.update(SETTINGS)
    gc.set_threshold(RARELY)  # as in the stages; here it applies to DVC, too
    for name in PRELOADED:
        importlib.import_module(name)
    importlib.import_module("mlflow.utils.requirements_utils").warn_dependency_requirement_mismatches(["mlflow"])
    importlib.import_module("sqlalchemy.orm").configure_mappers()
    importlib.import_module("tests.tables").copy_tables(folder)
    draw_everything()
    importlib.import_module("colorama").deinit()  # which DVC imports, and which wraps this process's streams
    for name in [name for name in sys.modules if name.partition(".")[0] in ("pipeline", "tests")]:
        del sys.modules[name]
    gc.collect()
    gc.freeze()  # otherwise garbage collection in a fork would touch, and so copy, every imported object


def draw_everything() -> None:
    """Let matplotlib load its fonts and measure letters before the first fork."""
    figure = importlib.import_module("matplotlib.figure").Figure()
    axes = figure.add_subplot(title="0123456789 abcdefghijklmnopqrstuvwxyz", xlabel="$10^{-1}$", yscale="log")
    axes.plot([0, 1], [0.001, 1], label="label")
    axes.legend()
    for form in ("png", "svg"):
        figure.savefig(io.BytesIO(), format=form)


def receive(client: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """Receive a client's request, which ends with a newline, and its standard streams."""
    content, streams, _, _ = socket.recv_fds(client, 1 << 16, STREAMS)
    while not content.endswith(b"\n"):
        part = client.recv(1 << 16)
        if not part:
            raise EOFError
        content += part
    request: dict[str, Any] = json.loads(content)
    return request, streams


def kill(pid: int) -> None:
    """Kill a client's process and its children."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def become(request: dict[str, Any], streams: list[int]) -> NoReturn:
    """Turn this process into the one that the client requested."""
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
    tempfile.tempdir = None  # which preloading set, to the TMPDIR of the server
    if VARIABLE in os.environ:
        record_opened(os.environ[VARIABLE])
    option, what, *arguments = request["arguments"]
    if what == "dvc":
        importlib.import_module("colorama").init()
    sys.executable = request["executable"]  # so that child processes are forked, too
    sys.argv = [what if option == "-m" else option, *arguments]
    sys.path[0] = request["folder"]
    multiprocessing.get_context = in_forks(multiprocessing.get_context)
    if "FAULT_MOMENT" in os.environ:
        importlib.import_module("tests.faults.moments").arm(what)
    end(status_of(option, what))


def status_of(option: str, what: str) -> int:
    """Run a module or code as the main module, and return the exit status that Python would return."""
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
    """Exit as Python does, but without destroying TensorFlow's objects: a fork does not have its threads."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status & 0xFF)


def run_main(option: str, what: str) -> None:
    """Run a module or code as the main module."""
    if option == "-m":
        runpy.run_module(what, run_name="__main__", alter_sys=True)
        return
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    exec(compile(what, "<string>", "exec"), vars(main))


def in_forks(get_context: Callable[..., Any]) -> Callable[..., Any]:
    """Make `get_context` fork processes, so that a stage's worker has MLflow imported, too."""
    return lambda _=None: get_context("fork")


def main() -> None:
    """Listen on the socket in the arguments, and serve."""
    address, *_ = sys.argv[1:]
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(address)
    listening.listen(64)
    Server(listening).serve()


if __name__ == "__main__":
    sys.path[0] = str(Path.cwd())
    main()
