"""What a commit promises: the digests in its dvc.lock, and the results in its reports/."""

import hashlib
import json
import re
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from pipeline.core import paths
from pipeline.core.errors import PipelineError
from pipeline.core.files import parse_yaml, write_text
from pipeline.core.process.stage import DEFAULT_BACKEND
from pipeline.repository.dvc import LOCK, Output, all_outputs, read_lock
from pipeline.repository.git import commit_of, is_shallow
from pipeline.repository.reading import Reader, at_commit, in_folder, read_evaluation, read_yaml

# In the model card, which every version commits: '… s on CPU in float32, … MiB. AMD EPYC (AVX2), …, Linux; Python …'.
TRAINED_ON = re.compile(r" s on (?P<device>[^,]+?)(?: in \w+)?, .*?MiB(?: of memory)?\. (?P<machine>.+); Python ")
VECTORS = re.compile(r"\(([^()]+)\), \d+ cores")
REPORTS = (paths.EVALUATION, paths.METRICS, paths.ERRORS, paths.MODEL_CARD)


class Promise(NamedTuple):
    """The outputs that a commit promises by path, and a reader of the reports beside its dvc.lock."""

    commit: str
    folder: Path  # of params.yaml, dvc.lock and reports/, in the project
    read: Reader
    outputs: dict[str, Output]
    lock: dict[str, Any]
    backend: str
    device: str  # 'cpu', another device, or '' if the commit does not say
    machine: str  # as describe_machine gives it, or ''

    @property
    def vectors(self) -> str:
        """The vector instructions that the promise was made with, such as 'AVX2'; empty if unknown."""
        found = VECTORS.search(self.machine)
        return found[1] if found else ""

    @property
    def place(self) -> str:
        """The commit as messages name it."""
        return f"at {self.commit[:7]}" + (f" in {self.folder}" if self.folder != Path() else "")


def read_promise(revision: str, folder: Path, update: bool = False) -> Promise:
    """The promise of a revision. With `update`, it is about to be made, from the folder's params.yaml.

    Raises PipelineError if git does not know the revision, or if its commit promises nothing.
    """
    commit = resolve(revision)
    whole = at_commit(commit)

    def read(path: Path) -> bytes | None:
        return whole(folder / path)

    if update:
        return Promise(commit, folder, in_folder(folder), {}, {}, DEFAULT_BACKEND, "", "")
    promise = Promise(commit, folder, read, {}, {}, read_backend(read), *read_hardware(read))
    lock = read_lock(read, promise.place)
    if not all_outputs(lock):
        raise PipelineError(f"{LOCK} does not exist {promise.place}, or is empty: this commit promises nothing")
    return promise._replace(outputs=all_outputs(lock), lock=lock)


def resolve(revision: str) -> str:
    """The commit of a revision. Raises PipelineError if git does not know it."""
    commit = commit_of(revision)
    if commit is None:
        remedy = "this clone is shallow: `git fetch --unshallow`" if is_shallow() else "fetch it, or name another one"
        raise PipelineError(f"git does not know the revision {revision!r}; {remedy}")
    return commit


def read_backend(read: Reader) -> str:
    """The Keras backend of the promised model."""
    _, content = read_evaluation(read) or (None, b"{}")
    try:
        return str(json.loads(content)["training"]["backend"])
    except (ValueError, LookupError, TypeError):
        return DEFAULT_BACKEND  # earlier versions had no other one


def read_hardware(read: Reader) -> tuple[str, str]:
    """The device and the machine of the promised model, as its model card names them; empty if it does not."""
    found = TRAINED_ON.search((read(paths.MODEL_CARD) or b"").decode(errors="replace"))
    return (found["device"].lower(), found["machine"]) if found else ("", "")


def check_committed(promise: Promise, path: str, root: Path) -> str:
    """What is wrong with a promised file in git; empty if nothing is. `root` has the commit's dvc.yaml."""
    content = promise.read(Path(path)) if Path(path).suffix else None
    if content is None:
        left_to_git = Path(path) in REPORTS and path in uncached(root)
        return "the file is not in git" if left_to_git else ""
    digest = hashlib.md5(content, usedforsecurity=False).hexdigest()
    return "" if digest == promise.outputs[path].md5 else f"the file in git is not the one in {LOCK}"


def uncached(root: Path) -> set[str]:
    """The outputs that dvc.yaml leaves to git (`cache: false`)."""
    stages = read_yaml(in_folder(root), Path("dvc.yaml"), "in the clone")["stages"].values()
    entries = [entry for stage in stages for kind in ("outs", "metrics", "plots") for entry in stage.get(kind) or []]
    options = [each for entry in entries if isinstance(entry, dict) for each in entry.items()]
    return {path for path, values in options if values.get("cache") is False}


def write_promise(root: Path, folder: Path) -> str:
    """Make the results of a project the promise in `folder`, and return a summary of one line.

    The digests of its code and settings are left out: they change with every commit, and the outputs need not.
    """
    lock: dict[str, Any] = parse_yaml((root / LOCK).read_bytes())
    stages = {name: {"outs": stage["outs"]} for name, stage in lock["stages"].items()}
    for path in REPORTS:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(root / path, folder / path)
    write_text(folder / LOCK, yaml.safe_dump({"schema": lock["schema"], "stages": stages}, sort_keys=False))
    return f"{folder} promises these results: commit it"
