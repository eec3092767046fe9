"""HTTP servers on loopback that answer as a test decides: sources of a dataset, and proxies before an MLflow server."""

import gzip
import http.server
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import requests

HTML = b"<!DOCTYPE html><html><body>Service unavailable</body></html>"
HOP_BY_HOP = {"connection", "content-encoding", "content-length", "host", "transfer-encoding"}


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers with what its server's function decides, and logs nothing."""

    protocol_version = "HTTP/1.1"
    server: "Server"
    body: bytes

    def do_GET(self) -> None:
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        with suppress(BrokenPipeError, ConnectionResetError):  # the client has gone away
            self.server.answer(self, self.server.count())

    do_POST = do_PUT = do_PATCH = do_DELETE = do_GET  # noqa: N815 (http.server's names)

    def log_message(self, *_: object) -> None:
        """Log nothing."""

    def send(self, body: bytes, status: int = 200, promised: int | None = None, **headers: str) -> None:
        """Send a response with a body, which may be shorter than it promises."""
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(promised or len(body)))
        self.send_header("Connection", "close")  # otherwise a client may send its next request as the server closes
        self.end_headers()
        self.wfile.write(body)


Answer = Callable[[Handler, int], None]


class Server(http.server.ThreadingHTTPServer):
    """Calls a function with each request and its number, from 0."""

    def __init__(self, answer: Answer, certificate: Path | None) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answer, self._number, self._lock = answer, -1, threading.Lock()
        if certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self.socket = context.wrap_socket(self.socket, server_side=True)
        self.address = f"http{'s' if certificate else ''}://127.0.0.1:{self.server_port}"

    def count(self) -> int:
        """The number of this request."""
        with self._lock:
            self._number += 1
            return self._number

    def handle_error(self, *_: object) -> None:
        """Print nothing if a client breaks a connection."""


@contextmanager
def serving(answer: Answer, certificate: Path | None = None) -> Iterator[str]:
    """Run a server, and yield its address."""
    with Server(answer, certificate) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield server.address
        finally:
            server.shutdown()
            thread.join()


def make_certificate(folder: Path) -> Path:
    """Make a self-signed certificate for 127.0.0.1. The file holds its key, too."""
    file = folder / "certificate.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(file), "-out", str(file)]
    subprocess.run(command, check=True, capture_output=True)
    return file


def forward(request: Handler, behind: str) -> None:
    """Answer as another server does."""
    kept = {name: value for name, value in request.headers.items() if name.lower() not in HOP_BY_HOP}
    got = requests.request(request.command, f"{behind}{request.path}", headers=kept, data=request.body, timeout=60)
    request.send(got.content, got.status_code, Content_Type=got.headers.get("Content-Type", "text/plain"))


def refuse(request: Handler, _: bytes) -> None:
    request.send(b"<html>Forbidden</html>", 403)


def overload(request: Handler, _: bytes) -> None:
    request.send(HTML, 503, Content_Type="text/html")


def redirect(request: Handler, _: bytes) -> None:
    request.send(b"", 302, Location=request.path)


def stop_half_way(request: Handler, content: bytes) -> None:
    request.send(content[: len(content) // 2], promised=len(content))


def flip_a_byte(request: Handler, content: bytes) -> None:
    place = len(content) // 3
    request.send(content[:place] + bytes([content[place] ^ 0x10]) + content[place + 1 :])


def send_another_file(request: Handler, _: bytes) -> None:
    request.send(gzip.compress(bytes(1000), mtime=0))


def trickle(request: Handler, content: bytes) -> None:
    request.send_response(200)
    request.send_header("Content-Length", str(len(content)))
    request.send_header("Connection", "close")
    request.end_headers()
    for start in range(0, len(content), 4096):
        request.wfile.write(content[start : start + 4096])
        time.sleep(0.05)


def declare_gzip(request: Handler, content: bytes) -> None:
    request.send(content, Content_Encoding="gzip")


def declare_x_gzip(request: Handler, content: bytes) -> None:
    request.send(content, Content_Encoding="x-gzip")


def compress_again(request: Handler, content: bytes) -> None:
    request.send(gzip.compress(content), Content_Encoding="gzip")


def hang_up(request: Handler, _: bytes) -> None:
    request.close_connection = True


def say_nothing(request: Handler, _: bytes) -> None:
    time.sleep(30)
    request.close_connection = True
