"""From which code and configuration a run comes, and how to get the same run again."""

import os
import re
import shlex
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from pipeline import paths
from pipeline.files import parse_yaml

EXPERIMENT = "DVC_EXP_NAME"  # set by DVC for the stages of `dvc exp run`
EXPERIMENT_TAG = "dvc.experiment"  # of a run: the experiment's name, empty outside of `dvc exp run`
REUSED_FROM = "reused.from"  # of a run: the one whose model it has
BASELINE = "DVC_EXP_BASELINE_REV"

SOURCES = ("pipeline", "conf", "params.yaml", "dvc.yaml", "requirements.txt")  # what decides a result; all else follows
SECRET = re.compile(r"(?i)secret|passw|credential|token|\.env|\.pem$|\.key$|\.p12$|(^|/)id_[a-z0-9]+$")  # a file's name
PATCH = "code/uncommitted.patch"  # the artifact that has what was not committed


class Provenance(NamedTuple):
    """A commit, and what was different from it when the run began."""

    commit: str  # empty where there is no git, or no commit yet
    patch: str  # in git's format; empty if there was no difference
    overrides: list[str] | None  # the difference as Hydra overrides, if it is one of params.yaml alone


def find_provenance() -> Provenance:
    """The provenance of what runs now in the current folder."""
    commit = os.environ.get(BASELINE) or git("rev-parse", "--verify", "--quiet", "HEAD").decode().strip()
    if not commit:
        tell_refusal()
        return Provenance("", "", None)
    patch = uncommitted(commit)
    alone = patch.count("diff --git ") == 1 and patch.partition("\n")[0].endswith(f"/{paths.PARAMS}")
    before = git("show", f"{commit}:./{paths.PARAMS}") if alone else b""
    return Provenance(commit, patch, to_overrides(before, paths.PARAMS.read_bytes()) if alone else None)


def tell_refusal() -> None:
    """Explain why the run has no commit if git refuses the folder of another user, as in containers."""
    try:
        told = subprocess.run(["git", "rev-parse"], capture_output=True, text=True, check=False).stderr
    except OSError:  # no git
        return
    if "dubious ownership" in told:
        remedy = f"git config --global --add safe.directory {shlex.quote(str(Path.cwd()))}"
        print(f"tracking: another user owns {Path.cwd()}, so git refuses it and the run has no commit: {remedy}")


def uncommitted(commit: str) -> str:
    """What in the sources differs from a commit, files that git does not know yet included, for `git apply`."""
    with tempfile.TemporaryDirectory() as folder:  # an index of its own: the user's stays as it is
        index = {"GIT_INDEX_FILE": str(Path(folder) / "index"), "GIT_DIFF_OPTS": ""}
        existing = [name for name in SOURCES if Path(name).exists()]
        git("read-tree", commit, **index)
        shared = [*existing, *(f":(exclude,literal){name}" for name in secrets(existing))]
        git("-c", "core.safecrlf=false", "add", "--all", "--", *shared, **index)  # else it may refuse a CRLF
        patch = difference(commit, existing, **index)
        try:
            return patch.decode()
        except UnicodeDecodeError:  # MLflow and JSON hold text alone: git writes what it takes for binary in base85
            attributes = Path(folder) / "attributes"
            attributes.write_text("* -diff\n", encoding="utf-8")
            patch = difference(commit, existing, f"core.attributesFile={attributes}", **index)
            return patch.decode(errors="replace")  # where a .gitattributes says of such a file that it is text


def secrets(names: list[str]) -> list[str]:
    """Untracked files whose names look like secrets, each reported: others can see what a run records."""
    unknown = git("ls-files", "-z", "--others", "--exclude-standard", "--", *names).decode(errors="replace").split("\0")
    found = [name for name in unknown if SECRET.search(name)]
    for name in found:
        print(f"tracking: {name} looks like a secret and is left out of the patch that the run records")
    return found


def difference(commit: str, names: list[str], setting: str = "core.quotePath=true", **environment: str) -> bytes:
    """What an index has that a commit has not: plumbing, so no setting for how people like to read it counts."""
    options = ("--cached", "--patch", "--binary", "--full-index", "--no-ext-diff", "--no-textconv")
    settings = ("-c", "core.quotePath=true", "-c", setting)
    return git(*settings, "diff-index", *options, commit, "--", *names, **environment)


def to_overrides(before: bytes, after: bytes) -> list[str] | None:
    """What `dvc exp run -S` takes to get from one content of params.yaml to another; None where it cannot say it."""
    try:
        old, new = (dict(_values(parse_yaml(text) or {})) for text in (before, after))
    except yaml.YAMLError:  # edited since compose read it
        return None
    changed = {key: value for key, value in new.items() if key not in old or value != old[key]}
    if old.keys() - new.keys() or not all(map(_can_be_said, changed.values())):
        return None
    return [f"{'' if key in old else '+'}{key}={yaml.safe_dump(value).split()[0]}" for key, value in changed.items()]


def _values(node: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and values; a list is one value, as Hydra takes the number of an element for the key of a mapping."""
    for key, value in node.items():
        if isinstance(value, dict):
            yield from _values(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _can_be_said(value: Any) -> bool:
    return value.isidentifier() if isinstance(value, str) else value is None or isinstance(value, bool | int | float)


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
    download = f"mlflow artifacts download --run-id {run_id} --artifact-path {Path(PATCH).parent} --dst-path ."
    return [download, checkout, f"git apply --whitespace=nowarn {PATCH}", "dvc repro"]


def git(*arguments: str, **settings: str) -> bytes:
    """What git answers, or nothing where there is no git, no repository, or nothing to say."""
    try:
        return subprocess.run(["git", *arguments], capture_output=True, check=False, env=os.environ | settings).stdout
    except OSError:
        return b""
