"""What a request may cost, and from where it may come, before anybody reads it."""

import asyncio
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LARGEST = 16 << 20  # bytes: JSON of 4,000 images
AT_ONCE = 2  # reading JSON takes thirty times its size
WAITING = 16  # requests whose bodies are held
SCORING = "/invocations"
PATIENCE = 30.0  # seconds to send a body


class Limits:
    """Refuses requests that are too large or that another site's page sends, and has few answered at once."""

    def __init__(self, app: ASGIApp, own_names: list[str]) -> None:
        self._app, self._own_names = app, own_names
        self._room, self._held = asyncio.Semaphore(AT_ONCE), 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD", "OPTIONS"):
            await self._app(scope, receive, send)
            return
        self._held += 1
        try:
            messages = await self._answer(scope, receive)
        finally:
            self._held -= 1
        for message in messages:  # when others may go on: whoever asks may be slow to read it
            await send(message)

    async def _answer(self, scope: Scope, receive: Receive) -> list[Message]:
        """What is to be sent."""
        try:
            self._check(Headers(scope=scope), scope["path"])
            body = await asyncio.wait_for(read_body(receive), PATIENCE)
            async with self._room:
                return await collected(self._app, scope, replay(body, receive))
        except RefusedError as error:
            answer = refusal(str(error), error.status)
        except TimeoutError:
            answer = refusal(f"a request is sent within {PATIENCE:.0f} seconds", 408)
        except RecursionError:
            answer = refusal("what was sent is nested too deeply", 400)
        return await collected(answer, scope, receive)

    def _check(self, headers: Headers, path: str) -> None:
        """Raise RefusedError for what is refused unread."""
        if not is_own(headers.get("origin"), self._own_names):
            raise RefusedError("pages of other sites are not answered", 403)
        if self._held > WAITING:
            raise RefusedError("too many at once: ask again", 503)
        if path == SCORING and "content-type" not in headers:  # on which MLflow would fail
            raise RefusedError("say with Content-Type what is sent", 415)


class RefusedError(Exception):
    """Why a request gets no other answer, and the HTTP status that says so."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


def is_own(origin: str | None, names: list[str]) -> bool:
    """Whether a request comes from a page of this server, or from no page: browsers tell it for whatever one sends."""
    try:
        return origin is None or urlsplit(origin).hostname in names
    except ValueError:
        return False


async def collected(app: ASGIApp, scope: Scope, receive: Receive) -> list[Message]:
    """All that an application sends."""
    messages: list[Message] = []

    async def keep(message: Message) -> None:
        messages.append(message)

    await app(scope, receive, keep)
    return messages


async def read_body(receive: Receive) -> bytes:
    """The body of a request. Raises RefusedError if it is too large."""
    content, more = bytearray(), True
    while more:
        message = await receive()
        content += message.get("body", b"")
        more = message.get("more_body", False)
        if len(content) > LARGEST:
            raise RefusedError(f"a request has at most {LARGEST >> 20} MiB", 413)
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
