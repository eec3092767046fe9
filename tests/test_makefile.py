"""The Makefile with real virtual environments, into which it installs a package that the tests create."""

import hashlib
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from pipeline.core.machine import pinned_versions
from tests.conftest import ROOT, environment

TOOLS = {"python", "dvc", "pytest", "ruff", "mypy", "zizmor"}
WHEEL = "hello-1.0-py3-none-any.whl"


def make(folder: Path, *arguments: str) -> str:
    """Run make in a folder, and return its output."""
    command = ["make", f"PYTHON={sys.executable}", *arguments]
    result = subprocess.run(
        command,
        cwd=folder,
        env=environment({}),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout
    return result.stdout


def make_wheel(path: Path) -> None:
    """Write a wheel of the package `hello`, which has one module."""
    info = "hello-1.0.dist-info"
    files = {
        "hello.py": "print('hello')\n",
        f"{info}/METADATA": "Metadata-Version: 2.1\nName: hello\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{name},,\n" for name in [*files, f"{info}/RECORD"])
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in {**files, f"{info}/RECORD": record}.items():
            archive.writestr(name, text)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A project with the Makefile and with requirements that need no network."""
    make_wheel(tmp_path / WHEEL)
    digest = hashlib.sha256((tmp_path / WHEEL).read_bytes()).hexdigest()
    pin = f"hello @ file://{tmp_path / WHEEL} --hash=sha256:{digest}\n"
    (tmp_path / "requirements.txt").write_text(pin, encoding="utf-8")
    (tmp_path / "requirements-uv.txt").write_text("", encoding="utf-8")
    shutil.copy(ROOT / "Makefile", tmp_path)
    return tmp_path


def says_hello(folder: Path) -> bool:
    command = [str(folder / ".venv" / "bin" / "python"), "-c", "import hello"]
    return subprocess.run(command, capture_output=True, check=False).stdout == b"hello\n"


def test_uv_installs_hashed_requirements_in_the_project(folder: Path) -> None:
    """Some of uv's settings in pyproject.toml contradict --require-hashes, and make would use the slower pip."""
    shutil.copy(ROOT / "pyproject.toml", folder)
    uv = [str(Path(sys.executable).parent / "uv"), "pip", "install", "--offline", "--target", "installed"]
    subprocess.run([*uv, "--require-hashes", "-r", "requirements.txt"], cwd=folder, check=True)
    assert (folder / "installed" / "hello.py").exists()


@pytest.mark.slow
def test_an_incomplete_environment_is_completed(folder: Path) -> None:
    stamp, python = folder / ".venv" / "requirements.txt", folder / ".venv" / "bin" / "python"
    # as if killed before pip was installed
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder / ".venv")], check=True)
    make(folder, ".venv/requirements.txt")
    assert says_hello(folder)
    assert "up to date" in make(folder, ".venv/requirements.txt")

    stamp.rename(f"{stamp}.unfinished")  # as if killed during the installation
    (module,) = (folder / ".venv").rglob("hello.py")
    module.unlink()
    make(folder, ".venv/requirements.txt")
    assert says_hello(folder)
    assert [path.name for path in (folder / ".venv").glob("requirements*")] == ["requirements.txt"]

    stamp.unlink()
    python.unlink()
    python.symlink_to("/nowhere/python")  # as if the system's Python had been replaced
    make(folder, ".venv/requirements.txt")
    assert says_hello(folder)


