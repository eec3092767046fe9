"""A team's server: MLflow with logins on PostgreSQL, and artifacts and DVC's remote in an S3-compatible store."""

import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT, Project
from tests.services.services import ADMIN, BUCKET, MISSING, Postgres, Team, postgres_programs, rclone, tracking

ROLES = {"author": "trainer", "colleague": "promoter", "reader": "reader"}  # of the users


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A database server. Without PostgreSQL's programs, the tests are skipped."""
    programs = postgres_programs()
    if programs is None:
        pytest.skip(MISSING)
    folder = Path(tempfile.mkdtemp(prefix="postgres-"))  # pytest's own folders are closed to other users
    server = Postgres(programs, folder, secrets.token_hex())
    try:
        server.create()
        yield server
        server.stop()
    finally:
        shutil.rmtree(folder)


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
    found = Team(mlflow, s3, postgres, folder / "objects" / BUCKET, passwords, keys)
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
