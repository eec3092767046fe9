"""From which code and configuration a run comes, and how to get the same run again."""

import os
import shlex
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from pipeline import paths
from pipeline.config import flatten

EXPERIMENT = "DVC_EXP_NAME"  # set by DVC for the stages of `dvc exp run`
EXPERIMENT_TAG = "dvc.experiment"  # of a run: the experiment's name, empty outside of `dvc exp run`
REUSED_FROM = "reused.from"  # of a run: the one whose model it has
BASELINE = "DVC_EXP_BASELINE_REV"

SOURCES = ("pipeline", "conf", "params.yaml", "dvc.yaml", "requirements.txt")  # what decides a result; all else follows
PATCH = "code/uncommitted.patch"  # the artifact that has what was not committed


class Provenance(NamedTuple):
    """A commit, and what was different from it when the run began."""

    commit: str  # empty where there is no git, or no commit yet
    patch: str  # in git's format; empty if there was no difference
    overrides: list[str] | None  # the difference as Hydra overrides, if it is one of params.yaml alone


def find_provenance() -> Provenance:
    """The provenance of what runs now in the current folder."""
    commit = os.environ.get(BASELINE) or git("rev-parse", "--verify", "--quiet", "HEAD")
    if not commit:
        return Provenance("", "", None)
    patch = uncommitted(commit)
    alone = patch.count("diff --git ") == 1 and f"diff --git a/{paths.PARAMS} " in patch
    before = git("show", f"{commit}:./{paths.PARAMS}") if alone else ""
    overrides = to_overrides(before, paths.PARAMS.read_text(encoding="utf-8")) if alone else None
    return Provenance(commit, patch, overrides)


def uncommitted(commit: str) -> str:
    """What in the sources differs from a commit, files that git does not know yet included."""
    with tempfile.TemporaryDirectory() as folder:  # an index of its own: the user's stays as it is
        index = {"GIT_INDEX_FILE": str(Path(folder) / "index")}
        existing = [name for name in SOURCES if Path(name).exists()]
        git("read-tree", commit, **index)
        git("add", "--all", "--", *existing, **index)
        return git("diff", "--cached", "--relative", commit, "--", *existing, **index)


def to_overrides(before: str, after: str) -> list[str] | None:
    """What `dvc exp run -S` takes to get from one content of params.yaml to another; None where it cannot say it."""
    old, new = (dict(_values(text)) for text in (before, after))
    if old.keys() - new.keys() or any(isinstance(value, str) and not value.isidentifier() for value in new.values()):
        return None
    changed = {key: value for key, value in new.items() if key not in old or value != old[key]}
    return [f"{'' if key in old else '+'}{key}={yaml.safe_dump(value).split()[0]}" for key, value in changed.items()]


def _values(text: str) -> Iterator[tuple[str, Any]]:
    yield from flatten(yaml.safe_load(text) or {})


def commands(provenance: Provenance, run_id: str) -> list[str]:
    """The commands that give the same run again, in a clone of the repository."""
    if not provenance.commit:
        return ["dvc repro"]
    checkout = f"git checkout {provenance.commit}"
    if not provenance.patch:
        return [checkout, "dvc repro"]
    if provenance.overrides:
        options = " ".join(f"-S {shlex.quote(override)}" for override in provenance.overrides)
        return [checkout, f"dvc exp run {options}"]
    download = f"mlflow artifacts download --run-id {run_id} --artifact-path {PATCH} --dst-path ."
    return [download, checkout, f"git apply {PATCH}", "dvc repro"]


def git(*arguments: str, **settings: str) -> str:
    """What git answers, or nothing where there is no git, no repository, or nothing to say."""
    try:
        answer = subprocess.run(
            ["git", *arguments], capture_output=True, text=True, check=False, env=os.environ | settings
        )
    except OSError:
        return ""
    return answer.stdout if arguments[0] == "diff" else answer.stdout.strip()
