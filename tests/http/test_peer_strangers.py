"""What strangers send to a peer port, or answer on one: refused, and it costs nobody else anything."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import aiohttp
import pytest
from peer_pairs import AMPLE, BEAT, MIB, Pair, append, make_factory, pair

from raftkit_core.errors import PeerBusy, RPCTimeout, Unreachable
from raftkit_core.network import calls
from raftkit_core.network.wire import Kind, decode_frame, encode_frame, encode_request
from raftkit_core.testing.recording_service import RecordingService
from raftkit_core.types.ids import MAX_FRAME_BYTES
from raftkit_core.types.membership import Node
from raftkit_http import frames, peers


class RawPeer:
    """A connection as a peer has it, with the frames written by hand."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, frame: bytes) -> None:
        self.writer.write(len(frame).to_bytes(4, "big") + frame)

    async def receive(self) -> bytes:
        size = int.from_bytes(await self.reader.readexactly(4), "big")
        return await self.reader.readexactly(size)

    async def is_closed_without_answer(self) -> bool:
        try:
            return await asyncio.wait_for(self.reader.read(1), AMPLE) == b""
        except ConnectionError:
            return True


REQUEST = "GET /raft/v1/default/{lane} HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n"


@asynccontextmanager
async def raw_peer(p: Pair, lane: str) -> AsyncIterator[RawPeer]:
    reader, writer = await asyncio.open_connection("127.0.0.1", p.target.server.port)
    headers = "".join(f"{name}: {value}\r\n" for name, value in frames.UPGRADE_HEADERS.items())
    writer.write(REQUEST.format(lane=lane, headers=headers).encode())
    head = await reader.readuntil(b"\r\n\r\n")
    assert head == frames.SWITCHING
    try:
        yield RawPeer(reader, writer)
    finally:
        writer.close()


async def greet(raw: RawPeer, p: Pair) -> None:
    hello = encode_request(Kind.HELLO, p.caller.local_hello("n2"))
    raw.send(encode_frame(Kind.HELLO, 0, 1000, hello))
    assert decode_frame(await raw.receive()).kind == Kind.ANSWER


GARBAGE = [b"", b"\xc1", b"GET / HTTP/1.1", b"\x94\x63\x01\x01\xc0", b"\x94\x04\x01\x01\xc0", b"\x91" * 3000]


@pytest.mark.parametrize("garbage", GARBAGE, ids=[data[:6].hex() or "empty" for data in GARBAGE])
@pytest.mark.parametrize("greeted", [False, True], ids=["before hello", "after hello"])
async def test_a_garbage_frame_closes_that_connection_and_nothing_else(garbage: bytes, greeted: bool) -> None:
    async with pair() as p:
        await p.net.heartbeat(BEAT, AMPLE)
        async with raw_peer(p, "control") as raw:
            if greeted:
                await greet(raw, p)
            raw.send(garbage)
            assert await raw.is_closed_without_answer()
        await p.net.heartbeat(BEAT, AMPLE)


async def test_nothing_is_believed_before_hello() -> None:
    async with pair() as p:
        async with raw_peer(p, "control") as raw:
            raw.send(encode_frame(Kind.HEARTBEAT, 1, 100, encode_request(Kind.HEARTBEAT, BEAT)))
            assert await raw.is_closed_without_answer()
        assert p.service.calls == []


async def test_a_large_frame_or_an_append_does_not_belong_on_the_control_connection() -> None:
    async with pair() as p:
        for frame in (
            encode_frame(Kind.APPEND_ENTRIES, 1, 100, encode_request(Kind.APPEND_ENTRIES, append(0))),
            encode_frame(Kind.HEARTBEAT, 1, 100, b"\xc4\xff" + bytes(255) * 20),
        ):
            async with raw_peer(p, "control") as raw:
                await greet(raw, p)
                raw.send(frame)
                assert await raw.is_closed_without_answer()
        assert p.service.count("append_entries") == 0


