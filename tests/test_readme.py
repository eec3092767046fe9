"""The README's commands, typed in their order."""

import os
import re
import subprocess

import pytest

from tests.commands.gate.command import edit
from tests.conftest import FORKING, MIRROR, ROOT, Project, Start

BLOCK = re.compile(r"^```sh\n(.*?)^```", re.MULTILINE | re.DOTALL)
SERVERS = {"make serve", "make ui"}
SKIPPED = {"make test", "source .venv/bin/activate"}  # this is `make test`, and the environment is active


def commands() -> list[str]:
    """The lines of the README's shell blocks, without comments."""
    blocks = BLOCK.findall((ROOT / "README.md").read_text(encoding="utf-8"))
    return [line.partition("  #")[0].strip() for block in blocks for line in block.splitlines() if line.strip()]


def serve_once(start: Start, project: Project, command: str) -> None:
    """Start a server and end it once it prints its address."""
    server = start(command.split(), project.root)
    assert server.stdout is not None
    assert any("http://127.0.0.1" in line for line in server.stdout), command


def tracked(project: Project) -> str:
    """The changes of tracked files in the working tree."""
    return project.succeed("git", "diff", "HEAD")


@pytest.mark.slow
def test_the_commands_work_in_their_order(project: Project, start: Start) -> None:
    """On the small dataset, which takes seconds where MNIST takes minutes."""
    (project.root / ".venv").mkdir()
    (project.root / ".venv" / "bin").symlink_to(os.environ.get(FORKING) or ROOT / ".venv" / "bin")
    (project.root / ".venv" / "requirements.txt").touch()  # as make does after it has installed them
    edit(project, "params.yaml", "dataset: null", "dataset: digits")
    project.succeed("dvc", "repro")  # the gate compares the model with the one in the last commit
    project.commit()
    edit(project, "params.yaml", "seed: 1", "seed: 2")
    for command in commands():
        if command in SERVERS:
            serve_once(start, project, command)
        elif command not in SKIPPED:
            before = tracked(project)
            project.succeed("bash", "-c", command, **MIRROR)
            if "--temp" in command:
                assert tracked(project) == before


def test_the_commands_are_found() -> None:
    """What the test above leaves out is there, and is little."""
    found = commands()
    assert set(found) >= SKIPPED
    assert len(found) > 10
    for command in found:
        assert subprocess.run(["bash", "-nc", command], check=False).returncode == 0
