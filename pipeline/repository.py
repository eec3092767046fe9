"""What git and DVC know of the models: the committed reports, the experiments, and whether the reports are current."""

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
JUDGING = "gate."  # settings that say how figures are judged, and make none
CODE = "pipeline/"  # how the paths of a stage's code start

Reader = Callable[[Path], bytes | None]  # the content of a file somewhere; None where it does not exist


def git(*arguments: str) -> "subprocess.CompletedProcess[bytes]":
    """Run git in the current folder. Raises PipelineError if there is no git."""
    try:
        return subprocess.run(["git", *arguments], capture_output=True, check=False)
    except OSError:
        raise PipelineError("git is not installed: it is needed to find which models there are") from None


def check_repository() -> None:
    """Raise PipelineError outside a git repository, or in one that git refuses to open."""
    found = git("rev-parse", "--git-dir")
    if found.returncode:
        raise PipelineError(f"{Path.cwd()} is not a git repository that can be used ({_said(found)})")


def _said(finished: "subprocess.CompletedProcess[bytes]") -> str:
    return " ".join(finished.stderr.decode(errors="replace").split())


def commit_of(revision: str) -> str | None:
    """The commit that a revision names; None if git does not know it."""
    found = git("rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}")
    return None if found.returncode else found.stdout.decode().strip()


def merge_base(revision: str) -> str:
    """The commit at which the work in the current folder branched off from `revision`.

    Raises PipelineError if git does not know `revision`, or has no commit that both share.
    """
    shallow = is_shallow()
    remedy = "this clone is shallow: fetch all of its history (fetch-depth: 0 in CI, or git fetch --unshallow)"
    commit = commit_of(revision)
    if commit is None:
        known = remedy if shallow else "fetch it, or name another revision or a folder with --base"
        raise PipelineError(f"there is nothing to compare with: git knows no revision {revision!r}; {known}")
    base = git("merge-base", "HEAD", commit)
    if base.returncode:
        reason = remedy if shallow else "name another revision or a folder with --base"
        raise PipelineError(f"git finds no commit that HEAD and {revision!r} have in common; {reason}")
    return base.stdout.decode().strip()


def is_shallow() -> bool:
    """Whether this clone lacks a part of the history."""
    return git("rev-parse", "--is-shallow-repository").stdout.strip() == b"true"


def uncommitted(*names: str | Path) -> list[str]:
    """Which of some files and folders are not committed as they are, by git's name for them."""
    found = git("status", "--porcelain", "--untracked-files=all", "--", *map(str, names))
    if found.returncode:
        raise PipelineError(f"`git status` fails: {_said(found)}")
    return [line[3:] for line in found.stdout.decode(errors="replace").splitlines()]


def in_folder(folder: Path) -> Reader:
    """Reads the files of a checkout, or of a folder into which reports/ was copied."""

    def read(path: Path) -> bytes | None:
        try:
            return (folder / path).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None

    return read


def at_commit(commit: str) -> Reader:
    """Reads the files of a commit."""

    def read(path: Path) -> bytes | None:
        listing = git("ls-tree", commit, "--", path.as_posix())
        found = git("show", f"{commit}:./{path.as_posix()}") if listing.stdout else listing
        if found.returncode:
            raise PipelineError(f"git cannot read {path} at {commit[:7]}: {_said(found)}")
        return found.stdout if listing.stdout else None

    return read


def check_current() -> None:
    """Raise PipelineError unless all results are those of the current code, configuration and data (`dvc status`)."""
    answer = subprocess.run(
        [sys.executable, "-m", "dvc", "status", "--json"], capture_output=True, text=True, check=False
    )
    try:
        changed = json.loads(answer.stdout) if answer.returncode == 0 else None
    except ValueError:
        changed = None
    if changed is None:
        raise PipelineError(f"`dvc status` fails: {' '.join((answer.stderr or answer.stdout).split())}")
    if changed:
        raise PipelineError(
            f"the reports are not those of the current code, configuration and data: {'; '.join(_changes(changed))}. "
            "Run `dvc repro`, then this again"
        )


