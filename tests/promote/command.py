"""Promoting as a command, and what it does to the registry."""

from mlflow import MlflowClient

from tests.conftest import Project

PROMOTE = ("python", "-m", "pipeline.promote")
NAME = "digits"


def promote(project: Project, *arguments: str, **settings: str) -> str:
    """Promote, or go back, and return what it printed."""
    return project.succeed(*PROMOTE, *arguments, COLUMNS="150", **settings)


def refusal(project: Project, *arguments: str, **settings: str) -> str:
    """The one line with which it says that it does not."""
    output = project.fail(*PROMOTE, *arguments, **settings)
    assert output.count("\n") == 1, output
    line = output.strip()
    assert line.startswith("promote: ")
    return line


def take(project: Project, branch: str) -> None:
    """Have the model of a branch in the working tree."""
    project.succeed("git", "switch", "-q", branch)
    project.succeed("dvc", "checkout")


def aliases(client: MlflowClient) -> dict[str, int]:
    """Which version each alias names."""
    return {alias: int(version) for alias, version in client.get_registered_model(NAME).aliases.items()}


def versions(client: MlflowClient) -> list[int]:
    """All versions there are."""
    return sorted(int(version.version) for version in client.search_model_versions(f"name = '{NAME}'"))
