"""`python` and `dvc` for the commands of tests: the fork server runs `-m MODULE` and `-c CODE`."""

import json
import os
import socket
import sys

PYTHON, ADDRESS = "@PYTHON@", "@ADDRESS@"


def main() -> int:
    """Let the server run the command with this process's streams, and exit with its status."""
    name, arguments = os.path.basename(sys.argv[0]), sys.argv[1:]  # noqa: PTH119 (importing pathlib is slower)
    if name == "dvc":
        arguments = ["-m", "dvc", *arguments]
    if arguments[:1] not in (["-m"], ["-c"]) or "KERAS_BACKEND" in os.environ:  # the server has already imported Keras
        os.execv(PYTHON, [PYTHON, *arguments])
    executable = os.path.join(os.path.dirname(os.path.abspath(sys.argv[0])), "python")  # noqa: PTH100, PTH118, PTH120
    request: dict[str, object] = {"arguments": arguments, "executable": executable}
    request |= {"folder": os.getcwd(), "environment": dict(os.environ)}  # noqa: PTH109
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(ADDRESS)
        content = json.dumps(request).encode() + b"\n"
        sent = socket.send_fds(server, [content], [0, 1, 2])
        server.sendall(content[sent:])
        status = int(server.recv(16) or b"1")
    if status < 0:
        os.kill(os.getpid(), -status)  # exit by the signal that ended the process
    return status


sys.exit(main())
