"""Another S3-compatible store, and backups of the database."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest
import requests
from mlflow import MlflowClient

from tests.services.conftest import Join
from tests.services.services import ADMIN, BUCKET, Member, Service, Team, moto, tracking

pytestmark = pytest.mark.services

BACKUP = "backup"  # a second database
UPGRADE = ("python", "-m", "mlflow", "db", "upgrade", "postgresql+psycopg2:///mlflow")


@pytest.fixture
def other_store(tmp_path: Path) -> Iterator[Service]:
    """An S3 server of another implementation, with the bucket."""
    server = moto(tmp_path)
    try:
        server.start()
        assert requests.put(f"{server.address}/{BUCKET}", timeout=60).ok
        yield server
    finally:
        server.kill()


def test_another_store_works_the_same(team: Team, join: Join, other_store: Service, tmp_path: Path) -> None:
    """A second MLflow server on the same database has its artifacts in the other store, and DVC its remote."""
    keys = team.keys | {"AWS_ENDPOINT_URL": other_store.address}
    mlflow = tracking(team.postgres, tmp_path, keys, team.passwords[ADMIN])
    other = team._replace(mlflow=mlflow, keys=keys)
    try:
        mlflow.start()
        author, own = Member(join("author").root, other, "author"), {"MLFLOW_EXPERIMENT_NAME": "another-store"}
        author.params(recipe="smoke", seed=1)
        author.succeed("dvc", "repro", **own)
        author.succeed("dvc", "push")
        found = author.files("models")
        shutil.rmtree(author.root / ".dvc" / "cache")
        shutil.rmtree(author.root / "models")
        author.succeed("dvc", "pull")
        assert author.files("models") == found
        run = author.report("evaluation.json")["mlflow"]["run_id"]
        with mock.patch.dict(os.environ, other.login("author")):
            page = MlflowClient(mlflow.address).download_artifacts(run, "report.html", str(tmp_path))
        assert Path(page).read_bytes() == author.files("reports")["reports/report.html"]
    finally:
        mlflow.kill()


def test_a_backup_has_the_runs_and_the_users(team: Team, author: Member, tmp_path: Path) -> None:
    dump = tmp_path / "mlflow.dump"
    team.postgres.run("pg_dump", "--format=custom", f"--file={dump}")
    team.postgres.run("createdb", BACKUP)
    team.postgres.run("pg_restore", "--exit-on-error", f"--dbname={BACKUP}", str(dump))
    run = author.report("evaluation.json")["mlflow"]["run_id"]
    query = f"SELECT status FROM runs WHERE run_uuid = '{run}'"
    assert team.postgres.run("psql", "-At", "-c", query, PGDATABASE=BACKUP).split() == ["FINISHED"]
    listing = ("psql", "-At", "-c", "SELECT username FROM users")
    users = set(team.postgres.run(*listing, PGDATABASE=BACKUP).split())
    assert users == set(team.postgres.run(*listing).split()) >= team.passwords.keys()
    author.succeed(*UPGRADE, **team.postgres.settings)
