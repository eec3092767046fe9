"""Queries to DVC: dvc.lock, experiments, and whether the results are up to date."""

import hashlib
import itertools
import json
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.core.errors import PipelineError
from pipeline.core.files import md5
from pipeline.core.paths import SETTINGS
from pipeline.core.process.surroundings import run_by_dvc
from pipeline.repository.git import git
from pipeline.repository.reading import Reader, in_folder, read_yaml

LOCK = Path("dvc.lock")
CODE = "pipeline/"  # prefix of the paths of a stage's code


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
    """Yield the changes of each stage in `dvc status --json`, such as 'train (changed deps: pipeline/stages/train)'."""
    for stage, entries in status.items():
        kinds = [
            f"{kind}: {', '.join(found)}"
            for entry in entries
            if isinstance(entry, dict)
            for kind, found in entry.items()
        ]
        yield f"{stage} ({'; '.join(kinds)})" if kinds else stage


def read_lock(read: Reader, place: str) -> dict[str, Any]:
    """Read dvc.lock; empty if it does not exist. Raises PipelineError if it does not have DVC's format."""
    lock = read_yaml(read, LOCK, place)
    try:
        code_of(lock), all_outputs(lock)
    except (AttributeError, KeyError, TypeError):
        raise PipelineError(f"{LOCK} {place} is damaged: it does not have DVC's format") from None
    return lock


def outputs(lock: dict[str, Any]) -> dict[str, str]:
    """MD5 of each output, by path."""
    return {path: output.md5 for path, output in all_outputs(lock).items()}


def recorded_outputs() -> dict[str, str]:
    """MD5 of each output in the working tree's dvc.lock, by path."""
    return outputs(read_lock(in_folder(Path()), "in the working tree"))


def check_undamaged(files: Iterable[Path]) -> None:
    """Raise PipelineError if DVC runs this process, and the MD5 of an output is not the one in dvc.lock.

    DVC computes it again only if a file's size or time of modification has changed, which is not so for a bit flipped
    on a disk or in DVC's cache. Without DVC, dvc.lock may be older than the files.
    """
    known = recorded_outputs() if run_by_dvc() else {}
    for path in files:
        if str(path) in known and path.exists() and md5(path) != known[str(path)]:
            raise PipelineError(
                f"{path} is damaged, or of another commit: its MD5 is not the one in {LOCK}. Remove it and run "
                "`dvc repro`; if that does not help, `make doctor` finds damaged files in DVC's cache"
            )


def check_upstream(stage: str) -> None:
    """Raise PipelineError if DVC runs this stage, and an earlier one ran with another configuration than the current.

    `dvc repro` runs them first, but not with the options --single-item or --downstream, or if they are frozen.
    """
    known = _stages(read_lock(in_folder(Path()), "in the working tree")) if run_by_dvc() else {}
    for earlier, path in itertools.takewhile(lambda item: item[0] != stage, SETTINGS.items()):
        used = {dep.get("path"): dep.get("md5") for dep in known.get(earlier, {}).get("deps", [])}
        if path.exists() and used.get(str(path), md5(path)) != md5(path):
            raise PipelineError(f"{earlier} ran with another configuration: its {path} has changed. Run `dvc repro`")


class Output(NamedTuple):
    """An output in dvc.lock: its stage and its MD5."""

    stage: str
    md5: str


def all_outputs(lock: dict[str, Any]) -> dict[str, Output]:
    """The outputs of all stages, by path."""
    return {
        str(out["path"]): Output(name, str(out["md5"]))
        for name, stage in _stages(lock).items()
        for out in stage.get("outs", [])
    }


def check_lock(lock: dict[str, Any], path: Path, content: bytes, place: str) -> None:
    """Raise PipelineError if a file's content does not have the MD5 in dvc.lock."""
    if outputs(lock).get(str(path)) != hashlib.md5(content, usedforsecurity=False).hexdigest():
        raise PipelineError(
            f"{path} {place} does not match {LOCK} there: it was edited, or committed without {LOCK}. "
            "Run `dvc repro` there and commit both"
        )


def is_consistent(lock: dict[str, Any]) -> bool:
    """Whether every stage in dvc.lock used the outputs of the others: not if only some stages were run."""
    try:
        made = outputs(lock)
        deps = [dep for stage in _stages(lock).values() for dep in stage.get("deps", [])]
        used = [(str(dep["path"]), str(dep["md5"])) for dep in deps]
    except (AttributeError, KeyError, TypeError):  # of dependencies that read_lock does not check
        return False
    return all((made.get(path) or folder_digest(made, path)) in (None, digest) for path, digest in used)


def folder_digest(made: dict[str, str], folder: str) -> str | None:
    """DVC's digest of a folder that contains only outputs with these digests; None if it contains none of them."""
    inside = {path.removeprefix(f"{folder}/"): digest for path, digest in made.items() if path.startswith(f"{folder}/")}
    listing = json.dumps([{"md5": inside[path], "relpath": path} for path in sorted(inside)])
    return f"{hashlib.md5(listing.encode(), usedforsecurity=False).hexdigest()}.dir" if inside else None


def code_of(lock: dict[str, Any]) -> dict[str, Any]:
    """Command and digests of the code of each stage after compose."""
    return {
        name: {
            "cmd": stage.get("cmd"),
            "code": {dep["path"]: dep["md5"] for dep in stage.get("deps", []) if dep["path"].startswith(CODE)},
        }
        for name, stage in _stages(lock).items()
        if name != "compose"
    }


def _stages(lock: dict[str, Any]) -> dict[str, Any]:
    stages = lock.get("stages")
    return stages if isinstance(stages, dict) else {}


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
