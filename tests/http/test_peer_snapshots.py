"""Snapshots between peers over HTTP, on real sockets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from peer_pairs import AMPLE, BEAT, LEADER, MIB, VOTE, pair, until

from raftkit_core.errors import IdentityError, NetworkError, RemoteError, RPCTimeout, Unreachable
from raftkit_core.testing.recording_service import BytesSource, RecordingService
from raftkit_core.types.log_id import LogId
from raftkit_core.types.membership import StoredMembership
from raftkit_core.types.messages import InstallSnapshotRequest
from raftkit_core.types.snapshot import SnapshotMeta
from raftkit_http import snapshots
from raftkit_http.network import HttpNetworkFactory
from raftkit_http.settings import HttpSettings


def snapshot(size: int, chunk_bytes: int = 256 * 1024) -> tuple[InstallSnapshotRequest, BytesSource]:
    meta = SnapshotMeta(LogId(LEADER, 9), StoredMembership(), "ab-1", 0, size, "")
    return InstallSnapshotRequest(VOTE, meta), BytesSource(meta, bytes(range(256)) * (size // 256), chunk_bytes)


async def test_a_snapshot_arrives_whole_and_resumes_after_a_broken_stream() -> None:
    async with pair() as p:
        request, source = snapshot(4 * MIB)

        async def break_at_half(offset: int) -> None:
            if offset >= 2 * MIB:
                await until(lambda: p.service.snapshot_bytes.get("ab-1"))
                raise NetworkError("cable out")

        source.before_chunk = break_at_half
        with pytest.raises(NetworkError, match="cable out"):
            await p.net.install_snapshot(request, source, AMPLE)
        await until(lambda: p.service.stream_errors)
        kept = len(p.service.snapshot_bytes["ab-1"])
        assert 0 < kept <= 2 * MIB
        source.before_chunk = None
        answer = await p.net.install_snapshot(request, source, AMPLE)
        assert (answer.store_id, answer.vote) == (p.service.store_id, VOTE)
        assert source.opened_at == [0, kept]
        assert bytes(p.service.snapshot_bytes["ab-1"]) == source.content


async def test_a_long_installation_is_progress_and_a_stuck_stream_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshots, "KEEPALIVE_INTERVAL", 0.02)
    async with pair() as p:
        request, source = snapshot(MIB)

        async def install(message: Any) -> Any:
            await asyncio.sleep(1.2)
            return await RecordingService("n2").install_snapshot(request, 0, _nothing(), None)  # type: ignore[arg-type]

        p.service.reactions["install_snapshot"] = install
        await p.net.install_snapshot(request, source, 0.8)
        p.service.snapshot_bytes.clear()

        async def stuck(offset: int) -> None:
            await asyncio.sleep(3600)

        source.before_chunk = stuck
        with pytest.raises(RPCTimeout, match="no progress"):
            await p.net.install_snapshot(request, source, 0.2)


async def _nothing() -> AsyncIterator[bytes]:
    no_chunks: tuple[bytes, ...] = ()
    for chunk in no_chunks:
        yield chunk


async def test_heartbeats_pass_while_a_snapshot_streams() -> None:
    async with pair() as p:
        request, source = snapshot(32 * MIB)
        transfer = asyncio.ensure_future(p.net.install_snapshot(request, source, AMPLE))
        beats = 0
        while not transfer.done():
            await p.net.heartbeat(BEAT, AMPLE)
            beats += 1
        await transfer
        assert beats >= 5


def test_snapshots_share_one_pace() -> None:
    pace = snapshots.Pace(10)
    assert [pace.delay(20, 100.0), pace.delay(20, 100.0), pace.delay(10, 103.0), pace.delay(10, 200.0)] == [0, 2, 1, 0]
    assert snapshots.Pace(None).delay(2**40, 0.0) == 0


async def test_a_paced_snapshot_arrives_whole_and_no_faster() -> None:
    settings = HttpSettings.parse("http://127.0.0.1:0?snapshot_rate=16MiB")
    content = bytes(2 * MIB)
    meta = SnapshotMeta(LogId(LEADER, 9), StoredMembership(), "ab-1", 0, len(content), "")
    async with pair() as p:
        await p.source.close()
        p.source = HttpNetworkFactory(settings)
        net = p.source.connect("n2", p.target.advertised(), p.caller)
        began = asyncio.get_running_loop().time()
        await net.install_snapshot(InstallSnapshotRequest(VOTE, meta), BytesSource(meta, content), AMPLE)
        assert asyncio.get_running_loop().time() - began > 0.1  # 2 MiB at 16 MiB a second, but for the last chunk
        assert len(p.service.snapshot_bytes["ab-1"]) == len(content)


async def test_a_snapshot_nobody_announced_is_refused_and_a_ticket_is_good_once() -> None:
    async with pair() as p, aiohttp.ClientSession() as session:
        url = f"{p.target.server.url}/raft/v1/default/snapshot/ab-1?offset=0"
        for headers in ({}, {snapshots.TICKET_HEADER: "0" * 32}):
            async with session.put(url, data=b"poison", headers=headers) as response:
                assert response.status == 403
        request, source = snapshot(MIB)
        await p.net.install_snapshot(request, source, AMPLE)
        assert p.service.count("install_snapshot") == 1


async def test_more_than_the_announced_bytes_are_not_taken_also_when_no_size_was_announced() -> None:
    for announced in (MIB, 0):
        async with pair() as p:
            _, source = snapshot(2 * MIB)
            meta = SnapshotMeta(LogId(LEADER, 9), StoredMembership(), "ab-1", 0, announced, "")
            with pytest.raises((RemoteError, NetworkError)):
                await p.net.install_snapshot(InstallSnapshotRequest(VOTE, meta), source, AMPLE)
            await until(lambda: p.service.stream_errors)
            assert "bytes of the snapshot were sent" in str(p.service.stream_errors[0])
            assert len(p.service.snapshot_bytes["ab-1"]) <= announced


async def test_a_snapshot_that_comes_in_drops_ends_although_each_drop_is_in_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(snapshots, "CHUNK_TIMEOUT", 0.5)
    async with pair() as p:
        request, source = snapshot(MIB, chunk_bytes=16)

        async def drip(offset: int) -> None:
            await asyncio.sleep(0.05)

        source.before_chunk = drip
        with pytest.raises((RemoteError, NetworkError)):
            await p.net.install_snapshot(request, source, AMPLE)
        await until(lambda: p.service.stream_errors)
        assert "stalled" in str(p.service.stream_errors[0])
        assert 3 <= len(p.service.snapshot_bytes["ab-1"]) // 16 <= 30
        monkeypatch.setattr(snapshots, "CHUNK_TIMEOUT", AMPLE)
        _, source = snapshot(MIB)
        await p.net.install_snapshot(request, source, AMPLE)


async def test_what_a_node_does_with_the_bytes_is_not_counted_as_the_senders_slowness(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(snapshots, "CHUNK_TIMEOUT", 0.1)
    monkeypatch.setattr(snapshots, "RATE_MIN", 2**40)
    body = snapshots._Body(_stream(bytes(64), pieces=8), 64, 0)
    taken = 0
    async for chunk in body.chunks():
        taken += len(chunk)
        await asyncio.sleep(0.03)
    assert taken == 64


def _stream(content: bytes, pieces: int) -> aiohttp.StreamReader:
    reader = aiohttp.StreamReader(aiohttp.base_protocol.BaseProtocol(asyncio.get_running_loop()), 2**16)
    for start in range(0, len(content), len(content) // pieces):
        reader.feed_data(content[start : start + len(content) // pieces])
    reader.feed_eof()
    return reader


async def test_an_error_of_the_installation_reaches_the_sender() -> None:
    async with pair() as p:
        request, source = snapshot(MIB)

        def refuse(message: Any) -> Any:
            raise IdentityError("not that snapshot")

        p.service.reactions["install_snapshot"] = refuse
        with pytest.raises(RemoteError, match="not that snapshot"):
            await p.net.install_snapshot(request, source, AMPLE)


async def test_closing_ends_a_snapshot_under_way_on_both_sides() -> None:
    async with pair() as p:
        request, source = snapshot(MIB)

        async def stuck(offset: int) -> None:
            if offset:
                await asyncio.sleep(3600)

        source.before_chunk = stuck
        call = asyncio.ensure_future(p.net.install_snapshot(request, source, 60))
        await until(lambda: p.service.count("install_snapshot"))
        await p.net.close()
        with pytest.raises(Unreachable, match="closed"):
            await call
        await until(lambda: p.service.stream_errors)