async def test_a_connection_that_says_no_hello_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "HELLO_DEADLINE", 0.05)
    async with pair() as p, raw_peer(p, "data") as raw:
        assert await raw.is_closed_without_answer()
        monkeypatch.setattr(peers, "HELLO_DEADLINE", AMPLE)
        await p.net.append_entries(append(0), AMPLE)


async def test_a_browser_is_no_peer() -> None:
    async with pair() as p, aiohttp.ClientSession() as session:
        url = f"{p.target.server.url}/raft/v1/default/control"
        async with session.get(url, headers={"Raftkit-Frames": "1", "Origin": "http://evil.example"}) as answer:
            assert answer.status == 403
        async with session.get(url) as answer:
            assert answer.status == 426


async def test_frames_come_in_whatever_pieces_the_network_makes_of_them() -> None:
    async with pair() as p, raw_peer(p, "control") as raw:
        await greet(raw, p)
        beat = encode_request(Kind.HEARTBEAT, BEAT)
        pieces = [encode_frame(Kind.HEARTBEAT, number, 1000, beat) for number in range(1, 6)]
        stream = b"".join(len(piece).to_bytes(4, "big") + piece for piece in pieces)
        for start in range(0, len(stream), 7):
            raw.writer.write(stream[start : start + 7])
            await asyncio.sleep(0)
        raw.writer.write(stream)
        assert [decode_frame(await raw.receive()).request_id for _ in range(10)] == [1, 2, 3, 4, 5] * 2


async def test_a_length_no_frame_has_closes_the_connection() -> None:
    async with pair() as p, raw_peer(p, "data") as raw:
        await greet(raw, p)
        raw.writer.write((MAX_FRAME_BYTES + 1).to_bytes(4, "big"))
        assert await raw.is_closed_without_answer()
        assert p.target._endpoint.refused_frames == 1


async def test_a_stranger_cannot_make_a_node_hold_a_large_frame() -> None:
    """Until it has said hello, a data connection takes no more than a control connection does."""
    async with pair() as p, raw_peer(p, "data") as raw:
        raw.writer.write((peers.CONTROL_FRAME_BYTES + 1).to_bytes(4, "big"))
        assert await raw.is_closed_without_answer()
        assert p.target._endpoint.refused_frames == 1
        async with raw_peer(p, "data") as known:
            await greet(known, p)
            entries = encode_request(Kind.APPEND_ENTRIES, append(0, bytes(MIB)))
            known.send(encode_frame(Kind.APPEND_ENTRIES, 1, 1000, entries))
            assert decode_frame(await known.receive()).kind == Kind.ANSWER


async def test_a_stranger_that_is_called_cannot_make_the_caller_hold_a_large_frame() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(frames.SWITCHING)
        await reader.readexactly(4)
        writer.write((MIB).to_bytes(4, "big"))
        await reader.read()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    factory = make_factory()
    try:
        net = factory.connect(
            "n2", Node(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"), RecordingService("n1")
        )
        with pytest.raises(Unreachable, match=f"a frame of {MIB} bytes"):
            await net.append_entries(append(0), AMPLE)
    finally:
        await factory.close()
        server.close()


async def test_a_frame_that_never_becomes_whole_ends_its_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """A peer that announces a frame and then sends a byte now and then would hold memory for ever."""
    monkeypatch.setattr(frames, "FRAME_DEADLINE", 0.1)
    async with pair() as p, raw_peer(p, "data") as raw:
        await greet(raw, p)
        raw.writer.write((MAX_FRAME_BYTES).to_bytes(4, "big"))

        async def dribble() -> None:
            while True:
                raw.writer.write(b"x")
                await asyncio.sleep(0.02)

        dribbling = asyncio.create_task(dribble())
        assert await raw.is_closed_without_answer()
        dribbling.cancel()
        assert p.target._endpoint.refused_frames == 1


async def test_whole_frames_in_pieces_outlive_the_deadline_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frames, "FRAME_DEADLINE", 0.4)
    async with pair() as p, raw_peer(p, "control") as raw:
        await greet(raw, p)
        rest = b""
        for number in range(1, 11):  # at every moment a frame is half here, and never the same for long
            frame = encode_frame(Kind.HEARTBEAT, number, 1000, encode_request(Kind.HEARTBEAT, BEAT))
            data = len(frame).to_bytes(4, "big") + frame
            raw.writer.write(rest + data[:9])
            rest = data[9:]
            await asyncio.sleep(0.06)
        raw.writer.write(rest)
        assert [decode_frame(await raw.receive()).request_id for _ in range(10)] == list(range(1, 11))


