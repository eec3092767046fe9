"""Clones with committed results, and folders for temporary files."""

from pathlib import Path

import pytest

from tests.conftest import Project, copy


@pytest.fixture
def committed(trained_once: Project, tmp_path: Path) -> Project:
    """A clone in which recipe=smoke was trained and its results committed."""
    project = copy(trained_once, tmp_path / "project")
    project.commit()
    return project


@pytest.fixture
def temporary(tmp_path: Path) -> Path:
    """A folder for temporary files, whose name has spaces."""
    folder = tmp_path / "temporary files"
    folder.mkdir()
    return folder
