"""What strangers try on a node's sockets, and what a captured message is worth later."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path
from random import Random
from typing import Any

import pytest
from aiohttp import web

from raftkit_core import Node, open_raft
from raftkit_core.errors import RaftError
from raftkit_core.testing.cluster import memory_cluster
from raftkit_core.testing.ports import free_ports
from raftkit_core.types.identity import PeerIdentity
from raftkit_core.types.kv import Put
from raftkit_http.server import HttpServer
from raftkit_http.settings import Address

SMUGGLED = [
    b"POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"0\r\n\r\nGET /secret HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\nContent-Length: 44\r\n\r\n",
    b"POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: +5\r\n\r\nhello",
    b"POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0x5\r\n\r\nhello",
    b"POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
    b"POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Length : 5\r\n\r\nhello",
    b"POST /echo HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: xchunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    b"POST /echo HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked, identity\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    b"POST /echo HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\nhello\r\n0\r\n\r\n",
    b"POST /echo HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\nhello",
    b"POST /echo HTTP/1.1\r\nHost: localhost\r\nX: a\r\n folded\r\nContent-Length: 5\r\n\r\nhello",
    b"GET /secret\x00 HTTP/1.1\r\nHost: localhost\r\n\r\n",
]


@pytest.mark.parametrize("request_bytes", SMUGGLED)
async def test_a_request_whose_end_is_ambiguous_is_refused(
    request_bytes: bytes,
) -> None:
    """T11."""
    served: list[str] = []

    async def handler(request: web.Request) -> web.Response:
        await request.read()
        served.append(request.path)
        return web.Response(text="served")

    server = HttpServer(Address("127.0.0.1", 0))
    server.add_routes([web.post("/echo", handler), web.get("/secret", handler)])
    await server.start()
    try:
        answer = await _exchange(server.port, request_bytes)
        assert "/secret" not in served
        assert not answer or answer.startswith((b"HTTP/1.1 4", b"HTTP/1.0 4")), answer[:100]
    finally:
        await server.close()


async def _exchange(port: int, data: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(data)
        writer.write_eof()
        async with asyncio.timeout(10):
            return await reader.read()
    except ConnectionError:
        return b""
    finally:
        writer.close()


async def test_garbage_in_place_of_http_is_refused_quickly_and_fills_no_log(caplog: pytest.LogCaptureFixture) -> None:
    """N11."""
    server = HttpServer(Address("127.0.0.1", 0))
    await server.start()
    random = Random("garbage")
    try:
        began = asyncio.get_running_loop().time()
        for _ in range(100):
            answer = await _exchange(server.port, random.randbytes(random.randrange(1, 400)) + b"\r\n\r\n")
            assert not answer or b" 400 " in answer.split(b"\r\n")[0]
        assert asyncio.get_running_loop().time() - began < 5
        assert not caplog.records
    finally:
        await server.close()


async def test_hundreds_of_slow_sockets_take_neither_leadership_nor_the_place_of_peers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """T7, N13: 500 connections that send half a header, with room for 200, in front of a cluster of three."""
    from raftkit_http import listener

    monkeypatch.setattr(listener, "CONNECTIONS_PER_ADDRESS_MAX", 200)
    members = {f"n{number}": Node(f"http://127.0.0.1:{port}") for number, port in enumerate(free_ports(3), 1)}
    async with AsyncExitStack() as stack:
        rafts: dict[str, Any] = {}
        for node_id, node in members.items():
            opened = open_raft(node_id, storage="memory:", network=node.peer, data_dir=tmp_path / node_id)
            rafts[node_id] = await stack.enter_async_context(opened)
        await rafts["n1"].initialize(members)
        leader = (await rafts["n1"].wait(10).any_leader()).current_leader
        term = rafts[leader].metrics().value.current_term
        port = int(members[leader].peer.rpartition(":")[2])
        await rafts[leader].write(Put("before", b"x"))
        slow = []
        for number in range(500):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            stack.callback(writer.close)
            writer.write(b"POST /v1/write HTTP/1.1\r\nHost: local")
            slow.append(writer)
            if number % 50 == 0:
                await rafts[leader].write(Put(f"k{number}", b"x"))
        for node_id in members:
            await rafts[node_id].write(Put("after", node_id.encode()))  # followers forward over the crowded listener
        assert rafts[leader].metrics().value.current_leader == leader
        assert rafts[leader].metrics().value.current_term == term


@pytest.mark.virtual_time
async def test_ten_thousand_captured_messages_sent_again_change_nothing() -> None:
    """T4, N16: whoever sends them, they name a vote that is over, or a place in the log that is taken."""
    async with memory_cluster(3) as cluster:
        old = await cluster.leader()
        target_id = next(name for name in cluster.rafts if name != old.id)
        target = cluster.raft(target_id)
        captured: list[tuple[str, Any]] = []
        cluster.hub.pre_hook = lambda _src, dst, kind, message: (
            captured.append((kind, message)) if dst == target_id else None
        )
        for number in range(30):
            await old.write(Put(f"k{number}", b"x"))
        await asyncio.sleep(1)
        cluster.hub.pre_hook = None
        sender = PeerIdentity(old.id, old.store_id, 1)
        kinds = {kind for kind, _ in captured}
        assert {"append_entries", "heartbeat"} <= kinds
        # The one that sent them is gone, somebody else leads, and the log went on.
        await cluster.kill(old.id)
        leader = await cluster.leader()
        await leader.write(Put("later", b"y"))
        await asyncio.sleep(0.5)
        state = target.metrics().value
        before = (state.vote, state.last_log_index, state.current_leader, cluster.log(target_id)[:])
        for number in range(10_000):
            kind, message = captured[number % len(captured)]
            if kind in ("append_entries", "heartbeat", "vote", "pre_vote"):
                try:
                    await getattr(target._service, kind)(message, sender)
                except RaftError:
                    continue
        state = target.metrics().value
        assert (state.vote, state.last_log_index, state.current_leader, cluster.log(target_id)[:]) == before
        # Its timers neither: it still follows, and nobody campaigned.
        await asyncio.sleep(2)
        assert target.metrics().value.vote == before[0]
