"""What the tests share: projects of their own to run real commands in."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
SETTINGS = ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "DVC_ROOT", "DVC_EXP_NAME", "DEVICE", "DATASET_MIRROR")


def environment(settings: dict[str, str]) -> dict[str, str]:
    """The environment for a command: without the settings of whoever runs the tests, and of the tests before it."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {name: value for name, value in os.environ.items() if name not in SETTINGS} | {"PATH": path} | settings


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow writes its address into this process's environment, too: undone after each test."""
    for name in SETTINGS:
        monkeypatch.setenv(name, "")


class Project:
    """A clone of the working tree in a folder of its own."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def run(self, *command: str, **settings: str) -> subprocess.CompletedProcess[str]:
        """Run a command in the project and wait for it; standard output and error come together."""
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
        """Run a command that must succeed, and return what it printed."""
        result = self.run(*command, **settings)
        assert result.returncode == 0, result.stdout
        return result.stdout

    def fail(self, *command: str, **settings: str) -> str:
        """Run a command that must fail with a message and not with a traceback, and return what it printed."""
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

    def files(self, *folders: str) -> dict[str, bytes]:
        """The content of all files below some folders."""
        found = [path for folder in folders for path in sorted((self.root / folder).rglob("*")) if path.is_file()]
        return {str(path.relative_to(self.root)): path.read_bytes() for path in found}


def clone(target: Path) -> Project:
    """A git repository with the files of the working tree, committed."""
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
    project.succeed("git", "config", "user.name", "tests")  # `dvc exp run --temp` and `--queue` ask for them
    project.succeed("git", "config", "user.email", "tests@localhost")
    project.commit()
    return project


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """A fresh clone in which nothing has run."""
    folder = tmp_path / "project"
    folder.mkdir()
    return clone(folder)


@pytest.fixture(scope="session")
def trained_once(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A clone in which `dvc repro` has run recipe=smoke, for tests that only look."""
    folder = tmp_path_factory.mktemp("trained") / "project"
    folder.mkdir()
    project = clone(folder)
    project.params(recipe="smoke", training={"epochs": None}, optimizer=None)
    project.commit()
    (folder / "repro.log").write_text(project.succeed("dvc", "repro"), encoding="utf-8")
    return project


@pytest.fixture
def trained(trained_once: Project, tmp_path: Path) -> Project:
    """A copy of `trained_once`, for tests that change something."""
    shutil.copytree(trained_once.root, tmp_path / "project", symlinks=True)
    project = Project(tmp_path / "project")
    project.succeed("dvc", "status")  # DVC notes the copies' time stamps
    return project


def kill_all(process: "subprocess.Popen[str]") -> None:
    """Kill a process that `start` started, and what it started: MLflow's server is a child of its command."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _heed_interrupts() -> None:
    """A shell's background jobs, and what they start, ignore Ctrl-C otherwise."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.fixture
def start() -> Iterator[Callable[..., "subprocess.Popen[str]"]]:
    """Start processes that are ended with the test."""
    started: list[subprocess.Popen[str]] = []

    def run(command: list[str], cwd: Path, **settings: str) -> "subprocess.Popen[str]":
        process = subprocess.Popen(
            command,
            cwd=cwd,
            env=environment(settings),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            preexec_fn=_heed_interrupts,  # noqa: PLW1509 (it touches nothing that a thread could hold)
        )
        started.append(process)
        return process

    yield run
    for process in started:
        kill_all(process)
        if process.stdout:
            process.stdout.close()
