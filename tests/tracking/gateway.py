"""A corporate gateway in front of a tracking server: TLS with its own certificate, a token, and no /health."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests import web

TOKEN = "let-me-in"
PRIVATE = ("/health", "/version")  # answered by the gateway itself, with 404


@contextmanager
def gateway(folder: Path, behind: str) -> Iterator[tuple[str, Path]]:
    """Run a gateway, and yield its address and the file of its certificate authority."""

    def answer(request: web.Handler, _: int) -> None:
        if request.path.split("?")[0] in PRIVATE:
            request.send(b"not here", 404)
        elif request.headers.get("Authorization") != f"Bearer {TOKEN}":
            request.send(b"<html>who are you?</html>", 401, Content_Type="text/html")
        else:
            web.forward(request, behind)

    certificate = web.make_certificate(folder)
    with web.serving(answer, certificate) as address:
        yield address, certificate
