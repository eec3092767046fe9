"""Compose conf/ and params.yaml into composed.yaml, and validate it before any other stage runs."""

from pathlib import Path

from pipeline.core import paths
from pipeline.core.errors import PipelineError
from pipeline.core.files import write_text
from pipeline.core.process.stage import run_stage
from pipeline.core.settings import settings_of
from pipeline.repository.git import git
from pipeline.stages.compose.composition import compose_config, to_yaml


def run() -> None:
    """Write composed.yaml and composed/."""
    try:
        config = compose_config(paths.CONF, paths.PARAMS)
    except PipelineError as error:
        raise PipelineError(f"{error}{remedy()}") from None
    write_text(paths.COMPOSED, to_yaml(config))
    for stage, path in paths.SETTINGS.items():
        write_text(path, to_yaml(settings_of(stage, config)))
    chosen = [config["recipe"], *(config[group]["name"] for group in ("dataset", "model", "optimizer"))]
    print(f"composed {paths.COMPOSED}: recipe {chosen[0]}, {', '.join(chosen[1:])}, seed {config['seed']}")


def remedy() -> str:
    """Say how to restore params.yaml if it has uncommitted changes: `dvc exp run -S` keeps refused values in it."""
    if paths.project_root() != Path.cwd():  # an experiment in a temporary folder, which leaves the project's file alone
        return ""
    try:
        status = git("status", "--porcelain", "--", str(paths.PARAMS)).stdout  # empty outside a repository
    except PipelineError:  # git is not installed
        return ""
    if not status or status.startswith((b"??", b"A")):  # unchanged, or never committed
        return ""
    return f"\n`git checkout HEAD {paths.PARAMS}` restores the committed settings"


if __name__ == "__main__":
    run_stage("compose", __doc__, run)
