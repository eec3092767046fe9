"""A fork server: runs the commands of tests in forks of a process that has already imported the slow packages."""

import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HERE = Path(__file__).parent
COMMANDS = ("python", "dvc")


@contextmanager
def fork_server() -> Iterator[Path]:
    """Start the server, and yield a folder with a `python` and a `dvc` that it runs."""
    folder = Path(tempfile.mkdtemp(prefix="forks-"))  # a socket address is limited to about 100 characters
    address = folder / "socket"
    client = (HERE / "client.py").read_text(encoding="utf-8")
    client = client.replace("@PYTHON@", sys.executable).replace("@ADDRESS@", str(address))
    for name in COMMANDS:
        (folder / name).write_text(f"#!{sys.executable} -IS\n{client}", encoding="utf-8")
        (folder / name).chmod(0o755)
    command = [sys.executable, "-m", "tests.forkserver.server", str(address)]
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(command, cwd=HERE.parent.parent, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        while not address.exists():
            if server.poll() is not None:
                raise RuntimeError((folder / "log").read_text(encoding="utf-8"))
            time.sleep(0.01)
        yield folder
    finally:
        server.kill()
        server.wait()
        shutil.rmtree(folder)
