"""A client with more calls than connections serves them in the order in which they came."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import pytest
from aiohttp import web

from raftkit_core.errors import ConfigError
from raftkit_http import exchange as exchanges
from raftkit_http.exchange import NotSent, Outgoing, exchange, make_session


class Node:
    """Answers everything and remembers who asked, in order; while ``gate`` is there, it answers nobody."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.gate: asyncio.Event | None = None
        self.url = ""

    async def answer(self, request: web.Request) -> web.Response:
        self.asked.append(request.path.removeprefix("/"))
        if self.gate is not None:
            await self.gate.wait()
        return web.json_response({"schema": "raftkit.test/1", "ok": True, "data": {}})


@asynccontextmanager
async def node() -> AsyncIterator[Node]:
    made = Node()
    app = web.Application()
    app.router.add_get("/{caller}", made.answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    made.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield made
    finally:
        await runner.cleanup()


async def ask(session: aiohttp.ClientSession, made: Node, caller: object, timeout: float = 30.0) -> None:
    await exchange(session, made.url, Outgoing(method="GET", path=f"/{caller}"), dict, timeout)


async def until_asked(made: Node) -> None:
    async with asyncio.timeout(10):
        while not made.asked:  # noqa: ASYNC110 (what is waited for is plain data)
            await asyncio.sleep(0)


async def test_who_just_had_an_answer_does_not_go_before_who_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchanges, "CALLS_MAX", 1)
    async with node() as made, make_session(None) as session:

        async def caller(number: int) -> None:
            for _ in range(3):
                await ask(session, made, number)

        await asyncio.gather(*map(caller, range(5)))
        assert made.asked == [str(number) for number in range(5)] * 3


async def test_a_call_whose_turn_does_not_come_was_not_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchanges, "CALLS_MAX", 1)
    async with node() as made, make_session(None) as session:
        made.gate = asyncio.Event()
        first = asyncio.ensure_future(ask(session, made, "first"))
        await until_asked(made)
        with pytest.raises(NotSent, match="1 calls of this client are under way"):
            await ask(session, made, "late", timeout=0.01)
        cancelled = asyncio.ensure_future(ask(session, made, "cancelled"))
        await asyncio.sleep(0)
        cancelled.cancel()
        next_ = asyncio.ensure_future(ask(session, made, "next"))
        await asyncio.sleep(0)
        made.gate.set()
        await asyncio.gather(first, next_)
        assert made.asked == ["first", "next"]


async def test_closing_the_client_ends_who_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchanges, "CALLS_MAX", 1)
    async with node() as made:
        made.gate = asyncio.Event()
        session = make_session(None)
        first = asyncio.ensure_future(ask(session, made, "first"))
        await until_asked(made)
        waiting = asyncio.ensure_future(ask(session, made, "waiting"))
        await asyncio.sleep(0)
        await session.close()
        made.gate.set()
        outcomes = await asyncio.gather(first, waiting, return_exceptions=True)
        assert isinstance(outcomes[0], exchanges.Lost)
        assert isinstance(outcomes[1], ConfigError)
        with pytest.raises(ConfigError):
            await ask(session, made, "later")