async def test_connections_that_said_no_hello_make_room_for_one_that_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "CONNECTIONS_MAX", 3)
    async with pair() as p, raw_peer(p, "control") as known:
        await greet(known, p)
        async with raw_peer(p, "control") as first, raw_peer(p, "control"), raw_peer(p, "control") as last:
            assert await first.is_closed_without_answer()
            await greet(last, p)
            await greet(known, p)


@pytest.mark.parametrize("lane", ["control", "data"])
async def test_the_oldest_connections_of_one_peer_make_room_for_its_newest(lane: str) -> None:
    """A node uses one connection of each kind: who opens many under its name holds no more than a few."""
    async with pair() as p, AsyncExitStack() as stack:
        await p.net.heartbeat(BEAT, AMPLE)
        await p.net.append_entries(append(0), AMPLE)
        opened = []
        for _ in range(3 * peers.CONNECTIONS_PER_PEER_MAX):
            opened.append(await stack.enter_async_context(raw_peer(p, lane)))
            await greet(opened[-1], p)
        for raw in opened[: -peers.CONNECTIONS_PER_PEER_MAX]:
            assert await raw.is_closed_without_answer()
        for raw in opened[-peers.CONNECTIONS_PER_PEER_MAX :]:
            await greet(raw, p)
        other = RecordingService("n3")
        another = p.source.connect("n2", p.target.advertised(), other)
        await another.heartbeat(BEAT, AMPLE)
        await greet(opened[-1], p)
        await p.net.heartbeat(BEAT, AMPLE)  # the node itself connects again where its own was among the oldest
        await p.net.append_entries(append(1), AMPLE)


async def test_what_a_slow_peer_has_not_read_counts_as_pending(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls nobody waits for any more still lie in the connection's buffer: more would pile up there without end."""
    monkeypatch.setattr(calls, "CALL_BYTES_MAX", 24 * MIB)
    async with pair() as p:
        await p.net.append_entries(append(0), AMPLE)
        link = p.net._data._connection.link  # type: ignore[union-attr]
        for accepted in p.target._endpoint._accepted:
            accepted._frames.transport.pause_reading()  # it reads nothing from now on
        big = append(0, bytes(15 * MIB))
        calling = p.net.append_entries(big, 0.05)
        # As if it answered something now and then, so that the connection is not given up.
        p.net._data._connection.heard_at = asyncio.get_running_loop().time() + 60  # type: ignore[union-attr]
        with pytest.raises(RPCTimeout):
            await calling
        with pytest.raises(PeerBusy):
            await p.net.append_entries(big, 0.05)
        assert link is p.net._data._connection.link  # type: ignore[union-attr]


async def serve_raw(answer: bytes) -> asyncio.Server:
    """A rogue server that answers every request with the same bytes."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()
        writer.close()

    return await asyncio.start_server(handle, "127.0.0.1", 0)


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/latest\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.9\r\n\r\n",
        b"HTTP/1.1 101 Switching\r\nUpgrade: tcp\r\nConnection: upgrade\r\n\r\n",
    ],
    ids=["redirect", "no upgrade", "not http", "other frames"],
)
async def test_a_rogue_server_is_unreachable(answer: bytes) -> None:
    rogue = await serve_raw(answer)
    try:
        async with pair() as p:
            net = p.source.connect("n2", Node(f"http://127.0.0.1:{rogue.sockets[0].getsockname()[1]}"), p.caller)
            with pytest.raises(Unreachable):
                await net.heartbeat(BEAT, AMPLE)
    finally:
        rogue.close()
