"""Kill a process before one of its file operations, or list them.

The environment variable FAULT_MOMENT is set for all commands of a trial. `MODULE NUMBER FILE` kills the process that
runs this module before its file operation NUMBER, counted from 1, and `MODULE.worker NUMBER FILE` its recording
process. Before that, it writes KILLED to the file, so that a trial can tell that it happened. The value `list FILE`
appends each operation to a file instead.
"""

import os
import signal
import sys
import threading
from collections.abc import Sequence

VARIABLE = "FAULT_MOMENT"
KILLED = "killed"
APPEND = os.O_WRONLY | os.O_APPEND | os.O_CREAT  # which is not counted
OPERATIONS = {
    "os.link",
    "os.mkdir",
    "os.remove",
    "os.rename",
    "os.rmdir",
    "os.symlink",
    "os.truncate",
    "shutil.copyfile",
    "shutil.rmtree",
    "sqlite3.connect",
}
IGNORED = ("/dev/", "/proc/", "/sys/")


def arm(module: str) -> None:
    """Start to count the file operations of this process, which runs `module`, and of its forks."""
    what, _, where = os.environ[VARIABLE].partition(" ")
    moment, _, mark = where.partition(" ")
    first, lock, count = os.getpid(), threading.Lock(), [0]

    def count_operation(event: str, arguments: Sequence[object]) -> None:
        if not changes_files(event, arguments) or any(str(arguments[0]).startswith(folder) for folder in IGNORED):
            return
        name = module if os.getpid() == first else f"{module}.worker"
        if what == "list":
            line = f"{name}\t{event}\t{arguments[0]!s}\n"
            append(where, line)
        elif name == what:
            with lock:
                count[0] += 1
                if count[0] == int(moment):
                    append(mark, KILLED)
                    os.kill(os.getpid(), signal.SIGKILL)
                    append(mark, ", but it survived")

    sys.addaudithook(count_operation)


def append(file: str, text: str) -> None:
    """Append text to a file."""
    descriptor = os.open(file, APPEND, 0o600)
    os.write(descriptor, text.encode())
    os.close(descriptor)


def changes_files(event: str, arguments: Sequence[object]) -> bool:
    """Whether an audit event is an operation that changes files or opens a database."""
    if event == "open":
        path, _, flags = arguments
        return isinstance(path, str | bytes | os.PathLike) and bool(
            isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) and not flags & os.O_APPEND
        )
    return event in OPERATIONS
