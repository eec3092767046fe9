"""What a request may cost, and from where it may come, before anybody reads it."""

import asyncio
import contextlib
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LARGEST = 16 << 20  # bytes: JSON of 4,000 images
AT_ONCE = 2  # reading JSON takes thirty times its size


class Limits:
    """Refuses requests that are too large or that another site's page sends, and has few answered at once."""

    def __init__(self, app: ASGIApp, own_names: list[str]) -> None:
        self._app, self._own_names = app, own_names
        self._room = asyncio.Semaphore(AT_ONCE)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        body = b""
        if scope["type"] == "http" and scope["method"] not in ("GET", "HEAD", "OPTIONS"):
            origin = Headers(scope=scope).get("origin")  # browsers tell it for whatever a page sends
            if origin is not None and urlsplit(origin).hostname not in self._own_names:
                await refusal("pages of other sites are not answered", 403)(scope, receive, send)
                return
            try:
                body = await read_body(receive)
            except ValueError as error:
                await refusal(str(error), 413)(scope, receive, send)
                return
            receive = replay(body, receive)
        async with self._room if body else contextlib.nullcontext():
            await self._app(scope, receive, send)


async def read_body(receive: Receive) -> bytes:
    """The body of a request. Raises ValueError if it is too large."""
    content, more = bytearray(), True
    while more:
        message = await receive()
        content += message.get("body", b"")
        more = message.get("more_body", False)
        if len(content) > LARGEST:
            raise ValueError(f"a request has at most {LARGEST >> 20} MiB")
    return bytes(content)


def replay(body: bytes, receive: Receive) -> Receive:
    """What gives a body that was read already, and then what else comes."""
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def next_message() -> Message:
        return waiting.pop() if waiting else await receive()

    return next_message


def refusal(message: str, status: int) -> JSONResponse:
    """An answer that says why there is no other."""
    return JSONResponse({"error": message}, status)
