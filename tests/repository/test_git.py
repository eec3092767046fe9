import subprocess
from pathlib import Path

import pytest

from pipeline.repository.git import commits_of

REPORT = Path("report.json")


def git(*arguments: str) -> str:
    named = ("-c", "user.name=tests", "-c", "user.email=tests@localhost")
    return subprocess.run(["git", *named, *arguments], capture_output=True, text=True, check=True).stdout.strip()


def commit(content: str) -> str:
    REPORT.write_text(content, encoding="utf-8")
    git("add", ".")
    git("commit", "-qm", content)
    return git("rev-parse", "HEAD")


def test_a_commit_is_found_even_if_a_merge_dropped_its_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    git("init", "-q", "-b", "main")
    first = commit("first")
    git("switch", "-qc", "tried")
    dropped = commit("dropped")
    git("switch", "-q", "main")
    git("merge", "-q", "--strategy=ours", "--no-edit", "tried")
    git("branch", "-qD", "tried")
    assert set(commits_of(REPORT)) == {git("rev-parse", "HEAD"), dropped, first}, "the merge commit counts, too"
