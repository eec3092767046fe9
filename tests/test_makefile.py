"""The Makefile with real virtual environments, into which it installs a package that the tests create."""

import hashlib
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

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
