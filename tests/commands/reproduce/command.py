"""Run `reproduce` as a command."""

import json
import subprocess
from pathlib import Path
from typing import Any

from tests.conftest import Project, environment

REPRODUCE = ("python", "-m", "pipeline.commands.reproduce")


def reproduce(project: Project, *arguments: str, **settings: str) -> dict[str, Any]:
    """Reproduce a commit in this environment, and return the comparison, the exit status and the progress."""
    command = [*REPRODUCE, *arguments, "--reuse", "--json"]
    result = subprocess.run(
        command, cwd=project.root, env=environment(settings), capture_output=True, text=True, check=False
    )
    assert result.stdout, result.stderr
    found: dict[str, Any] = json.loads(result.stdout)
    return found | {"status": result.returncode, "progress": result.stderr}


def refusal(project: Project, *arguments: str, **settings: str) -> str:
    """Run the command, which must not be able to try, and return the last line of its output."""
    result = project.run(*REPRODUCE, *arguments, "--reuse", **settings)
    assert result.returncode == 2, result.stdout
    assert "Traceback" not in result.stdout
    line = result.stdout.splitlines()[-1]
    assert line.startswith("reproduce: ")
    return line


def outcomes(comparison: dict[str, Any], outcome: str) -> set[str]:
    """The rows with an outcome."""
    return {row["name"] for row in comparison["rows"] if row["outcome"] == outcome}


def replace(path: Path, before: str, after: str) -> None:
    """Replace text that a file contains."""
    text = path.read_text(encoding="utf-8")
    assert before in text, path
    path.write_text(text.replace(before, after), encoding="utf-8")
