"""The limits on requests, with an application that answers 204."""

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest
from starlette.responses import Response
from starlette.types import Message

from pipeline.commands.serve import limits
from pipeline.commands.serve.limits import LARGE, Limits


async def ask(app: Limits, first: int, rest: asyncio.Event, last: str = "http.request") -> int:
    """Send a body whose second part arrives later, and return the status of the response."""
    parts: list[Message] = [{"type": last}, {"type": "http.request", "body": bytes(first), "more_body": True}]
    sent: list[Message] = []

    async def receive() -> Message:
        if len(parts) == 1:
            await rest.wait()
        return parts.pop()

    async def send(message: Message) -> None:
        sent.append(message)

    await app({"type": "http", "method": "POST", "path": "/read", "headers": []}, receive, send)
    return int(sent[0]["status"])


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(test, 20))


def test_bodies_that_arrive_slowly_do_not_block_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "ARRIVING", 5 * LARGE)

    async def test() -> None:
        app, later, now = Limits(Response(status_code=204), []), asyncio.Event(), asyncio.Event()
        now.set()
        small = [asyncio.create_task(ask(app, 1, later)) for _ in range(2 * limits.WAITING)]
        large = [asyncio.create_task(ask(app, 2 * LARGE, later)) for _ in range(3)]
        await asyncio.sleep(0)
        assert await ask(app, LARGE, now) == 204
        assert await large[2] == 503, "their bodies take more than may arrive"
        assert await ask(app, 2 * LARGE, now) == 503
        for each in small:
            each.cancel()
        await asyncio.gather(*small, return_exceptions=True)
        later.set()
        assert {await each for each in large[:2]} == {204}
        assert await ask(app, 2 * LARGE, now) == 204

    run(test())


def test_a_body_whose_client_disconnects_is_not_processed() -> None:
    async def test() -> None:
        now = asyncio.Event()
        now.set()
        assert await ask(Limits(Response(status_code=204), []), 1, now, "http.disconnect") == 400

    run(test())
