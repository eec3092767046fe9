"""Limits on the size, number and origin of requests."""

import asyncio
from contextlib import nullcontext
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LARGEST = 16 << 20  # bytes: JSON of 4,000 images
AT_ONCE = 2  # requests processed concurrently: each takes up to 120 times its size in memory
LARGE = 1 << 20  # bytes: of bodies that are larger, one is processed at a time
WAITING = 16  # requests held in memory
SCORING = "/invocations"
PATIENCE = 30.0  # seconds for a body to arrive


class Limits:
    """ASGI middleware that rejects oversized and cross-site requests and limits concurrency."""

    def __init__(self, app: ASGIApp, own_names: list[str]) -> None:
        self._app, self._own_names = app, own_names
        self._room, self._held = asyncio.Semaphore(AT_ONCE), 0
        self._room_for_large = asyncio.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD", "OPTIONS"):
            await self._app(scope, receive, send)
            return
        self._held += 1
        try:
            messages = await self._answer(scope, receive)
        finally:
            self._held -= 1
        for message in messages:  # after the slot is free: a client may read its response slowly
            await send(message)

    async def _answer(self, scope: Scope, receive: Receive) -> list[Message]:
        """Return the messages to send."""
        try:
            self._check(Headers(scope=scope), scope["path"])
            body = await asyncio.wait_for(read_body(receive), PATIENCE)
            large = self._room_for_large if len(body) > LARGE else nullcontext()
            async with large, self._room:
                return await collected(self._app, scope, replay(body, receive))
        except RefusedError as error:
            answer = refusal(str(error), error.status)
        except TimeoutError:
            answer = refusal(f"the request body did not arrive within {PATIENCE:.0f} seconds", 408)
        except RecursionError:
            answer = refusal("the request body is nested too deeply", 400)
        return await collected(answer, scope, receive)

    def _check(self, headers: Headers, path: str) -> None:
        """Raise RefusedError for requests that are rejected without reading their body."""
        if not is_own(headers.get("origin"), self._own_names):
            raise RefusedError("requests from other sites are refused", 403)
        if self._held > WAITING:
            raise RefusedError("too many requests: try again later", 503)
        if path == SCORING and "content-type" not in headers:  # MLflow fails without it
            raise RefusedError("the Content-Type header is missing", 415)


class RefusedError(Exception):
    """A rejected request: the reason and the HTTP status."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


def is_own(origin: str | None, names: list[str]) -> bool:
    """Return whether an Origin header, which browsers add to a page's requests, is absent or names this server."""
    try:
        return origin is None or urlsplit(origin).hostname in names
    except ValueError:
        return False


async def collected(app: ASGIApp, scope: Scope, receive: Receive) -> list[Message]:
    """Collect the messages that an application sends."""
    messages: list[Message] = []

    async def keep(message: Message) -> None:
        messages.append(message)

    await app(scope, receive, keep)
    return messages


async def read_body(receive: Receive) -> bytes:
    """Read the body of a request. Raises RefusedError if it is too large."""
    content, more = bytearray(), True
    while more:
        message = await receive()
        content += message.get("body", b"")
        more = message.get("more_body", False)
        if len(content) > LARGEST:
            raise RefusedError(f"a request body can be at most {LARGEST >> 20} MiB", 413)
    return bytes(content)


def replay(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that first delivers `body`, which was already read, then the messages that follow."""
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def next_message() -> Message:
        return waiting.pop() if waiting else await receive()

    return next_message


def refusal(message: str, status: int) -> JSONResponse:
    """Return a JSON response with an error message."""
    return JSONResponse({"error": message}, status)
