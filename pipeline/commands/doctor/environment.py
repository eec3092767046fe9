"""Checks of Python, the installed packages, git, DVC and the disk."""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import distributions
from pathlib import Path

from pipeline.commands.doctor.finding import Finding, Level
from pipeline.core.errors import PipelineError
from pipeline.core.machine import pinned_versions, public, requirements_of
from pipeline.core.process.stage import BACKENDS, DEFAULT_BACKEND, chosen_backend
from pipeline.repository.git import check_repository, git, is_shallow, output

SUPPORTED = ((3, 11), (3, 14))  # Python, from the first version to below the second, as in pyproject.toml
GIB = 1 << 30
NEEDED, ENOUGH = 0.3 * GIB, 2 * GIB  # free disk space: for one run on MNIST, and for comfort
SHOWN = 5  # packages to name


def check_python() -> Iterator[Finding]:
    """Whether this version of Python is supported."""
    version = ".".join(map(str, sys.version_info[:3]))
    if SUPPORTED[0] <= sys.version_info[:2] < SUPPORTED[1]:
        yield Finding("Python", "ok", f"{version} in {sys.prefix}")
    else:
        known = ", ".join(f"3.{minor}" for minor in range(SUPPORTED[0][1], SUPPORTED[1][1]))
        remedy = f"make clean, then make repro PYTHON=python3.{SUPPORTED[1][1] - 1}"
        yield Finding("Python", "problem", f"{version} is not one of {known}", remedy)


def check_packages() -> Iterator[Finding]:
    """Whether the installed packages are those that the requirements file of the Keras backend pins."""
    backend = chosen_backend() if chosen_backend() in BACKENDS else DEFAULT_BACKEND
    requirements = requirements_of(backend)
    if not requirements.is_file():
        yield Finding("packages", "problem", f"{requirements} is missing", f"git checkout {requirements}")
        return
    missing, different = differing_packages(requirements)
    remedy = f"touch {requirements} && make repro" + f" BACKEND={backend}" * (backend != DEFAULT_BACKEND)
    if missing:
        yield Finding("packages", "problem", f"not installed: {shorten(missing)}", remedy)
    if different:
        yield Finding("packages", "warning", f"results may differ: {shorten(different)}", remedy)
    if not missing and not different:
        yield Finding("packages", "ok", f"the versions that {requirements} pins")


def differing_packages(requirements: Path) -> tuple[list[str], list[str]]:
    """The pinned packages that are not installed, and those that are installed in another version, with both."""
    installed = {normalize(each.name): each.version for each in distributions()}
    pinned = {normalize(name): versions for name, versions in pinned_versions(requirements).items()}
    needed = {name for name, versions in pinned.items() if not all(versions.values())}  # on every platform
    different = [
        f"{name} {installed[name]} instead of {' or '.join(sorted(versions))}"
        for name, versions in pinned.items()
        if name in installed and public(installed[name]) not in versions
    ]
    return sorted(needed - installed.keys()), different


def normalize(name: str) -> str:
    """A package's name as package indexes compare it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def shorten(names: list[str]) -> str:
    """The first names, and how many more there are."""
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more} more" if more > 0 else "")


def check_git() -> Iterator[Finding]:
    """Whether git can be used, and what DVC and the gate need of it."""
    try:
        check_repository()
    except PipelineError as error:
        remedy = "git config --global --add safe.directory ." if "dubious" in str(error) else "git init, or clone again"
        yield Finding("git", "problem", str(error), "apt-get install git" if "not installed" in str(error) else remedy)
        return
    lacking = [name for name in ("user.name", "user.email") if not output("config", name).strip()]
    if lacking:
        remedy = "; ".join(f"git config --global {name} …" for name in lacking)
        yield Finding("git", "warning", f"{' and '.join(lacking)} not set, which queued experiments need", remedy)
    shallow = is_shallow()
    if shallow:
        yield Finding("git", "warning", "the clone is shallow: the gate may lack its baseline", "git fetch --unshallow")
    if not lacking and not shallow:
        commit = git("log", "-1", "--format=%h %s").stdout.decode(errors="replace").strip()
        yield Finding("git", "ok", commit or "no commits yet")


def check_dvc() -> Iterator[Finding]:
    """Whether DVC works here, its cache and its remotes, as `dvc doctor` reports them."""
    command = [sys.executable, "-m", "dvc", "doctor"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    facts = dict(line.split(": ", 1) for line in answer.stdout.splitlines() if ": " in line)
    if answer.returncode or "Repo" not in facts:
        reason = " ".join((answer.stderr or "this folder is not a DVC project").split())
        yield Finding("DVC", "problem", reason, "git checkout .dvc, or dvc init")
        return
    link = facts.get("Cache types", "unknown").split(",")[0]
    yield Finding("DVC", "ok", f"{facts['DVC version']}, cache on {facts.get('Cache directory', '?')} ({link})")
    remotes = facts.get("Remotes", "None")
    if remotes == "None":
        yield Finding(
            "DVC", "ok", "no remote: results stay on this machine", "dvc remote add -d NAME URL to share them"
        )
    else:
        yield Finding("DVC", "ok", f"remote: {remotes}")


def check_disk(folder: Path = Path()) -> Iterator[Finding]:
    """Whether there is space for the results."""
    free = shutil.disk_usage(folder).free
    level: Level = "problem" if free < NEEDED else "warning" if free < ENOUGH else "ok"
    remedy = "" if level == "ok" else "dvc gc --workspace removes the cached results of other commits"
    yield Finding("disk", level, f"{free / GIB:.1f} GiB free in {folder.resolve()}", remedy)
