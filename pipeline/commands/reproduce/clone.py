"""A fresh clone in a temporary folder, and processes in it that know nothing of the user's settings."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from pipeline.commands.reproduce.promise import Promise
from pipeline.core import paths
from pipeline.core.errors import PipelineError
from pipeline.core.process.stage import DEFAULT_BACKEND
from pipeline.core.sources import is_address
from pipeline.repository.dvc import LOCK
from pipeline.repository.git import output

PREFIX = "reproduce-"  # of the temporary folder
NEEDED = 0.5  # GiB of free space, for a run on MNIST
GIB = 1 << 30
GRACE = 5.0  # seconds between a request to end and a kill
STANDARD_ERROR = 2
# The only variables that the commands in the clone inherit: where programs and data are, and how to reach a network.
INHERITED = {
    *("PATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "LC_CTYPE", "TERM", "COLUMNS"),
    *("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "all_proxy", "no_proxy"),
    *("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"),
}
# No hooks, templates or line endings of the user's.
GIT = ("git", "-c", "core.hooksPath=/dev/null", "-c", "core.autocrlf=false", "-c", "advice.detachedHead=false")
# oneDNN, which TensorFlow multiplies matrices with on a CPU, can do without the widest of this machine's instructions.
INSTRUCTIONS = {"AVX2": "AVX2", "AVX-512": "AVX512_CORE", "AVX-512 with bfloat16": "AVX512_CORE_BF16"}
OWN_CACHE = "[cache]\n    dir = cache\n"


class Clone(NamedTuple):
    """The clone of a commit: the project's folder in it, and an empty home for the processes that run there."""

    root: Path
    home: Path


@contextlib.contextmanager
def temporary_folder(project: Path, keep: bool) -> Iterator[Path]:
    """A folder that is removed at the end unless `keep`. Raises PipelineError if it is in the project, or too small."""
    folder = Path(tempfile.mkdtemp(prefix=PREFIX)).resolve()
    try:
        free = shutil.disk_usage(folder).free / GIB
        if folder.is_relative_to(project) or free < NEEDED:
            reason = f"has {free:.1f} GiB of free space, {NEEDED} are needed" if free < NEEDED else "is in the project"
            keep = False
            raise PipelineError(f"the folder for temporary files, {folder.parent}, {reason}: set TMPDIR to another one")
        yield folder
    finally:
        if keep:
            print(f"reproduce: the clone is kept in {folder}", file=sys.stderr)
        else:
            remove(folder)


def remove(folder: Path) -> None:
    """Remove a folder, even if killed processes still write to it. A second Ctrl-C does not stop it."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    for _ in range(50):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            break
        time.sleep(0.1)
    else:
        print(f"reproduce: {folder} could not be removed", file=sys.stderr)
    signal.signal(signal.SIGINT, before)


def make_clone(promise: Promise, folder: Path) -> Clone:
    """Clone a commit, without the results that it contains. ../shared is linked beside it."""
    home, root = folder / "home", folder / "project"
    home.mkdir()
    project, inside = paths.project_root(), output("rev-parse", "--show-prefix").decode().strip()
    top = output("rev-parse", "--show-toplevel").decode().rstrip("\n")
    settings = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    run(folder, ["git", "init", "--quiet", "--template=", "project"], settings)
    run(root, [*GIT, "fetch", "--quiet", "--no-tags", "--update-shallow", top, promise.commit], settings)
    run(root, [*GIT, "checkout", "--quiet", "--detach", promise.commit], settings)
    clone = Clone(root / inside, home)
    shared = project.parent / "shared"
    if shared.is_dir():
        (clone.root.parent / "shared").symlink_to(shared)
    forget_results(clone.root, promise)
    return clone


def forget_results(root: Path, promise: Promise) -> None:
    """Remove the promised outputs and dvc.lock from a clone, give it a cache of its own, and set its params.yaml."""
    for path in (LOCK, *map(Path, promise.outputs)):
        if path.is_absolute() or ".." in path.parts:
            raise PipelineError(f"{LOCK} {promise.place} names {path}, which is outside the project")
        if (root / path).is_file():
            (root / path).unlink()
    (root / ".dvc" / "config.local").write_text(OWN_CACHE, encoding="utf-8")
    if promise.folder != Path():
        params = promise.read(paths.PARAMS)
        if params is None:
            raise PipelineError(f"{promise.folder / paths.PARAMS} does not exist {promise.place}")
        (root / paths.PARAMS).write_bytes(params)


def run_pipeline(clone: Clone, python: str, promise: Promise) -> None:
    """Run `dvc repro` in a clone. Raises PipelineError if a stage fails; its message is on standard error."""
    run(clone.root, [python, "-m", "dvc", "repro"], surroundings(clone, python, promise))


def surroundings(clone: Clone, python: str, promise: Promise) -> dict[str, str]:
    """Environment variables for the pipeline: none of the user's but a few, and the promised backend and device."""
    inherited = {name: value for name, value in os.environ.items() if name in INHERITED}
    mirror = os.environ.get("DATASET_MIRROR")
    if mirror:
        inherited["DATASET_MIRROR"] = mirror if is_address(mirror) else str(paths.project_root() / mirror)
    if promise.backend != DEFAULT_BACKEND:
        inherited["KERAS_BACKEND"] = promise.backend
    if promise.device == "cpu":
        inherited["DEVICE"] = promise.device
    if promise.vectors in INSTRUCTIONS:
        inherited["ONEDNN_MAX_CPU_ISA"] = INSTRUCTIONS[promise.vectors]
    return inherited | {
        "PATH": f"{Path(python).parent}{os.pathsep}{inherited.get('PATH', os.defpath)}",
        "HOME": str(clone.home),
        "TMPDIR": str(clone.home),
        "DVC_SYSTEM_CONFIG_DIR": str(clone.home),
        "DVC_SITE_CACHE_DIR": str(clone.home / "dvc"),
    }


def run(folder: Path, command: Sequence[str], settings: dict[str, str]) -> None:
    """Run a command with its output on standard error. Raises PipelineError if it fails.

    If this process is interrupted, the command and its child processes end first.
    """
    process = subprocess.Popen(command, cwd=folder, env=settings, stdout=STANDARD_ERROR, start_new_session=True)
    try:
        status = process.wait()
    except BaseException:
        end(process)
        raise
    if status:
        what = " ".join(Path(word).name if word == command[0] else word for word in command)
        raise PipelineError(f"`{what}` failed with exit status {status}: its message is above")


def end(process: "subprocess.Popen[bytes]") -> None:
    """End a command and its child processes, which leave files only in the temporary folder."""
    for number, patience in ((signal.SIGTERM, GRACE), (signal.SIGKILL, None)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(patience)
