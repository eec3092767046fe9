import subprocess
from pathlib import Path
from typing import Any

import pytest

from pipeline.repository import commits_of, recipe_of, seed_of

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


def lock(**params: object) -> dict[str, Any]:
    values = {"model.name": "mlp", "seed": 1} | params
    train = {"params": {"composed.yaml": values}, "deps": [{"path": "pipeline/train", "md5": "b"}]}
    return {"stages": {"compose": {"params": {}}, "train": train}}


def test_recipe_of_ignores_the_seed_and_the_gate_settings() -> None:
    same: list[dict[str, Any]] = [{"seed": 2}, {"gate.alpha": 0.01}, {"seed": 3, "gate.seed_noise.mnist.seeds": 4}]
    others: list[dict[str, Any]] = [{"model.name": "cnn"}, {"training.epochs": 2}, {"gatekeeper": 1}]
    for params in same:
        assert recipe_of(lock(**params)) == recipe_of(lock())
        assert seed_of(lock(**params)) == params.get("seed", 1)
    for params in others:
        assert recipe_of(lock(**params)) != recipe_of(lock())
    code = lock()
    code["stages"]["train"]["deps"][0]["md5"] = "c"
    assert recipe_of(code) != recipe_of(lock())
