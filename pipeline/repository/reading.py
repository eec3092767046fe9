"""Files of a checkout, a folder or a commit, read in the same way."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from pipeline.core import paths
from pipeline.core.errors import PipelineError, first_line
from pipeline.core.files import parse_yaml
from pipeline.repository.git import git, said

Reader = Callable[[Path], bytes | None]  # returns the content of a file, or None if it does not exist
LONGEST = 200  # characters of a path


def in_folder(folder: Path) -> Reader:
    """Return a reader for the files of a checkout, or of a folder with a copy of reports/."""

    def read(path: Path) -> bytes | None:
        try:
            return (folder / path).read_bytes() if is_path(path) else None
        except (FileNotFoundError, NotADirectoryError):
            return None

    return read


def at_commit(commit: str) -> Reader:
    """Return a reader for the files of a commit."""

    def read(path: Path) -> bytes | None:
        if not is_path(path):
            return None
        listing = git("ls-tree", commit, "--", path.as_posix())
        found = git("show", f"{commit}:./{path.as_posix()}") if listing.stdout else listing
        if found.returncode:
            raise PipelineError(f"git cannot read {path} at {commit[:7]}: {said(found)}")
        return found.stdout if listing.stdout else None

    return read


def is_path(path: Path) -> bool:
    """Whether a file can have this path, a part of which may come from a file, and be inside the project."""
    return str(path).isprintable() and len(str(path)) <= LONGEST and ".." not in path.parts


def read_yaml(read: Reader, path: Path, place: str) -> dict[str, Any]:
    """Read a mapping of JSON's types from a YAML file; it is empty if the file does not exist.

    Raises PipelineError if the file contains anything else.
    """
    try:
        values = parse_yaml(read(path) or b"{}")
        json.dumps(values, sort_keys=True)  # as for the comparison of two models: YAML also has dates and numeric keys
    except (yaml.YAMLError, ValueError, TypeError) as error:
        raise PipelineError(f"{path} {place} is damaged ({first_line(error)})") from None
    if not isinstance(values, dict):
        raise PipelineError(f"{path} {place} is damaged: it is not a mapping")
    return values


def read_evaluation(read: Reader) -> tuple[Path, bytes] | None:
    """Path and content of the evaluation record; None if it does not exist.

    Commits of earlier versions have this record in reports/metrics.json, which now holds a few of its figures.
    """
    content = read(paths.EVALUATION)
    if content is not None:
        return paths.EVALUATION, content
    earlier = read(paths.METRICS)
    return None if earlier is None or b'"ci_low"' in earlier else (paths.METRICS, earlier)
