"""Queries to git and DVC: committed reports, experiments, and whether the reports are up to date."""

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from pipeline import paths
from pipeline.errors import PipelineError, first_line
from pipeline.files import parse_yaml

LOCK = Path("dvc.lock")
SEED = "seed"
JUDGING = "gate."  # prefix of settings that affect the verdict, but not the figures
CODE = "pipeline/"  # prefix of the paths of a stage's code

Reader = Callable[[Path], bytes | None]  # returns the content of a file, or None if it does not exist


def git(*arguments: str) -> "subprocess.CompletedProcess[bytes]":
    """Run git in the working directory. Raises PipelineError if git is not installed."""
    try:
        return subprocess.run(["git", *arguments], capture_output=True, check=False)
    except OSError:
        raise PipelineError("git is not installed: install it to find and compare models") from None


def check_repository() -> None:
    """Raise PipelineError outside a git repository, or in one that git refuses to open."""
    found = git("rev-parse", "--git-dir")
    if found.returncode:
        raise PipelineError(f"{Path.cwd()} is not a usable git repository ({_said(found)})")


def _said(finished: "subprocess.CompletedProcess[bytes]") -> str:
    return " ".join(finished.stderr.decode(errors="replace").split())


def commit_of(revision: str) -> str | None:
    """Hash of the commit that a revision names; None if git does not know the revision."""
    found = git("rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}")
    return None if found.returncode else found.stdout.decode().strip()


def merge_base(revision: str) -> str:
    """Hash of the merge base of HEAD and `revision`.

    Raises PipelineError if git does not know `revision`, or if the two have no commit in common.
    """
    shallow = is_shallow()
    remedy = "this clone is shallow: fetch its full history (fetch-depth: 0 in CI, or `git fetch --unshallow`)"
    commit = commit_of(revision)
    if commit is None:
        known = remedy if shallow else "fetch it, or name another revision or a folder with --base"
        raise PipelineError(f"cannot find the baseline: git does not know the revision {revision!r}; {known}")
    base = git("merge-base", "HEAD", commit)
    if base.returncode:
        reason = remedy if shallow else "name another revision or a folder with --base"
        raise PipelineError(f"HEAD and {revision!r} have no commit in common; {reason}")
    return base.stdout.decode().strip()


def is_shallow() -> bool:
    """Whether this clone lacks part of the history."""
    return git("rev-parse", "--is-shallow-repository").stdout.strip() == b"true"


def uncommitted(*names: str | Path) -> list[str]:
    """List the files with uncommitted changes among some files and folders, as git names them."""
    found = git("status", "--porcelain", "--untracked-files=all", "--", *map(str, names))
    if found.returncode:
        raise PipelineError(f"`git status` failed: {_said(found)}")
    return [line[3:] for line in found.stdout.decode(errors="replace").splitlines()]


def in_folder(folder: Path) -> Reader:
    """Return a reader for the files of a checkout, or of a folder with a copy of reports/."""

    def read(path: Path) -> bytes | None:
        try:
            return (folder / path).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None

    return read


def at_commit(commit: str) -> Reader:
    """Return a reader for the files of a commit."""

    def read(path: Path) -> bytes | None:
        listing = git("ls-tree", commit, "--", path.as_posix())
        found = git("show", f"{commit}:./{path.as_posix()}") if listing.stdout else listing
        if found.returncode:
            raise PipelineError(f"git cannot read {path} at {commit[:7]}: {_said(found)}")
        return found.stdout if listing.stdout else None

    return read


def check_current() -> None:
    """Raise PipelineError unless all results match the current code, configuration and data (`dvc status`)."""
    answer = subprocess.run(
        [sys.executable, "-m", "dvc", "status", "--json"], capture_output=True, text=True, check=False
    )
    try:
        changed = json.loads(answer.stdout) if answer.returncode == 0 else None
    except ValueError:
        changed = None
    if changed is None:
        raise PipelineError(f"`dvc status` failed: {' '.join((answer.stderr or answer.stdout).split())}")
    if changed:
        raise PipelineError(
            f"the reports do not match the current code, configuration and data: {'; '.join(_changes(changed))}. "
            "Run `dvc repro`, then this command again"
        )


