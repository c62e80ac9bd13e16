"""How far the peer transport is from bare aiohttp: appends beside a WebSocket, a snapshot beside a streamed upload.

``uv run python tests/benchmarks/bench_peer_transport.py``. Both sides of a pair live in one event loop, and ours and
the bare one take turns, so that a slow moment hits each. "bare" sends the very frames of ours and answers with the very
frames of ours; no frame is decoded, nobody says hello, nothing has a deadline. "ping-pong" waits for each answer,
"pipelined" has as many frames under way as ours; "window 1" is ours waiting for each answer too. Prints medians and
ratios; the budgets are 1.5 for an append beside the ping-pong, and 2.0 for a snapshot.

Both go through the loopback device, where ours asks the system not to pace what it sends (``frames.py`` says why): on a
system that paces (``sysctl net.ipv4.tcp_congestion_control`` says bbr) its pipelined frames of 64 KiB cost half as much
again without that, while a ping-pong is hardly ever paced.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
from aiohttp import web

from raftkit_core.network import wire
from raftkit_core.network.wire import Kind
from raftkit_core.testing.recording_service import RecordingService
from raftkit_core.types.entry import NORMAL, Entries
from raftkit_core.types.identity import PeerIdentity
from raftkit_core.types.log_id import LogId
from raftkit_core.types.membership import StoredMembership
from raftkit_core.types.messages import (
    AppendEntriesRequest,
    AppendEntriesResponse,
    InstallSnapshotRequest,
    InstallSnapshotResponse,
    Success,
)
from raftkit_core.types.snapshot import SnapshotMeta, SnapshotSource
from raftkit_core.types.vote import LeaderId, Vote
from raftkit_http.network import HttpNetworkFactory
from raftkit_http.settings import HttpSettings

LEADER = LeaderId(1, "n1")
VOTE = Vote(LEADER, True)
MIB = 1024 * 1024
ROUNDS = 7
APPENDS = 1500


class Light(RecordingService):
    """Answers at once and remembers nothing."""

    received = 0

    def append_entries(self, request: AppendEntriesRequest, peer: PeerIdentity) -> Awaitable[AppendEntriesResponse]:
        future: asyncio.Future[AppendEntriesResponse] = asyncio.get_running_loop().create_future()
        future.set_result(Success(self.store_id, request.entries[-1].log_id))
        return future

    async def snapshot_offset(self, request: InstallSnapshotRequest, peer: PeerIdentity) -> int:
        return 0

    async def install_snapshot(
        self, request: InstallSnapshotRequest, offset: int, chunks: AsyncIterator[bytes], peer: PeerIdentity
    ) -> InstallSnapshotResponse:
        self.received = 0
        async for chunk in chunks:
            self.received += len(chunk)
        return InstallSnapshotResponse(self.store_id, request.vote)


class Chunks(SnapshotSource):
    """The same MiB again and again."""

    def __init__(self, meta: SnapshotMeta) -> None:
        self.meta = meta
        self.chunk = bytes(MIB)

    async def open(self, offset: int = 0, chunk_bytes: int = MIB) -> AsyncIterator[bytes]:
        for _ in range(self.meta.size_bytes // MIB):
            yield self.chunk

    async def close(self) -> None:
        return


def append(entries: int, payload_bytes: int) -> AppendEntriesRequest:
    batch = Entries(LogId(LEADER, 7), 5, NORMAL, [b"x" * payload_bytes] * entries)
    return AppendEntriesRequest(VOTE, LogId(LEADER, 6), batch, LogId(LEADER, 6), 500)


# --- Bare -----------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def bare_server(answer: bytes) -> AsyncIterator[str]:
    async def socket(request: web.Request) -> web.WebSocketResponse:
        response = web.WebSocketResponse(compress=False, max_msg_size=0)
        await response.prepare(request)
        async for _ in response:
            await response.send_bytes(answer)
        return response

    async def upload(request: web.Request) -> web.Response:
        size = 0
        async for chunk in request.content.iter_chunked(MIB):
            size += len(chunk)
        return web.Response(text=str(size))

    app = web.Application(client_max_size=0)
    app.add_routes([web.get("/socket", socket), web.put("/upload", upload)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def bare_appends(socket: aiohttp.ClientWebSocketResponse, frame: bytes, window: int, count: int) -> float:
    began = time.perf_counter()
    sent = received = 0
    while received < count:
        while sent < count and sent - received < window:
            await socket.send_bytes(frame)
            sent += 1
        await socket.receive()
        received += 1
    return (time.perf_counter() - began) / count


async def our_appends(net: Any, request: AppendEntriesRequest, window: int, count: int) -> float:
    began = time.perf_counter()
    under_way: deque[Awaitable[Any]] = deque()
    for _ in range(count):
        if len(under_way) >= window:
            await under_way.popleft()
        under_way.append(net.append_entries(request, 10.0))
    while under_way:
        await under_way.popleft()
    return (time.perf_counter() - began) / count


async def bare_upload(http: aiohttp.ClientSession, url: str, size: int) -> float:
    chunk = bytes(MIB)

    async def body() -> AsyncIterator[bytes]:
        for _ in range(size // MIB):
            yield chunk

    began = time.perf_counter()
    async with http.put(f"{url}/upload", data=body()) as response:
        assert int(await response.text()) == size
    return time.perf_counter() - began


async def measure(mib: int) -> list[tuple[str, float, float, float]]:
    """Name, seconds of ours, seconds of the bare one, and the median of the ratios of each turn."""
    service = Light("n2")
    source = HttpNetworkFactory(HttpSettings.parse("http://127.0.0.1:0"))
    target = HttpNetworkFactory(HttpSettings.parse("http://127.0.0.1:0"))
    await target.serve("default", service)
    net = source.connect("n2", target.advertised(), RecordingService("n1"))
    rows: list[tuple[str, float, float, float]] = []
    answer = wire.encode_frame(Kind.ANSWER, 12345, 0, wire.encode_answer(Success(service.store_id, LogId(LEADER, 22))))
    try:
        async with bare_server(answer) as url, aiohttp.ClientSession() as http:
            for entries, size, window in ((1, 256, 16), (16, 256, 16), (64, 1024, 16)):
                request = append(entries, size)
                frame = wire.encode_frame(Kind.APPEND_ENTRIES, 12345, 10_000, wire.encode_append(request))
                async with http.ws_connect(f"{url}/socket", max_msg_size=0) as socket:
                    ours: list[float] = []
                    bare: list[float] = []
                    ping_pong: list[float] = []
                    single: list[float] = []
                    for _ in range(ROUNDS):
                        ping_pong.append(await bare_appends(socket, frame, 1, APPENDS))
                        ours.append(await our_appends(net, request, window, APPENDS))
                        bare.append(await bare_appends(socket, frame, window, APPENDS))
                        single.append(await our_appends(net, request, 1, APPENDS))
                name = f"append of {entries} x {size} B, window"
                rows.append((f"{name} {window}, ping-pong", *_middle(ours, ping_pong)))
                rows.append((f"{name} {window}, pipelined", *_middle(ours, bare)))
                rows.append((f"{name} 1, ping-pong", *_middle(single, ping_pong)))
            meta = SnapshotMeta(LogId(LEADER, 9), StoredMembership(), "ab-1", 0, mib * MIB, "")
            ours, bare = [], []
            for _ in range(3):
                bare.append(await bare_upload(http, url, mib * MIB))
                began = time.perf_counter()
                await net.install_snapshot(InstallSnapshotRequest(VOTE, meta), Chunks(meta), 30.0)
                ours.append(time.perf_counter() - began)
                assert service.received == mib * MIB
            rows.append((f"snapshot of {mib} MiB", *_middle(ours, bare)))
    finally:
        await source.close()
        await target.close()
    return rows


def _middle(ours: list[float], bare: list[float]) -> tuple[float, float, float]:
    ratios = [one / other for one, other in zip(ours, bare, strict=True)]
    return statistics.median(ours), statistics.median(bare), statistics.median(ratios)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--mib", type=int, default=256)
    for name, ours, bare, ratio in asyncio.run(measure(parser.parse_args().mib)):
        print(f"{name:47} ours {ours * 1e6:10.1f} us   bare aiohttp {bare * 1e6:10.1f} us   ratio {ratio:.2f}")


if __name__ == "__main__":
    main()
