"""Passwords and keys appear in no output, log, record or object of a team's services."""

import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.services.conftest import Join
from tests.services.services import Member, Running, Team

pytestmark = pytest.mark.services

TRAIN = ("python", "-m", "pipeline.stages.train")


def containing(folder: Path, secrets: list[str]) -> list[Path]:
    """The files in a folder that contain one of the secrets."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return [path for path in files if any(secret.encode() in path.read_bytes() for secret in secrets)]


@contextmanager
def interrupted_training(team: Team, author: Member, seed: int, **settings: str) -> Iterator[Running]:
    """A training that has ended while the MLflow server is down, which comes back after the block."""
    author.succeed("dvc", "pull")
    author.params(recipe="smoke", seed=seed, training={"epochs": 20})
    author.succeed("python", "-m", "pipeline.stages.compose")
    with author.running(*TRAIN, **settings) as training:
        training.wait_for("epoch   3/")
        with team.without("mlflow"):
            assert training.finish() == 0, training.output
            yield training


def test_logins_from_the_environment_are_nowhere(team: Team, join: Join) -> None:
    author, own, earlier = join("author"), {"MLFLOW_EXPERIMENT_NAME": "secrets"}, len(team.printed)
    with interrupted_training(team, author, 3, **own):
        assert (author.root / ".unsent").exists()
        assert not containing(author.root, team.secrets)
    author.succeed("python", "-m", "pipeline.commands.runs", "send")
    assert not [text for text in team.printed[earlier:] if any(secret in text for secret in team.secrets)]
    assert not containing(author.root, team.secrets)
    assert not containing(team.bucket, team.secrets)
    assert not [secret for secret in team.secrets if secret in team.mlflow.output + team.s3.output]
    dump = team.postgres.run("pg_dump")
    assert "secrets" in dump
    assert not [secret for secret in team.secrets if secret in dump]


def test_a_password_in_the_address_is_only_in_the_private_file(team: Team, join: Join) -> None:
    author = join("author")
    password = team.passwords["author"]
    own = {"MLFLOW_TRACKING_URI": team.mlflow.address.replace("://", f"://author:{password}@")}
    own |= {"MLFLOW_EXPERIMENT_NAME": "addresses", "MLFLOW_TRACKING_USERNAME": "", "MLFLOW_TRACKING_PASSWORD": ""}
    with interrupted_training(team, author, 4, **own) as training:
        kept = containing(author.root, [password])
        assert {path.name for path in kept} == {"uri"}
        assert {stat.S_IMODE(path.stat().st_mode) for path in kept} == {0o600}
    sent = author.succeed("python", "-m", "pipeline.commands.runs", "send", **own)
    evaluated = author.succeed("python", "-m", "pipeline.stages.evaluate", **own)
    assert not containing(author.root, [password])
    assert password not in training.output + sent + evaluated + team.mlflow.output
    assert password not in team.postgres.run("pg_dump")
