"""A team's server: MLflow with logins on PostgreSQL, and artifacts and DVC's remote in an S3-compatible store."""

import secrets
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tests.conftest import ROOT, Project, clone
from tests.services.services import (
    ADMIN,
    BUCKET,
    MISSING,
    Member,
    Postgres,
    Team,
    postgres_programs,
    postgres_server,
    rclone,
    tracking,
)

Join = Callable[[str], Member]
ROLES = {"author": "trainer", "colleague": "promoter", "reader": "reader"}  # of the users


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A database server. Without PostgreSQL's programs, the tests are skipped."""
    programs = postgres_programs()
    if programs is None:
        pytest.skip(MISSING)
    with postgres_server(programs) as server:
        yield server


@pytest.fixture(scope="session")
def team(postgres: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Team]:
    """A team's services and its users."""
    folder = tmp_path_factory.mktemp("services")
    keys = {"AWS_ACCESS_KEY_ID": "team", "AWS_SECRET_ACCESS_KEY": secrets.token_hex()}
    (folder / "objects" / BUCKET).mkdir(parents=True)
    s3 = rclone(folder, folder / "objects", keys)
    keys["AWS_ENDPOINT_URL"] = s3.address
    passwords = {ADMIN: secrets.token_hex()}
    mlflow = tracking(postgres, folder, keys, passwords[ADMIN])
    found = Team(mlflow, s3, postgres, folder / "objects" / BUCKET, passwords, keys, [])
    try:
        s3.start()
        mlflow.start()
        for name, role in ROLES.items():
            printed = Project(ROOT).succeed("python", "deploy/users.py", "--role", role, name, **found.login(ADMIN))
            passwords[name] = printed.split()[-1]
        yield found
    finally:
        mlflow.kill()
        s3.kill()


@pytest.fixture(scope="session")
def author(team: Team, tmp_path_factory: pytest.TempPathFactory) -> Member:
    """A clone in which recipe=smoke was trained and pushed with git and DVC, for read-only tests."""
    folder = tmp_path_factory.mktemp("author")
    (folder / "project").mkdir()
    member = Member(clone(folder / "project").root, team, "author")
    member.succeed("git", "init", "-q", "--bare", "-b", "main", str(folder / "origin"))
    member.succeed("git", "remote", "add", "origin", str(folder / "origin"))
    member.params(recipe="smoke", seed=1)
    member.succeed("dvc", "repro")
    member.commit()
    member.succeed("git", "push", "-q", "origin", "main")
    member.succeed("dvc", "push")
    return member


@pytest.fixture
def join(author: Member, tmp_path: Path) -> Join:
    """Clone the author's repository as a user, without any of DVC's files."""

    def join(user: str) -> Member:
        author.succeed("git", "clone", "-q", str(author.root.parent / "origin"), str(tmp_path / user))
        member = Member(tmp_path / user, author.team, user)
        member.succeed("git", "config", "user.name", user)
        member.succeed("git", "config", "user.email", f"{user}@localhost")
        return member

    return join


@pytest.fixture
def client(team: Team, monkeypatch: pytest.MonkeyPatch) -> MlflowClient:
    """The administrator's MLflow client."""
    for name, value in team.login(ADMIN).items():
        monkeypatch.setenv(name, value)
    return MlflowClient(team.mlflow.address)
