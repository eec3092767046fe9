"""Models to promote: a champion, a better one and a worse one, each committed on its own branch."""

from pathlib import Path

import pytest
from mlflow import MlflowClient

from tests.commands.promote.command import PROMOTE
from tests.conftest import Project, copy, once

EPOCHS = {"better": 20, "worse": 1}


@pytest.fixture(scope="session")
def candidates_once(tmp_path_factory: pytest.TempPathFactory, trained_once: Project) -> Project:
    """A clone with recipe=smoke trained and promoted on `main`, and with other epochs on `better` and `worse`."""
    return once(tmp_path_factory, "candidates", lambda folder: train(copy(trained_once, folder)))


def train(project: Project) -> None:
    """Train and commit the other two models, and promote the first."""
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


@pytest.fixture
def client(candidates: Project) -> MlflowClient:
    """An MLflow client for the store of `candidates`."""
    return MlflowClient(f"sqlite:///{candidates.root}/mlflow.db")
