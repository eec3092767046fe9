"""Shared code of the tests: temporary projects in which they run real commands."""

import contextlib
import functools
import gc
import importlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any
from unittest import mock

import hydra
import pytest
import yaml
from filelock import FileLock
from omegaconf import DictConfig

from pipeline.commands.runs.ui import wait_until_up
from pipeline.core.config import Config
from pipeline.core.errors import PipelineError
from pipeline.core.process.worker import RARELY
from pipeline.core.validation import parse_config
from pipeline.stages.compose import composition
from pipeline.stages.compose.composition import compose_config
from pipeline.tracking.relocation import relocate
from tests.forkserver import fork_server
from tests.forkserver.opened import VARIABLE as OPENED

Start = Callable[..., "subprocess.Popen[str]"]
ROOT = Path(__file__).parent.parent
CONF = ROOT / "conf"
BESIDE = ROOT.parent / "shared" / "mnist"
MIRROR = {"DATASET_MIRROR": str(BESIDE)} if BESIDE.is_dir() else {}  # otherwise the public mirrors
SETTINGS = (
    *("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "DVC_ROOT", "DVC_EXP_NAME", "DEVICE", "DEVICES"),
    *("DATASET_MIRROR", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID", "JAX_COORDINATOR_ADDRESS"),
)
BACKEND = "KERAS_BACKEND"
CHOSEN = {BACKEND: os.environ[BACKEND]} if BACKEND in os.environ else {}  # before the first test imports Keras


PATH = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # with the real `python` and `dvc`

FORKING = "TESTS_FORK_SERVER"  # set to the folder with the fork server's `python` and `dvc`, if it runs


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--spawn", action="store_true", help="start a new interpreter for every command, without forks")
    parser.addoption("--sample", type=int, help="inject only this number of faults, of as many kinds as possible")
    parser.addoption("--table", type=Path, help="write a table of the faults to this file")
    parser.addoption("--sample-seed", type=int, default=0, help="seed of the choice of faults")


def pytest_configure(config: pytest.Config) -> None:
    """Run `python -m …` and `dvc …` in forks of a process that has already imported Keras, MLflow and DVC.

    All of pytest's processes share it. Commands that start with `sys.executable`, or with `PATH=PATH`, get a new
    interpreter.
    """
    if FORKING in os.environ or config.getoption("--spawn") or not hasattr(os, "pidfd_open"):
        return
    stack = contextlib.ExitStack()
    os.environ[FORKING] = str(stack.enter_context(fork_server()))
    stack.callback(os.environ.pop, FORKING)
    config.add_cleanup(stack.close)


@pytest.hookimpl(trylast=True)  # after pytest-randomly has shuffled the tests
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start the longest tests first, so that at the end no process works alone."""
    items.sort(key=lambda item: item.get_closest_marker("long") is None)


def pytest_collection_finish() -> None:
    """Collect garbage as rarely as the stages do, without imported objects; create MLflow's tables only once."""
    gc.set_threshold(RARELY)
    gc.freeze()
    if FORKING in os.environ and "mlflow" in sys.modules:
        importlib.import_module("tests.tables").copy_tables(Path(os.environ[FORKING]))


def environment(settings: dict[str, str]) -> dict[str, str]:
    """Environment for a command, without the settings of the user and of earlier tests."""
    path = os.pathsep.join([*filter(None, [os.environ.get(FORKING)]), PATH])
    inherited = {name: value for name, value in os.environ.items() if name not in (*SETTINGS, BACKEND)}
    return inherited | CHOSEN | {"PATH": path} | settings


@pytest.fixture(autouse=True, scope="session")
def _interrupts() -> None:
    """Enable Ctrl-C for the tests of interrupts: a shell's background jobs ignore it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reset the settings and MLflow's tracking URI, which MLflow also stores in this process and its environment."""
    if "mlflow" in sys.modules:
        sys.modules["mlflow"].set_tracking_uri(None)
    for name in SETTINGS:
        monkeypatch.setenv(name, "")


def configured(tmp_path: Path, **params: object) -> Config:
    """Configuration composed from conf/ and a params.yaml with these values."""
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(params), encoding="utf-8")
    return parse_config(compose_ours(path), {}, "")


def with_optimizer(config: Config, optimizer: dict[str, Any]) -> Config:
    """The configuration with another optimizer, which need not be one of conf/optimizer/."""
    composed = config.model_dump(by_alias=True)
    return Config.model_validate(composed | {"optimizer": {"name": "ours"} | optimizer})


def layer(name: str, **arguments: Any) -> dict[str, Any]:
    """Configuration of one of Keras's layers."""
    return {"_target_": f"keras.layers.{name}", **arguments}


def compose_ours(params: Path) -> dict[str, Any]:
    """Compose conf/ and a params.yaml; Hydra reads the files of the same options once per process."""
    with mock.patch.object(composition, "compose", compose_once):
        return compose_config(CONF, params)


def compose_once(name: str, overrides: list[str]) -> DictConfig:
    """Compose these options of conf/ with Hydra, or return a copy of an earlier result."""
    return deepcopy(_compose(name, tuple(overrides)))


@functools.cache
def _compose(name: str, overrides: tuple[str, ...]) -> DictConfig:
    composed: DictConfig = hydra.compose(name, list(overrides))
    return composed


def free_port() -> int:
    """An unused port on the loopback interface."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


class Project:
    """A clone of the working tree in its own folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def run(self, *command: str, **settings: str) -> subprocess.CompletedProcess[str]:
        """Run a command in the project and wait for it; standard output and error are merged."""
        return subprocess.run(
            command,
            cwd=self.root,
            env=environment(settings),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )

    def succeed(self, *command: str, **settings: str) -> str:
        """Run a command that must succeed, and return its output."""
        result = self.run(*command, **settings)
        assert result.returncode == 0, result.stdout
        return result.stdout

    def fail(self, *command: str, **settings: str) -> str:
        """Run a command that must fail with a message instead of a traceback, and return its output."""
        result = self.run(*command, **settings)
        assert result.returncode != 0, result.stdout
        assert "Traceback" not in result.stdout, result.stdout
        return result.stdout

    def params(self, **values: object) -> None:
        """Replace params.yaml."""
        (self.root / "params.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")

    def commit(self) -> None:
        """Commit everything."""
        self.succeed("git", "add", "-A")
        self.succeed("git", "commit", "-qm", "state")

    def report(self, name: str) -> dict[str, Any]:
        """Content of a JSON file in reports/."""
        loaded: dict[str, Any] = json.loads((self.root / "reports" / name).read_text(encoding="utf-8"))
        return loaded

    def files(self, *folders: str) -> dict[str, bytes]:
        """Content of all files in these folders and their subfolders."""
        found = [path for folder in folders for path in sorted((self.root / folder).rglob("*")) if path.is_file()]
        return {str(path.relative_to(self.root)): path.read_bytes() for path in found}


def clone(target: Path) -> Project:
    """Create a git repository in a new folder, and commit the files of the working tree."""
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in filter(None, listing.stdout.split("\0")):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)
    project = Project(target)
    project.succeed("git", "init", "-q", "-b", "main")
    project.succeed("git", "config", "user.name", "tests")  # `dvc exp run --temp` and `--queue` need them
    project.succeed("git", "config", "user.email", "tests@localhost")
    project.commit()
    return project


