"""Two nodes that talk over loopback, for the tests of the peer transport."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from raftkit_core.testing.ports import free_ports
from raftkit_core.testing.recording_service import RecordingService
from raftkit_core.types.entry import NORMAL, Entry
from raftkit_core.types.log_id import LogId
from raftkit_core.types.messages import AppendEntriesRequest, HeartbeatRequest
from raftkit_core.types.vote import LeaderId, Vote
from raftkit_http.network import HttpNetwork, HttpNetworkFactory
from raftkit_http.settings import HttpSettings

LEADER = LeaderId(1, "n1")
VOTE = Vote(LEADER, True)
BEAT = HeartbeatRequest(VOTE, None, None, 500)
MIB = 1024 * 1024
AMPLE = 40.0
"""Seconds for a call that ends by itself."""


def append(index: int, payload: bytes = b"x", entries: int = 1) -> AppendEntriesRequest:
    prev = LogId(LEADER, index - 1) if index else None
    batch = [Entry(LogId(LEADER, index + step), 0, NORMAL, payload) for step in range(entries)]
    return AppendEntriesRequest(VOTE, prev, batch, None, 500)


def make_factory(port: int = 0) -> HttpNetworkFactory:
    return HttpNetworkFactory(HttpSettings.parse(f"http://127.0.0.1:{port}"))


async def until(condition: Callable[[], object]) -> None:
    """Let the sockets work until ``condition`` holds."""
    async with asyncio.timeout(AMPLE):
        while not condition():  # noqa: ASYNC110 (what is waited for is plain data)
            await asyncio.sleep(0)


class Pair:
    """n1 calls n2 on loopback."""

    def __init__(self) -> None:
        self.source, self.target = make_factory(), make_factory(*free_ports(1))
        self.caller, self.service = RecordingService("n1"), RecordingService("n2")
        self.net: HttpNetwork

    async def restart_target(self) -> None:
        """The same port again, as a restarted process would have it."""
        port = self.target.server.port
        await self.target.close()
        self.target = make_factory(port)
        await self.target.serve("default", self.service)


@asynccontextmanager
async def pair() -> AsyncIterator[Pair]:
    made = Pair()
    try:
        await made.target.serve("default", made.service)
        made.net = made.source.connect("n2", made.target.advertised(), made.caller)
        yield made
    finally:
        await made.source.close()
        await made.target.close()
