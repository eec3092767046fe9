"""Users without a permission get one line that says what to do, and nothing is trained in vain."""

import sys
import warnings
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from tests.commands.promote.command import PROMOTE
from tests.conftest import PATH, ROOT
from tests.services.conftest import Join
from tests.services.services import ADMIN, Member, Team

pytestmark = pytest.mark.services

TRAIN = ("python", "-m", "pipeline.stages.train")
USERS = ("python", "deploy/users.py")
AGAIN = "run the same command again: the last password that it prints for a name is valid"


def line(output: str) -> str:
    """The only line of an output."""
    (found,) = output.splitlines()
    return found


@pytest.fixture
def reader(join: Join) -> Member:
    """A clone of a user who may only read, with the author's results."""
    member = join("reader")
    member.succeed("dvc", "pull")
    return member


def test_a_reader_trains_nothing(reader: Member) -> None:
    models = reader.files("models")
    printed = line(reader.fail(*TRAIN))
    assert printed.startswith(f"train: the MLflow server {reader.team.mlflow.address} does not let this user write to ")
    assert "the experiment 'digits': ask its administrator for the permission EDIT, or unset" in printed
    assert reader.files("models") == models
    reader.params(recipe="smoke", seed=2)
    printed = reader.fail("dvc", "repro")
    assert "epoch" not in printed
    assert printed.count("ask its administrator for the permission EDIT") == 1
    assert not (reader.root / ".unsent").exists()


def test_a_reader_sees_runs(reader: Member) -> None:
    assert "1 joined, 0 unmatched" in reader.succeed("python", "-m", "pipeline.commands.runs", "check")
    assert "The runs are at" in reader.succeed("python", "-m", "pipeline.commands.runs", "ui")


@pytest.mark.parametrize("password", ["", "wrong-password"])
def test_a_wrong_password_is_one_line(reader: Member, password: str) -> None:
    printed = line(reader.fail(*TRAIN, MLFLOW_TRACKING_PASSWORD=password))
    assert "The server requires a login: set MLFLOW_TRACKING_TOKEN, or MLFLOW_TRACKING_USERNAME and" in printed


def test_only_promoters_promote(join: Join, client: MlflowClient) -> None:
    author, colleague = join("author"), join("colleague")
    for member in (author, colleague):
        member.succeed("dvc", "pull")
    colleague.succeed(*PROMOTE, "--base", "HEAD")
    assert client.get_model_version_by_alias("digits", "champion").run_id == run_id(author)
    assert len(client.search_model_versions("name = 'digits'")) == 1
    author.params(recipe="smoke", seed=2)
    author.succeed("dvc", "repro", MLFLOW_EXPERIMENT_NAME="promotion")
    author.commit()
    printed = line(author.fail(*PROMOTE, "--base", "HEAD", "--without-champion"))
    assert printed.startswith(f"promote: the MLflow server {author.team.mlflow.address} does not let this user promote")
    assert client.get_model_version_by_alias("digits", "champion").run_id != run_id(author)


def run_id(member: Member) -> str:
    """The MLflow run of the results in a clone."""
    return str(member.report("evaluation.json")["mlflow"]["run_id"])


def test_only_the_administrator_adds_users(team: Team) -> None:
    for user, error in (("author", "only the server's administrator adds users"), (ADMIN, "the user reader exists")):
        printed = line(Member(ROOT, team, user).fail(*USERS, "reader"))
        assert printed.startswith(f"users: {error}"), printed


@pytest.fixture
def administrator(client: MlflowClient) -> Any:
    """The administrator's client for users and roles."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from mlflow.server.auth.client import AuthServiceClient
    return AuthServiceClient(client.tracking_uri)


def test_a_role_that_a_killed_call_left_incomplete_is_completed(team: Team, administrator: Any) -> None:
    (promoter,) = [role for role in administrator.list_roles("default") if role.name == "promoter"]
    before = permissions(administrator, promoter.id)
    for each in administrator.list_role_permissions(promoter.id):
        administrator.remove_role_permission(each.id)
    Member(ROOT, team, ADMIN).succeed(*USERS, "--role", "promoter", "paula")
    assert permissions(administrator, promoter.id) == before
    administrator.unassign_role("paula", promoter.id)
    printed = line(Member(ROOT, team, ADMIN).fail(*USERS, "--role", "promoter", "paula"))
    assert printed.startswith("users: the user paula exists")
    assert [role.name for role in administrator.list_user_roles("paula")] == ["promoter"]


def permissions(administrator: Any, role: int) -> dict[str, str]:
    """What a role may do with each kind of resource."""
    return {each.resource_type: each.permission for each in administrator.list_role_permissions(role)}


@pytest.mark.parametrize("output", ["> /dev/full", ">&-", "| :"])
def test_no_user_is_created_whose_password_cannot_be_printed(team: Team, administrator: Any, output: str) -> None:
    member = Member(ROOT, team, ADMIN)
    printed = member.run("sh", "-c", f"python deploy/users.py nina {output}", PATH=PATH).stdout
    assert "Traceback" not in printed
    assert len(printed.splitlines()) <= 1, printed
    with pytest.raises(MlflowException, match="not found"):
        administrator.get_user("nina")


def test_interrupted_calls_end_with_one_line(team: Team) -> None:
    command = f"timeout --signal=INT --kill-after=60 1 {sys.executable} deploy/users.py ina 2>&1; echo $?"
    printed = Member(ROOT, team, ADMIN).run("sh", "-c", command, PATH=PATH).stdout.splitlines()
    # Python itself also prints an interrupt that falls into a callback of its import system.
    assert [each for each in printed if each][-2:] == [f"users: interrupted; {AGAIN}", "124"]
