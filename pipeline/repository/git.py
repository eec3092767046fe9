"""Queries to git."""

import os
import subprocess
from pathlib import Path

from pipeline.core.errors import PipelineError


def git(*arguments: str, **settings: str) -> "subprocess.CompletedProcess[bytes]":
    """Run git in the working directory, with environment variables. Raises PipelineError if git is not installed."""
    try:
        return subprocess.run(["git", *arguments], capture_output=True, check=False, env=os.environ | settings)
    except OSError:
        raise PipelineError("git is not installed: install it to find and compare models") from None


def output(*arguments: str, **settings: str) -> bytes:
    """The output of git; empty without git, without a repository, or if git prints nothing."""
    try:
        return git(*arguments, **settings).stdout
    except PipelineError:
        return b""


def check_repository() -> None:
    """Raise PipelineError outside a git repository, or in one that git refuses to open."""
    found = git("rev-parse", "--git-dir")
    if found.returncode:
        raise PipelineError(f"{Path.cwd()} is not a usable git repository ({said(found)})")


def said(finished: "subprocess.CompletedProcess[bytes]") -> str:
    """The errors that git printed, in one line."""
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
        raise PipelineError(f"`git status` failed: {said(found)}")
    return [line[3:] for line in found.stdout.decode(errors="replace").splitlines()]


def commits_of(*paths: Path) -> list[str]:
    """List all commits, in any branch or tag, that changed a file, newest first, even if a merge dropped the change."""
    everywhere = ("--branches", "--tags", "--remotes", *(["HEAD"] if commit_of("HEAD") else []))
    listing = git("log", "--full-history", "--format=%H", *everywhere, "--", *(path.as_posix() for path in paths))
    return listing.stdout.decode().split()