def once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Project:
    """Make a clone in a folder once for all of pytest's processes, for read-only tests."""
    base = factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name / "project"
    with FileLock(f"{folder.parent}.lock"):
        if not (folder.parent / "made").exists():
            shutil.rmtree(folder, ignore_errors=True)  # left by a process that failed to make it
            make(folder)
            (folder.parent / "made").touch()
    return Project(folder)


def copy(project: Project, folder: Path) -> Project:
    """Copy a clone, for a test that modifies it."""
    shutil.copytree(project.root, folder, symlinks=True)
    if (folder / "mlflow.db").exists():
        relocate(f"sqlite:///{folder}/mlflow.db", folder / "mlartifacts", folder / "mlflow.db.use")
    return Project(folder)


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """A fresh clone in which no stage has run."""
    return clone(tmp_path / "project")


@pytest.fixture(scope="session")
def trained_once(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A clone in which `dvc repro` has run recipe=smoke, for read-only tests."""
    return once(tmp_path_factory, "trained", train_smoke)


def train_smoke(folder: Path) -> None:
    """Train recipe=smoke in a clone, and save the output of `dvc repro` and, beside the clone, the files it opens."""
    project = clone(folder)
    project.params(recipe="smoke", training={"epochs": None}, optimizer=None)
    project.commit()
    (folder / "repro.log").write_text(
        project.succeed("dvc", "repro", **{OPENED: str(opened_by(project))}), encoding="utf-8"
    )


def opened_by(project: Project) -> Path:
    """The list of files that the stages of `trained_once` opened."""
    return project.root.parent / "opened"


@pytest.fixture
def trained(trained_once: Project, tmp_path: Path) -> Project:
    """A copy of `trained_once`, for tests that modify it."""
    return copy(trained_once, tmp_path / "project")


@pytest.fixture(scope="session")
def mnist_once(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A clone in which recipe=fast was trained on MNIST and the results committed."""
    return once(tmp_path_factory, "mnist", train_mnist)


def train_mnist(folder: Path) -> None:
    """Train recipe=fast in a clone, and commit the results."""
    project = clone(folder)
    project.params(recipe="fast")
    project.succeed("dvc", "repro", **MIRROR)
    project.commit()


@pytest.fixture
def mnist(mnist_once: Project, tmp_path: Path) -> Project:
    """A copy of `mnist_once`, for tests that modify it."""
    return copy(mnist_once, tmp_path / "project")


def kill_all(process: "subprocess.Popen[str]") -> None:
    """Kill a process that `start` started, and its children: MLflow's server is a child of its command."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def serve(start: Start, folder: Path, port: int, *command: str, **settings: str) -> "subprocess.Popen[str]":
    """Start an MLflow server and wait until it responds."""
    command = (sys.executable, "-m", "mlflow", *command, "--port", str(port))
    process = start(command, folder, MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false", **settings)
    try:
        wait_until_up(process, port)
    except PipelineError:
        kill_all(process)
        raise AssertionError(process.communicate()[0]) from None
    return process


def serve_store(start: Start, folder: Path, port: int) -> "subprocess.Popen[str]":
    """Start or restart a tracking server whose store is in `folder`."""
    store = (
        "--backend-store-uri",
        f"sqlite:///{folder}/server.db",
        "--artifacts-destination",
        str(folder / "artifacts"),
    )
    return serve(start, folder, port, "server", "--workers", "1", *store)


def _enable_interrupts() -> None:
    """Enable Ctrl-C, which background jobs of a shell and their children ignore."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.fixture
def start() -> Iterator[Start]:
    """Start processes that are killed at the end of the test."""
    started: list[subprocess.Popen[str]] = []

    def run(command: Sequence[str], cwd: Path, **settings: str) -> "subprocess.Popen[str]":
        process = subprocess.Popen(
            command,
            cwd=cwd,
            env=environment(settings),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            preexec_fn=_enable_interrupts,  # noqa: PLW1509 (it needs no lock that a thread could hold)
        )
        started.append(process)
        return process

    yield run
    for process in started:
        kill_all(process)
        if process.stdout:
            process.stdout.close()
