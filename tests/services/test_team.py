"""Two people share a server and a store."""

from pathlib import Path

import pytest

from tests.conftest import Project, clone
from tests.services.services import Team

pytestmark = pytest.mark.services


def test_thin(team: Team, tmp_path: Path) -> None:
    author = clone(tmp_path / "author")
    author.params(recipe="smoke", training={"epochs": None}, optimizer=None)
    print(author.succeed("dvc", "repro", **team.login("author")))
    author.commit()
    print(author.succeed("dvc", "push", **team.login("author")))
    author.succeed("git", "clone", "-q", str(author.root), str(tmp_path / "colleague"))
    colleague = Project(tmp_path / "colleague")
    print(colleague.succeed("dvc", "pull", **team.login("colleague")))
    print(colleague.succeed("dvc", "repro", **team.login("colleague")))
    print(colleague.run("python", "-m", "pipeline.commands.runs", "check", **team.login("colleague")))
    print(colleague.run("python", "-m", "pipeline.stages.train", **team.login("reader")))
    assert 0
