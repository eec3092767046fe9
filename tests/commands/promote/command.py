"""Run promotion as a command, and read the registry."""

from mlflow import MlflowClient

from tests.conftest import Project

PROMOTE = ("python", "-m", "pipeline.commands.promote")
NAME = "digits"


def promote(project: Project, *arguments: str, **settings: str) -> str:
    """Promote or roll back, and return the output."""
    return project.succeed(*PROMOTE, *arguments, COLUMNS="150", **settings)


def refusal(project: Project, *arguments: str, **settings: str) -> str:
    """Return the one-line error of a failed promotion or rollback."""
    output = project.fail(*PROMOTE, *arguments, **settings)
    assert output.count("\n") == 1, output
    line = output.strip()
    assert line.startswith("promote: ")
    return line


def take(project: Project, branch: str) -> None:
    """Check out a branch with its model."""
    project.succeed("git", "switch", "-q", branch)
    project.succeed("dvc", "checkout")


def aliases(client: MlflowClient) -> dict[str, int]:
    """The version of each alias."""
    return {alias: int(version) for alias, version in client.get_registered_model(NAME).aliases.items()}


def versions(client: MlflowClient) -> list[int]:
    """The numbers of all versions."""
    return sorted(int(version.version) for version in client.search_model_versions(f"name = '{NAME}'"))
