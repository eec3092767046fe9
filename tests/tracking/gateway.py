"""A corporate gateway in front of a tracking server: TLS with its own certificate, a token, and no /health."""

import http.server
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

import requests

TOKEN = "let-me-in"
PRIVATE = ("/health", "/version")  # answered by the gateway itself, with 404
SKIPPED = {"connection", "content-encoding", "content-length", "host", "transfer-encoding"}


class Handler(http.server.BaseHTTPRequestHandler):
    """Forwards requests that have the token."""

    protocol_version = "HTTP/1.1"
    behind: ClassVar[str]

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path.split("?")[0] in PRIVATE:
            self.reply(404, b"not here")
        elif self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self.reply(401, b"<html>who are you?</html>")
        else:
            kept = {name: value for name, value in self.headers.items() if name.lower() not in SKIPPED}
            got = requests.request(self.command, f"{self.behind}{self.path}", headers=kept, data=body, timeout=60)
            self.reply(got.status_code, got.content, got.headers.get("Content-Type", "text/plain"))

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = answer  # noqa: N815 (http.server's names)

    def reply(self, status: int, body: bytes, kind: str = "text/html") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Log nothing."""


@contextmanager
def gateway(folder: Path, behind: str) -> Iterator[tuple[str, Path]]:
    """Run a gateway, and yield its address and the file of its certificate authority."""
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-keyout",
        str(key),
        "-out",
        str(certificate),
    ]
    command += ["-days", "1", "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run(command, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"behind": behind})) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"https://127.0.0.1:{server.server_port}", certificate
        finally:
            server.shutdown()
            thread.join()