def test_no_command_relies_on_the_exported_path(folder: Path) -> None:
    """Make 3.81, the version on macOS, starts simple commands without it."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    recipes = [line.lstrip("\t@").split() for line in makefile.splitlines() if line.startswith("\t")]
    commands = [next(word for word in words if "=" not in word or word.startswith("$(")) for words in recipes if words]
    assert "$(BIN)/python" in commands
    assert not TOOLS & set(commands)


@pytest.mark.parametrize(
    ("options", "file"),
    [
        ([], "requirements.txt"),
        (["GPU=1"], "requirements-gpu.txt"),
        (["BACKEND="], "requirements.txt"),
        (["BACKEND=tensorflow"], "requirements.txt"),
        (["BACKEND=tensorflow", "GPU=1"], "requirements-gpu.txt"),
        (["BACKEND=jax"], "requirements-jax.txt"),
        (["BACKEND= jax "], "requirements-jax.txt"),
        (["BACKEND=torch"], "requirements-torch.txt"),
        (["BACKEND=torch", "GPU=1"], "requirements-torch.txt"),
    ],
)
def test_each_backend_has_its_requirements(folder: Path, options: list[str], file: str) -> None:
    (folder / "requirements.txt").rename(folder / file)
    assert f"rm .venv/{file}.unfinished" in make(folder, "--dry-run", "repro", *options)


def test_a_backend_is_installed_and_used(folder: Path) -> None:
    (folder / "requirements.txt").rename(folder / "requirements-jax-gpu.txt")
    subprocess.run(["git", "init", "-q"], cwd=folder, check=True)  # which `repro` needs
    (folder / "dvc.py").write_text("import os, sys; print(sys.argv[1:], os.environ.get('KERAS_BACKEND'))", "utf-8")
    assert "['repro'] jax" in make(folder, "repro", "BACKEND=jax", "GPU=1")
    assert says_hello(folder)


@pytest.mark.parametrize(("number", "program"), [("", "dvc repro"), ("0", "dvc repro"), ("1", "pipeline.stages.train")])
def test_only_the_first_of_several_machines_runs_the_pipeline(folder: Path, number: str, program: str) -> None:
    assert f"/python -m {program}\n" in make(folder, "--dry-run", "repro", f"JAX_PROCESS_ID={number}")


WORDS = "HEAD@{1 day ago} it's"
VARIABLES = [
    ("reproduce", "REV"),
    ("reproduce", "PROMISE"),
    ("gate", "BASE"),
    ("gate", "MARKDOWN"),
    ("promote", "BASE"),
    ("faults", "SAMPLE"),
]


@pytest.mark.parametrize(("target", "variable"), VARIABLES)
def test_a_value_with_spaces_is_one_argument(folder: Path, target: str, variable: str) -> None:
    shutil.copy(folder / "requirements.txt", folder / "requirements-dev.txt")
    quiet = ("--dry-run", "--no-print-directory")  # make prints its folder if it runs in another make
    command = make(folder, *quiet, target, f"{variable}={WORDS}").splitlines()[-1]
    assert WORDS in shlex.split(command)


def test_promotion_needs_tensorflow_with_every_backend(folder: Path) -> None:
    for name in ("jax", "torch"):
        assert "rm .venv/requirements.txt.unfinished" in make(folder, "--dry-run", "promote", f"BACKEND={name}")


@pytest.mark.parametrize("name", ["jaxx", "jax torch", "TensorFlow"])
def test_an_unknown_backend_is_one_line(folder: Path, name: str) -> None:
    result = subprocess.run(
        ["make", "repro", f"BACKEND={name}"], cwd=folder, capture_output=True, text=True, check=False
    )
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert f"BACKEND={name}: must be one of tensorflow jax torch" in line


@pytest.mark.parametrize(
    ("file", "extra"),
    [
        ("requirements-jax.txt", {"jax", "jaxlib"}),
        ("requirements-jax-gpu.txt", {"jax", "jaxlib", "jax-cuda13-plugin", "nvidia-ml-py"}),
        ("requirements-torch.txt", {"torch", "nvidia-ml-py"}),
    ],
)
def test_requirements_of_other_backends_are_those_of_the_default_without_tensorflow(file: str, extra: set[str]) -> None:
    default, other = (pinned_versions(ROOT / name) for name in ("requirements.txt", file))
    assert other.keys() >= extra
    assert not {"tensorflow", "tf2onnx"} & other.keys()
    direct = set(re.findall(r'^    "([a-z0-9-]+)', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE))
    shared = default.keys() & other.keys()
    assert {name: other[name].keys() for name in shared} == {name: default[name].keys() for name in shared}
    assert len(shared & direct) > 15
