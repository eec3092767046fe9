"""Add users to a team's MLflow server, and print a new password for each of them.

Run it as the server's administrator: set MLFLOW_TRACKING_URI, MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD.
"""

import argparse
import secrets
import sys
import warnings
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))  # the project is not an installed package

from mlflow.exceptions import MlflowException

from pipeline.core import paths
from pipeline.core.errors import PipelineError, first_line
from pipeline.tracking.store import Store, experiment_id, open_store

WORKSPACE = "default"
ROLES: dict[str, dict[str, str]] = {  # every user may read everything
    "reader": {},
    "trainer": {"experiment": "EDIT"},
    "promoter": {"experiment": "EDIT", "registered_model": "EDIT"},
}


def add_users(store: Store, names: list[str], role: str) -> None:
    """Create users with a role, and the datasets' experiments, because their creator may do anything with them."""
    for dataset in (paths.CONF / "dataset").glob("*.yaml"):
        experiment_id(store, dataset.stem)
    server = connect(store.uri)
    number = find_role(server, role)
    for name in names:
        password = secrets.token_urlsafe()
        try:
            server.create_user(name, password)
        except MlflowException as error:
            if error.error_code == "RESOURCE_ALREADY_EXISTS":
                raise PipelineError(
                    f"the user {name} exists: see docs/team.md to change a password or a role"
                ) from None
            raise
        server.assign_role(name, number)
        print(f"{name}\t{password}", flush=True)


def find_role(server: Any, role: str) -> int:
    """The ID of a role, which is created with its permissions if it is new."""
    for known in server.list_roles(WORKSPACE):
        if known.name == role:
            return int(known.id)
    number = int(server.create_role(WORKSPACE, role).id)
    for kind, permission in ROLES[role].items():
        server.add_role_permission(number, kind, "*", permission)
    return number


def connect(uri: str) -> Any:
    """MLflow's client for users and roles."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # importing it imports the server, which uses deprecated functions
        from mlflow.server.auth.client import AuthServiceClient
    return AuthServiceClient(uri)


def main() -> None:
    """Parse the command line, and add the users."""
    parser = argparse.ArgumentParser(prog="python deploy/users.py", description=__doc__)
    parser.add_argument("names", nargs="+", metavar="NAME", help="names of the new users")
    parser.add_argument("--role", choices=ROLES, default="trainer", help="what they may do (default: %(default)s)")
    arguments = parser.parse_args()
    try:
        add_users(open_store(paths.project_root()), arguments.names, arguments.role)
    except PipelineError as error:
        sys.exit(f"users: {error}")
    except MlflowException as error:
        denied = "only the server's administrator adds users: check MLFLOW_TRACKING_USERNAME"
        sys.exit(f"users: {denied if 'error code 403' in str(error) else first_line(error)}")


if __name__ == "__main__":
    main()
