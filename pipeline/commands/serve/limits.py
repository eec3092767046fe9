"""Limits on the size, number and origin of requests."""

import asyncio
from contextlib import nullcontext
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LARGEST = 16 << 20  # bytes: JSON of 4,000 images
AT_ONCE = 2  # requests processed concurrently: each takes up to 55 times its size in memory
LARGE = 1 << 20  # bytes: of bodies that are larger, one is processed at a time
WAITING = 16  # requests that arrived and wait or are processed
ARRIVING = 256 << 20  # bytes of bodies that are arriving; bodies of up to LARGE bytes always may
SCORING = "/invocations"
BUSY = "too many requests: try again later"
PATIENCE = 30.0  # seconds for a body to arrive


class Limits:
    """ASGI middleware that rejects oversized and cross-site requests and limits concurrency."""

    def __init__(self, app: ASGIApp, own_names: list[str]) -> None:
        self._app, self._own_names = app, own_names
        self._room, self._held, self._arriving = asyncio.Semaphore(AT_ONCE), 0, 0
        self._room_for_large = asyncio.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD", "OPTIONS"):
            await self._app(scope, receive, send)
            return
        for message in await self._answer(scope, receive):  # with no slot: a client may read its response slowly
            await send(message)

    async def _answer(self, scope: Scope, receive: Receive) -> list[Message]:
        """Return the messages to send."""
        try:
            check(Headers(scope=scope), scope["path"], self._own_names)
            body = await asyncio.wait_for(self._read(receive), PATIENCE)
            return await self._process(body, scope, receive)
        except RefusedError as error:
            answer = refusal(str(error), error.status)
        except TimeoutError:
            answer = refusal(f"the request body did not arrive within {PATIENCE:.0f} seconds", 408)
        return await collected(answer, scope, receive)

    async def _read(self, receive: Receive) -> bytes:
        """Read the body of a request. Raises RefusedError if it is too large, or if too many large ones arrive."""
        content, more = bytearray(), True
        try:
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise RefusedError("the client closed the connection", 400)
                part = message.get("body", b"")
                content += part
                self._arriving += len(part)
                more = message.get("more_body", False)
                if len(content) > LARGEST:
                    raise RefusedError(f"a request body can be at most {LARGEST >> 20} MiB", 413)
                if len(content) > LARGE and self._arriving > ARRIVING:
                    raise RefusedError(BUSY, 503)
        finally:
            self._arriving -= len(content)
        return bytes(content)

    async def _process(self, body: bytes, scope: Scope, receive: Receive) -> list[Message]:
        """Let the application answer a request that has arrived. Raises RefusedError if too many wait for that."""
        if self._held >= WAITING:
            raise RefusedError(BUSY, 503)
        self._held += 1
        try:
            large = self._room_for_large if len(body) > LARGE else nullcontext()
            async with large, self._room:
                return await collected(self._app, scope, replay(body, receive))
        finally:
            self._held -= 1


def check(headers: Headers, path: str, own_names: list[str]) -> None:
    """Raise RefusedError for requests that are rejected without reading their body."""
    if not is_own(headers.get("origin"), own_names):
        raise RefusedError("requests from other sites are refused", 403)
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


def replay(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that first delivers `body`, which was already read, then the messages that follow."""
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def next_message() -> Message:
        return waiting.pop() if waiting else await receive()

    return next_message


def refusal(message: str, status: int) -> JSONResponse:
    """Return a JSON response with an error message."""
    return JSONResponse({"error": message}, status)
