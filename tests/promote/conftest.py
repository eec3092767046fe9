"""Models to promote: a champion, a better one and a worse one, each committed in a branch of its own."""

import os
import shutil
from pathlib import Path

import pytest
from filelock import FileLock
from mlflow import MlflowClient

from tests.conftest import Project
from tests.promote.command import PROMOTE

EPOCHS = {"better": 20, "worse": 1}


@pytest.fixture(scope="session")
def candidates_once(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Project:
    """A clone whose branch `main` has recipe=smoke trained and promoted, `better` and `worse` other epochs.

    Tests that only look use it as it is; it is trained once for all of pytest's processes.
    """
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "candidates"
    with FileLock(f"{folder}.lock"):
        if not (folder / "promote.log").exists():
            trained_once: Project = request.getfixturevalue("trained_once")
            shutil.copytree(trained_once.root, folder, symlinks=True)
            train(Project(folder))
    return Project(folder)


def train(project: Project) -> None:
    """Train and commit the other two models, and promote the first."""
    project.succeed("dvc", "status")
    project.commit()
    for name, epochs in EPOCHS.items():
        project.succeed("git", "switch", "-qc", name, "main")
        project.params(recipe="smoke", training={"epochs": epochs}, optimizer=None)
        project.succeed("dvc", "repro")
        project.commit()
    project.succeed("git", "switch", "-q", "main")
    project.succeed("dvc", "checkout")
    log = project.succeed(*PROMOTE, "--base", "HEAD", COLUMNS="150")
    (project.root / "promote.log").write_text(log, encoding="utf-8")


@pytest.fixture
def candidates(candidates_once: Project, tmp_path: Path) -> Project:
    """A copy of `candidates_once`, for tests that change something."""
    return copy(candidates_once, tmp_path / "project")


def copy(project: Project, folder: Path) -> Project:
    """A copy of a clone, with the promotions that it has seen."""
    shutil.copytree(project.root, folder, symlinks=True)
    Project(folder).succeed("dvc", "status")
    return Project(folder)


@pytest.fixture
def client(candidates: Project) -> MlflowClient:
    """A client of the store of `candidates`."""
    return MlflowClient(f"sqlite:///{candidates.root}/mlflow.db")
