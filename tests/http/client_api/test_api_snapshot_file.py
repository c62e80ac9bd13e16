"""``GET /v1/snapshot``: whole and as announced, or an error; through the client, and raw."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from raftkit_core import Node, open_raft
from raftkit_core.errors import NetworkError, NotFound, StorageCorrupt, Unreachable
from raftkit_core.storage.snapshot_format import SnapshotDecoder
from raftkit_core.testing.ports import free_urls
from raftkit_core.types.membership import StoredMembership
from raftkit_core.types.snapshot import SnapshotMeta, SnapshotSource
from raftkit_http.client import HttpClusterClient


async def test_a_node_gives_the_bytes_of_its_snapshot() -> None:
    url = free_urls(1)[0]
    async with open_raft("n1", storage="memory:", network=url) as raft, HttpClusterClient([url]) as client:
        await client.initialize({"n1": Node(url)})
        with pytest.raises(NotFound, match="no snapshot yet"):
            [chunk async for chunk in client.read_snapshot(url)]
        await client.kv_put("k", b"v" * 700_000)
        await client.trigger_snapshot(url)
        held = (await raft.wait(20).metrics(lambda m: m.snapshot is not None, "a snapshot")).snapshot
        for address in (url, None):
            data = b"".join([chunk async for chunk in client.read_snapshot(address)])
            decoder = SnapshotDecoder()
            decoder.feed(data)
            assert decoder.finish().last_log_id == held
        async with aiohttp.ClientSession() as session, session.get(f"{url}/v1/snapshot") as response:
            assert response.content_length == len(data)
            assert response.headers["Raftkit-Snapshot-Sha256"] == hashlib.sha256(data).hexdigest()


async def test_where_nobody_listens_nobody_is_reached() -> None:
    async with HttpClusterClient([free_urls(1)[0]]) as client:
        with pytest.raises(Unreachable):
            [chunk async for chunk in client.read_snapshot()]


@pytest.mark.parametrize(
    ("sent", "length", "expected"), [(b"abd", 3, StorageCorrupt), (b"ab", 3, NetworkError)], ids=["changed", "cut"]
)
async def test_a_stream_that_is_not_what_was_announced_is_an_error(
    sent: bytes, length: int, expected: type[Exception]
) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Raftkit-Snapshot-Sha256": hashlib.sha256(b"abc").hexdigest()})
        response.content_length = length
        await response.prepare(request)
        await response.write(sent)
        assert request.transport is not None
        request.transport.close()
        return response

    app = web.Application()
    app.router.add_get("/v1/snapshot", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    try:
        async with HttpClusterClient([f"http://127.0.0.1:{port}"]) as client:
            with pytest.raises(expected):
                [chunk async for chunk in client.read_snapshot()]
    finally:
        await runner.cleanup()


class BrokenSource(SnapshotSource):
    """Ends in the middle."""

    def __init__(self, error: Exception) -> None:
        self.meta = SnapshotMeta(None, StoredMembership(), "a1", 0, 1000, "0" * 64)
        self._error = error

    async def open(self, offset: int = 0, chunk_bytes: int = 1) -> AsyncIterator[bytes]:
        yield b"x" * 100
        raise self._error

    async def close(self) -> None: ...


@pytest.mark.parametrize("error", [StorageCorrupt("short"), OSError("disk"), TimeoutError()], ids=["own", "os", "late"])
async def test_a_stream_that_fails_in_the_middle_ends_there(error: Exception, api_node: Any, fake_raft: Any) -> None:
    """An error document among the bytes would be taken for some of them, and the connection for one that is whole."""

    async def get_snapshot() -> SnapshotSource:
        return BrokenSource(error)

    raft = fake_raft()
    raft.get_snapshot = get_snapshot
    async with api_node(raft) as node:
        reader, writer = await asyncio.open_connection("127.0.0.1", node.server.port)
        writer.write(b"GET /v1/snapshot HTTP/1.1\r\nHost: localhost\r\n\r\n")
        try:
            async with asyncio.timeout(60):
                received = await reader.read()
        except ConnectionResetError:
            received = b""
        finally:
            writer.close()
        assert received.count(b"HTTP/1.1") <= 1
        assert b"raftkit.error" not in received


async def test_a_reader_that_goes_away_is_not_an_error_of_the_node(
    api_node: Any, fake_raft: Any, caplog: pytest.LogCaptureFixture
) -> None:
    left = asyncio.Event()

    class Slow(BrokenSource):
        async def open(self, offset: int = 0, chunk_bytes: int = 1) -> AsyncIterator[bytes]:
            yield b"x" * 100
            await left.wait()
            for _ in range(8):
                yield b"x" * 100

    async def get_snapshot() -> SnapshotSource:
        return Slow(OSError())

    raft = fake_raft()
    raft.get_snapshot = get_snapshot
    async with api_node(raft) as node:
        reader, writer = await asyncio.open_connection("127.0.0.1", node.server.port)
        writer.write(b"GET /v1/snapshot HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await reader.readuntil(b"x" * 100)
        writer.transport.abort()
        while node.server.listener.connections:  # noqa: ASYNC110 (what is waited for is plain data)
            await asyncio.sleep(0.001)
        left.set()
        answered = "raftkit_http_requests_total", {"route": "/v1/snapshot", "status": "200"}
        async with asyncio.timeout(60):
            while not node.api.metrics.registry.get_sample_value(*answered):  # noqa: ASYNC110 (plain data)
                await asyncio.sleep(0.001)
    assert not [record for record in caplog.records if record.levelname in ("ERROR", "WARNING")]