def _changes(status: dict[str, list[Any]]) -> Iterator[str]:
    """Stage by stage what `dvc status --json` found: 'train (changed deps: pipeline/train)'."""
    for stage, entries in status.items():
        kinds = [
            f"{kind}: {', '.join(found)}"
            for entry in entries
            if isinstance(entry, dict)
            for kind, found in entry.items()
        ]
        yield f"{stage} ({'; '.join(kinds)})" if kinds else stage


def read_yaml(read: Reader, path: Path, place: str) -> dict[str, Any]:
    """A mapping from a YAML file; an empty one where the file does not exist.

    Raises PipelineError if the file holds anything else.
    """
    try:
        values = parse_yaml(read(path) or b"{}")
    except (yaml.YAMLError, UnicodeError) as error:
        raise PipelineError(f"{path} {place} is damaged ({first_line(error)})") from None
    if not isinstance(values, dict):
        raise PipelineError(f"{path} {place} is damaged: it is no mapping")
    return values


def read_lock(read: Reader, place: str) -> dict[str, Any]:
    """What dvc.lock says; nothing where there is none. Raises PipelineError if it is not what DVC writes."""
    lock = read_yaml(read, LOCK, place)
    try:
        recipe_of(lock), seed_of(lock), outputs(lock)
    except (AttributeError, KeyError, TypeError):
        raise PipelineError(f"{LOCK} {place} is damaged: it is not what DVC writes") from None
    return lock


def outputs(lock: dict[str, Any]) -> dict[str, str]:
    """The MD5 of each output of train and evaluate."""
    stages = (_stages(lock).get(name, {}) for name in ("train", "evaluate"))
    return {out["path"]: out["md5"] for stage in stages for out in stage.get("outs", [])}


def check_lock(lock: dict[str, Any], path: Path, content: bytes, place: str) -> None:
    """Raise PipelineError if a file's content is not what dvc.lock has for it."""
    if outputs(lock).get(str(path)) != hashlib.md5(content, usedforsecurity=False).hexdigest():
        raise PipelineError(
            f"{path} {place} is not the one of {LOCK} there: it was edited or committed alone. "
            "Run `dvc repro` there and commit both"
        )


def recipe_of(lock: dict[str, Any]) -> str:
    """Code and configuration of all that a model's figures come from, but for the seed: equal for its other seeds.

    The settings of the gate, which the model card tells of, are no part of it: a record of seeds keeps its runs.
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
    """The seed of the training that dvc.lock tells of."""
    params = _stages(lock).get("train", {}).get("params", {}).get(str(paths.COMPOSED)) or {}
    return params.get(SEED)


def _stages(lock: dict[str, Any]) -> dict[str, Any]:
    stages = lock.get("stages")
    return stages if isinstance(stages, dict) else {}


def commits_of(path: Path) -> list[str]:
    """The commits in which a file changed, in any branch, the newest first, whatever a merge made of them later."""
    everywhere = ("--branches", "--tags", "--remotes", *(["HEAD"] if commit_of("HEAD") else []))
    listing = git("log", "--full-history", "--format=%H", *everywhere, "--", path.as_posix())
    return listing.stdout.decode().split()


class Experiment(NamedTuple):
    """A DVC experiment: its name, and the commit in which DVC keeps it."""

    name: str
    commit: str


def experiments() -> list[Experiment]:
    """All DVC experiments in this repository, the newest first."""
    listing = git("for-each-ref", "--sort=-committerdate", "--format=%(objectname) %(refname)", "refs/exps")
    found = ((commit, name.split("/")) for commit, name in map(str.split, listing.stdout.decode().splitlines()))
    # An experiment is refs/exps/SHA[:2]/SHA[2:]/NAME; exec/, stash and celery/ are DVC's own.
    return [Experiment(parts[4], commit) for commit, parts in found if len(parts) == 5 and len(parts[2]) == 2]  # noqa: PLR2004
