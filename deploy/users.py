"""Add users to a team's MLflow server, and print a new password for each of them.

Run it as the server's administrator: set MLFLOW_TRACKING_URI, MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD.
"""

import argparse
import re
import secrets
import sys
import warnings
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))  # the project is not an installed package

from pipeline.commands.parser import one_line_errors
from pipeline.core import paths
from pipeline.core.errors import PipelineError, first_line
from pipeline.core.process.surroundings import settle
from pipeline.tracking.store import Store, experiment_id, open_store

WORKSPACE = "default"
ROLES: dict[str, dict[str, str]] = {  # every user may read everything
    "reader": {},
    "trainer": {"experiment": "EDIT"},
    "promoter": {"experiment": "EDIT", "registered_model": "EDIT"},
}
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@+-]{0,63}")  # a login cannot contain a colon
AGAIN = "run the same command again: the last password that it prints for a name is valid"


def add_users(store: Store, names: list[str], role: str) -> None:
    """Create users with a role, and the datasets' experiments, because their creator may do anything with them."""
    for dataset in (paths.CONF / "dataset").glob("*.yaml"):
        experiment_id(store, dataset.stem)
    server = connect(store.uri)
    number = complete_role(server, role)
    known = [name for name in dict.fromkeys(names) if not add_user(server, name, number)]
    if known:
        raise PipelineError(f"the user {', '.join(known)} exists: see docs/team.md to change a password or a role")


def add_user(server: Any, name: str, role: int) -> bool:
    """Create a user, and print the password first: one that cannot be printed would be lost.

    Returns False if the user exists. If an earlier call was killed before the user had a role, adds the role.
    """
    roles = roles_of(server, name)
    if roles is None:
        password = secrets.token_urlsafe()
        print(f"{name}\t{password}", flush=True)
        server.create_user(name, password)
    if not roles:
        server.assign_role(name, role)
    return roles is None


def roles_of(server: Any, name: str) -> list[Any] | None:
    """The roles of a user; None if there is no such user."""
    from mlflow.exceptions import MlflowException

    try:
        return list(server.list_user_roles(name))
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise


def complete_role(server: Any, role: str) -> int:
    """The ID of a role, which is created if it is new. Permissions that a killed call did not add are added."""
    known = next((each for each in server.list_roles(WORKSPACE) if each.name == role), None)
    found = known or server.create_role(WORKSPACE, role)
    present = {each.resource_type for each in server.list_role_permissions(found.id)}
    for kind, permission in ROLES[role].items():
        if kind not in present:
            server.add_role_permission(found.id, kind, "*", permission)
    return int(found.id)


def connect(uri: str) -> Any:
    """MLflow's client for users and roles."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # importing it imports the server, which uses deprecated functions
        from mlflow.server.auth.client import AuthServiceClient
    return AuthServiceClient(uri)


def user_name(text: str) -> str:
    """Check the name of a new user. Raises PipelineError for a name that could not log in or is hard to type."""
    if not NAME.fullmatch(text):
        raise PipelineError(
            f"{text[:40]!r}: a name has 1 to 64 letters, digits and . _ @ + -, and starts with a letter or digit"
        )
    return text


def run(names: list[str], role: str) -> None:
    """Add the users. Raises PipelineError if the server refuses it."""
    names = [user_name(name) for name in names]
    store = open_store(paths.project_root())
    from mlflow.exceptions import MlflowException

    try:
        add_users(store, names, role)
    except MlflowException as error:
        denied = "only the server's administrator adds users: check MLFLOW_TRACKING_USERNAME"
        raise PipelineError(denied if "error code 403" in str(error) else f"{first_line(error)}; {AGAIN}") from None


def main() -> None:
    """Parse the command line, and add the users."""
    parser = argparse.ArgumentParser(prog="python deploy/users.py", description=__doc__)
    parser.add_argument("names", nargs="+", metavar="NAME", help="names of the new users")
    parser.add_argument("--role", choices=ROLES, default="trainer", help="what they may do (default: %(default)s)")
    arguments = parser.parse_args()
    with one_line_errors("users", f"interrupted; {AGAIN}"):
        if not sys.stdout:  # closed
            raise PipelineError("standard output is closed, so that no password could be shown")
        settle()
        run(arguments.names, arguments.role)


if __name__ == "__main__":
    main()
