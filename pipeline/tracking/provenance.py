"""The code and configuration of a run, and the commands that reproduce it."""

import os
import re
import shlex
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from pipeline.core import paths
from pipeline.core.errors import PipelineError
from pipeline.core.files import parse_yaml
from pipeline.core.process.stage import DEFAULT_BACKEND
from pipeline.core.records import Provenance
from pipeline.repository.git import git, output

EXPERIMENT = "DVC_EXP_NAME"  # set by DVC for the stages of `dvc exp run`
EXPERIMENT_TAG = "dvc.experiment"  # tag of a run: the experiment's name, empty outside `dvc exp run`
REUSED_FROM = "reused.from"  # tag of a run: the run whose model it reuses
BASELINE = "DVC_EXP_BASELINE_REV"

SOURCES = (  # everything else derives from these
    *("pipeline", "conf", "params.yaml", "dvc.yaml"),
    *("requirements.txt", "requirements-jax.txt", "requirements-torch.txt"),
)
SECRET = re.compile(r"(?i)secret|passw|credential|token|\.env|\.pem$|\.key$|\.p12$|(^|/)id_[a-z0-9]+$")  # in file names
PATCH = "code/uncommitted.patch"  # the artifact with the uncommitted changes


def find_provenance() -> Provenance:
    """The provenance of a run that starts now in the working directory."""
    commit = os.environ.get(BASELINE) or output("rev-parse", "--verify", "--quiet", "HEAD").decode().strip()
    if not commit:
        tell_refusal()
        return Provenance(commit="", patch="", overrides=None)
    patch = uncommitted(commit)
    alone = patch.count("diff --git ") == 1 and patch.partition("\n")[0].endswith(f"/{paths.PARAMS}")
    before = output("show", f"{commit}:./{paths.PARAMS}") if alone else b""
    overrides = to_overrides(before, paths.PARAMS.read_bytes()) if alone else None
    return Provenance(commit=commit, patch=patch, overrides=overrides)


def tell_refusal() -> None:
    """Explain why the run has no commit if git refuses another user's folder, as in containers."""
    try:
        errors = git("rev-parse").stderr
    except PipelineError:  # no git
        return
    if b"dubious ownership" in errors:
        remedy = f"git config --global --add safe.directory {shlex.quote(str(Path.cwd()))}"
        print(f"tracking: git refuses {Path.cwd()}, which another user owns, so the run has no commit. Run `{remedy}`")


def uncommitted(commit: str) -> str:
    """The changes in the sources since a commit, including untracked files, as a patch for `git apply`."""
    with tempfile.TemporaryDirectory() as folder:  # a separate index leaves the user's index unchanged
        index = {"GIT_INDEX_FILE": str(Path(folder) / "index"), "GIT_DIFF_OPTS": ""}
        existing = [name for name in SOURCES if Path(name).exists()]
        output("read-tree", commit, **index)
        shared = [*existing, *(f":(exclude,literal){name}" for name in secrets(existing))]
        output("-c", "core.safecrlf=false", "add", "--all", "--", *shared, **index)  # otherwise git may refuse a CRLF
        patch = difference(commit, existing, **index)
        try:
            return patch.decode()
        except UnicodeDecodeError:  # MLflow and JSON store only text; git writes binary files in base85
            attributes = Path(folder) / "attributes"
            attributes.write_text("* -diff\n", encoding="utf-8")
            patch = difference(commit, existing, f"core.attributesFile={attributes}", **index)
            return patch.decode(errors="replace")  # if a .gitattributes declares such a file as text


def secrets(names: list[str]) -> list[str]:
    """Find and report untracked files whose names look like secrets: other users can read a run's records."""
    unknown = (
        output("ls-files", "-z", "--others", "--exclude-standard", "--", *names).decode(errors="replace").split("\0")
    )
    found = [name for name in unknown if SECRET.search(name)]
    for name in found:
        print(f"tracking: {name} looks like a secret and is left out of the run's patch")
    return found


def difference(commit: str, names: list[str], setting: str = "core.quotePath=true", **environment: str) -> bytes:
    """The changes from a commit to an index. The plumbing command ignores the user's settings for diffs."""
    options = ("--cached", "--patch", "--binary", "--full-index", "--no-ext-diff", "--no-textconv")
    settings = ("-c", "core.quotePath=true", "-c", setting)
    return output(*settings, "diff-index", *options, commit, "--", *names, **environment)


def to_overrides(before: bytes, after: bytes) -> list[str] | None:
    """The `dvc exp run -S` options that turn one params.yaml into another; None if options cannot express that."""
    try:
        old, new = (dict(_values(parse_yaml(text) or {})) for text in (before, after))
    except (yaml.YAMLError, AttributeError):  # edited since compose read it, or not a mapping
        return None
    changed = {key: value for key, value in new.items() if key not in old or value != old[key]}
    if old.keys() - new.keys() or not all(map(_can_be_said, changed.values())):
        return None
    return [f"{'' if key in old else '+'}{key}={yaml.safe_dump(value).split()[0]}" for key, value in changed.items()]


def _values(node: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and values. A list is one value, because Hydra interprets an element's index as a mapping key."""
    for key, value in node.items():
        if isinstance(value, dict):
            yield from _values(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _can_be_said(value: Any) -> bool:
    return value.isidentifier() if isinstance(value, str) else value is None or isinstance(value, bool | int | float)


def commands(provenance: Provenance, run_id: str, backend: str = DEFAULT_BACKEND) -> list[str]:
    """The commands that reproduce a run in a clone of the repository, on the same Keras backend."""
    dvc = "dvc" if backend == DEFAULT_BACKEND else f"KERAS_BACKEND={backend} dvc"
    if not provenance.commit:
        return [f"{dvc} repro"]
    checkout = f"git checkout {provenance.commit}"
    if not provenance.patch:
        return [checkout, f"{dvc} repro"]
    if provenance.overrides:
        options = " ".join(f"-S {shlex.quote(override)}" for override in provenance.overrides)
        return [checkout, f"{dvc} exp run {options}"]
    download = f"mlflow artifacts download --run-id {run_id} --artifact-path {Path(PATCH).parent} --dst-path ."
    return [download, checkout, f"git apply --whitespace=nowarn {PATCH}", f"{dvc} repro"]
