"""The shell steps of the workflow's report job, with a fake `gh`, because the real one needs GitHub."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.commands.gate.no_verdict import MARKER, not_compared
from tests.conftest import ROOT

WORKFLOW = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yaml").read_text(encoding="utf-8"))
REPORT = WORKFLOW["jobs"]["report"]
GH = """#!{python}
import json, subprocess, sys
arguments = sys.argv[1:]
with open("calls", "a") as file:
    file.write(json.dumps(arguments) + "\\n")
answer = json.load(open("answers.json")).get(next(argument for argument in arguments if "repos/" in argument))
if answer is None and "-X" not in arguments and "-F" not in arguments:
    print('{{"message": "Not Found"}}')
    sys.exit(1)
if "--jq" in arguments:
    query = arguments[arguments.index("--jq") + 1]
    print(subprocess.run(["jq", "-r", query], input=json.dumps(answer), capture_output=True, text=True).stdout, end="")
"""
SETTINGS = {"GH_REPO": "me/digits", "NUMBER": "7", "BASE_SHA": "b" * 40, "GITHUB_SHA": "a" * 40}
COMMENTS = "repos/me/digits/issues/7/comments"
PICTURE = f"repos/me/digits/contents/gate/{'a' * 40}.png"


def run_report(folder: Path, answers: dict[str, Any]) -> list[list[str]]:
    """Run the job's shell steps as GitHub does, and return the arguments of every call of `gh`."""
    if shutil.which("jq") is None:
        pytest.skip("needs jq, which `gh --jq` contains")
    (folder / "gh").write_text(GH.format(python=sys.executable), encoding="utf-8")
    (folder / "gh").chmod(0o755)
    (folder / "answers.json").write_text(json.dumps(answers), encoding="utf-8")
    environment = os.environ | SETTINGS | {"MARKER": REPORT["env"]["MARKER"], "PATH": f"{folder}:{os.environ['PATH']}"}
    for step in REPORT["steps"]:
        condition = step.get("if", "")
        file = condition.partition("'")[2].partition("'")[0]
        if "run" in step and (not file or (folder / file).exists() != condition.startswith("!")):
            subprocess.run(["bash", "-e", "-c", step["run"]], cwd=folder, env=environment, check=True)
    return [json.loads(line) for line in (folder / "calls").read_text(encoding="utf-8").splitlines()]


def comment(number: int, kind: str, body: str) -> dict[str, Any]:
    return {"id": number, "user": {"type": kind}, "body": body}


def test_the_first_report_is_a_new_comment(tmp_path: Path) -> None:
    (tmp_path / "report.md").write_text(not_compared("why"), encoding="utf-8")
    others = [comment(1, "Bot", "### Coverage"), comment(2, "User", f"{MARKER}\n\nwhat is this?")]
    calls = run_report(tmp_path, {COMMENTS: others})
    assert calls[-1] == ["api", COMMENTS, "-F", "body=@report.md", "--silent"]


def test_a_later_report_replaces_only_the_comment_of_the_gate(tmp_path: Path) -> None:
    (tmp_path / "report.md").write_text(not_compared("why"), encoding="utf-8")
    comments = [comment(2, "Bot", f"quoting {MARKER}"), comment(3, "Bot", not_compared("earlier"))]
    calls = run_report(tmp_path, {COMMENTS: comments})
    assert calls[-1] == ["api", "-X", "PATCH", "repos/me/digits/issues/comments/3", "-F", "body=@report.md", "--silent"]


@pytest.mark.parametrize("known", [True, False])
def test_a_picture_that_exists_is_replaced(tmp_path: Path, known: bool) -> None:
    (tmp_path / "report.md").write_text(not_compared("why"), encoding="utf-8")
    (tmp_path / "report.png").write_bytes(b"PNG")
    answers = {f"{PICTURE}?ref=gate-pictures": {"sha": "c" * 40}} if known else {}
    calls = run_report(tmp_path, answers | {COMMENTS: []})
    (put,) = [call for call in calls if "PUT" in call]
    assert (f"sha={'c' * 40}" in put) == known
    assert not [argument for argument in put if "Not Found" in argument]
    assert PICTURE in put


def test_without_a_verdict_the_comment_says_so(tmp_path: Path) -> None:
    run_report(tmp_path, {COMMENTS: []})
    assert (tmp_path / "report.md").read_text(encoding="utf-8") == not_compared("The pipeline failed before it.")
