"""The environment of a clone, with requirements that need no network."""

import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.commands.reproduce.clone import Clone
from pipeline.commands.reproduce.environment import prepare_python
from pipeline.core.errors import PipelineError
from tests.test_makefile import WHEEL, folder

__all__ = ["folder"]


@pytest.fixture
def clone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Clone:
    """A clone that pins a package which is not installed here, and which pip finds in the clone."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    home = folder / "home"
    home.mkdir()
    pin = (folder / "requirements.txt").read_text(encoding="utf-8")
    digest = pin.partition("--hash=")[2]
    (folder / "requirements.txt").write_text(f"hello==1.0 \\\n    --hash={digest}", encoding="utf-8")
    return Clone(folder, home)


def test_an_environment_with_other_versions_is_not_reused(
    clone: Clone, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clone's own Makefile installs, without the variables of the make that runs this."""
    monkeypatch.setenv("BACKEND", "nonsense")
    monkeypatch.setenv("MAKEFLAGS", "--dry-run")
    python = prepare_python(clone, "tensorflow", reuse=True)
    assert python == str(clone.root / ".venv" / "bin" / "python")
    assert subprocess.run([python, "-c", "import hello"], capture_output=True, check=True).stdout == b"hello\n"
    output = capfd.readouterr().err
    assert "this environment differs: hello" in output
    assert (clone.root / ".venv" / "requirements.txt").exists(), "make's record of what it installed"


def test_a_commit_without_a_makefile_is_installed_by_pip(clone: Clone) -> None:
    (clone.root / "Makefile").unlink()
    python = prepare_python(clone, "tensorflow", reuse=False)
    assert subprocess.run([python, "-c", "import hello"], capture_output=True, check=True).stdout == b"hello\n"


def test_an_environment_with_the_same_versions_is_reused(clone: Clone, capfd: pytest.CaptureFixture[str]) -> None:
    version = __import__("pytest").__version__
    (clone.root / "requirements.txt").write_text(f"pytest=={version} \\\n", encoding="utf-8")
    assert prepare_python(clone, "tensorflow", reuse=True) == sys.executable
    assert "has the versions that requirements.txt pins" in capfd.readouterr().err


def test_a_package_that_cannot_be_installed_is_one_line(clone: Clone) -> None:
    (clone.root / WHEEL).write_bytes(b"damaged")
    with pytest.raises(PipelineError, match=r"^`make .venv/requirements.txt PYTHON=.*` failed with exit status 2"):
        prepare_python(clone, "tensorflow", reuse=False)


def test_a_commit_without_requirements_cannot_be_tried(clone: Clone) -> None:
    with pytest.raises(PipelineError, match=r"requirements-jax\.txt does not exist in this commit"):
        prepare_python(clone, "jax", reuse=True)
