"""Checkpoints of complete trainings, kept until DVC has recorded the model.

If DVC is killed before it does, its next run starts the training again, which then only writes its results again.
"""

import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

from pipeline.core.files import UNFINISHED, remove_unfinished, write_text

COMPLETE = "complete"  # the file that marks such a checkpoint: the model's MD5
LOCK = "lock"


def hold(folder: Path) -> FileLock | None:
    """Acquire the lock of a checkpoint; return None if another process holds it or removes the checkpoint."""
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except (Timeout, FileNotFoundError, FileExistsError):
        return None
    return lock


def mark_complete(folder: Path, model_md5: str) -> None:
    """Mark a checkpoint as that of a complete training, which gave the model with this MD5."""
    write_text(folder / COMPLETE, model_md5)


def remove_recorded(parent: Path, model_md5: str | None) -> None:
    """Remove the checkpoints of complete trainings that gave the model with this MD5, unless a process uses them."""
    remove_unfinished(parent)
    for mark in parent.glob(f"*/{COMPLETE}"):
        with suppress(FileNotFoundError):  # another process removes it
            if mark.read_text(encoding="utf-8", errors="replace") == model_md5 and (lock := hold(mark.parent)):
                remove(mark.parent)
                lock.release()


def remove(folder: Path) -> None:
    """Remove a checkpoint as a whole: a part of one would be continued, if this process is killed."""
    with suppress(OSError):
        gone = Path(tempfile.mkdtemp(prefix=UNFINISHED, dir=folder.parent))
        folder.rename(gone)
        shutil.rmtree(gone)
