"""A folder for the files that are fuzzed, which the process that made it removes."""

import atexit
import functools
import os
import shutil
import tempfile
from pathlib import Path

VARIABLE = "FUZZING_FOLDER"  # the folder of a process that started this one
MEMORY = Path("/dev/shm")  # on Linux: a disk takes milliseconds for each file


@functools.cache
def make_folder() -> Path:
    """The folder that the environment names, or a new one, which is removed when this process ends."""
    if VARIABLE in os.environ:
        return Path(os.environ[VARIABLE])
    folder = Path(tempfile.mkdtemp(prefix="fuzzing-", dir=MEMORY if MEMORY.is_dir() else None))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
