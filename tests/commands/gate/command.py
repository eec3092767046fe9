"""Run the gate as a command."""

import json
import subprocess
from pathlib import Path
from typing import Any

from tests.conftest import Project, environment

GATE = ("python", "-m", "pipeline.commands.gate")


def gate(project: Project, *arguments: str, base: str = "HEAD", **settings: str) -> tuple[int, str]:
    """Run the gate and return its exit status and output."""
    result = project.run(*GATE, "--base", base, *arguments, COLUMNS="200", **settings)
    return result.returncode, result.stdout


def judge(project: Project, *arguments: str, base: str = "HEAD") -> dict[str, Any]:
    """Run the gate and return its verdict as JSON, with the exit status."""
    result = subprocess.run(
        [*GATE, "--base", base, "--json", *arguments],
        cwd=project.root,
        env=environment({}),
        capture_output=True,
        text=True,
        check=False,
    )
    verdict: dict[str, Any] = json.loads(result.stdout)
    return verdict | {"status": result.returncode}


def failed(verdict: dict[str, Any]) -> set[str]:
    """The names of the failed checks, without the class."""
    return {check["name"].split()[0] for check in verdict["checks"] if check["outcome"] == "FAIL"}


def refusal(project: Project, *arguments: str, base: str = "HEAD", **settings: str) -> str:
    """Run the gate and return the one-line error of a failed comparison."""
    status, output = gate(project, *arguments, base=base, **settings)
    assert status == 2, output
    (line,) = output.splitlines()
    assert line.startswith("gate: ")
    return line


def edit(project: Project, path: str, before: str, after: str) -> None:
    """Replace text that occurs once in a file of a clone."""
    file = project.root / path
    text = file.read_text(encoding="utf-8")
    assert text.count(before) == 1, path
    file.write_text(text.replace(before, after), encoding="utf-8")


def edit_metrics(path: Path, **changes: Any) -> None:
    """Change values of `dataset` in a metrics.json."""
    metrics = json.loads(path.read_text(encoding="utf-8"))
    metrics["dataset"] |= changes
    path.write_text(json.dumps(metrics), encoding="utf-8")