def _changes(status: dict[str, list[Any]]) -> Iterator[str]:
    """Yield the changes of each stage in `dvc status --json`, such as 'train (changed deps: pipeline/train)'."""
    for stage, entries in status.items():
        kinds = [
            f"{kind}: {', '.join(found)}"
            for entry in entries
            if isinstance(entry, dict)
            for kind, found in entry.items()
        ]
        yield f"{stage} ({'; '.join(kinds)})" if kinds else stage


def read_yaml(read: Reader, path: Path, place: str) -> dict[str, Any]:
    """Read a mapping from a YAML file; it is empty if the file does not exist.

    Raises PipelineError if the file contains anything else.
    """
    try:
        values = parse_yaml(read(path) or b"{}")
    except (yaml.YAMLError, UnicodeError) as error:
        raise PipelineError(f"{path} {place} is damaged ({first_line(error)})") from None
    if not isinstance(values, dict):
        raise PipelineError(f"{path} {place} is damaged: it is not a mapping")
    return values


def read_lock(read: Reader, place: str) -> dict[str, Any]:
    """Read dvc.lock; empty if it does not exist. Raises PipelineError if it does not have DVC's format."""
    lock = read_yaml(read, LOCK, place)
    try:
        recipe_of(lock), seed_of(lock), outputs(lock)
    except (AttributeError, KeyError, TypeError):
        raise PipelineError(f"{LOCK} {place} is damaged: it does not have DVC's format") from None
    return lock


def outputs(lock: dict[str, Any]) -> dict[str, str]:
    """MD5 of each output of train and evaluate, by path."""
    stages = (_stages(lock).get(name, {}) for name in ("train", "evaluate"))
    return {out["path"]: out["md5"] for stage in stages for out in stage.get("outs", [])}


def check_lock(lock: dict[str, Any], path: Path, content: bytes, place: str) -> None:
    """Raise PipelineError if a file's content does not have the MD5 in dvc.lock."""
    if outputs(lock).get(str(path)) != hashlib.md5(content, usedforsecurity=False).hexdigest():
        raise PipelineError(
            f"{path} {place} does not match {LOCK} there: it was edited, or committed without {LOCK}. "
            "Run `dvc repro` there and commit both"
        )


def recipe_of(lock: dict[str, Any]) -> str:
    """Code and configuration that determine a model's figures, without the seed: equal for all seeds of a recipe.

    The gate's settings, which the model card reports, are left out: recording seed noise does not make a new recipe.
    """
    stages = {
        name: {
            "cmd": stage.get("cmd"),
            "code": {dep["path"]: dep["md5"] for dep in stage.get("deps", []) if dep["path"].startswith(CODE)},
            "params": {
                key: value
                for values in stage.get("params", {}).values()
                for key, value in (values or {}).items()
                if key != SEED and not key.startswith(JUDGING)
            },
        }
        for name, stage in _stages(lock).items()
        if name != "compose"
    }
    return json.dumps(stages, sort_keys=True)


def seed_of(lock: dict[str, Any]) -> int | None:
    """Training seed in dvc.lock; None if it has none."""
    params = _stages(lock).get("train", {}).get("params", {}).get(str(paths.COMPOSED)) or {}
    return params.get(SEED)


def _stages(lock: dict[str, Any]) -> dict[str, Any]:
    stages = lock.get("stages")
    return stages if isinstance(stages, dict) else {}


def commits_of(path: Path) -> list[str]:
    """List all commits, in any branch or tag, that changed a file, newest first, even if a merge dropped the change."""
    everywhere = ("--branches", "--tags", "--remotes", *(["HEAD"] if commit_of("HEAD") else []))
    listing = git("log", "--full-history", "--format=%H", *everywhere, "--", path.as_posix())
    return listing.stdout.decode().split()


class Experiment(NamedTuple):
    """A DVC experiment: its name, and the commit in which DVC stores it."""

    name: str
    commit: str


def experiments() -> list[Experiment]:
    """List all DVC experiments in this repository, newest first."""
    listing = git("for-each-ref", "--sort=-committerdate", "--format=%(objectname) %(refname)", "refs/exps")
    found = ((commit, name.split("/")) for commit, name in map(str.split, listing.stdout.decode().splitlines()))
    # The ref of an experiment is refs/exps/SHA[:2]/SHA[2:]/NAME; exec/, stash and celery/ are internal to DVC.
    return [Experiment(parts[4], commit) for commit, parts in found if len(parts) == 5 and len(parts[2]) == 2]  # noqa: PLR2004
