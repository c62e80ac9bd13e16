"""Peers over HTTP keep the clauses T1 to T5 on real sockets."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import aiohttp
import pytest

from raftkit_core.errors import (
    AddressInUse,
    ConfigError,
    ForwardToLeader,
    IdentityError,
    NetworkError,
    PayloadTooLarge,
    PeerBusy,
    RemoteError,
    RPCError,
    RPCTimeout,
    Unreachable,
)
from raftkit_core.network import calls
from raftkit_core.network.wire import Kind, decode_frame, encode_frame, encode_request
from raftkit_core.testing.recording_service import BytesSource, RecordingService
from raftkit_core.types.entry import NORMAL, Entry
from raftkit_core.types.ids import MAX_FRAME_BYTES
from raftkit_core.types.log_id import LogId
from raftkit_core.types.membership import Node, StoredMembership
from raftkit_core.types.messages import (
    AppendEntriesRequest,
    ForwardRequest,
    ForwardResponse,
    HeartbeatRequest,
    InstallSnapshotRequest,
    ReadIndexRequest,
    ReadIndexResponse,
    Success,
    TransferLeaderRequest,
    VoteRequest,
)
from raftkit_core.types.snapshot import SnapshotMeta
from raftkit_core.types.vote import LeaderId, Vote
from raftkit_http import frames, peers, snapshots
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
        self.source, self.target = make_factory(), make_factory()
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


async def test_every_kind_of_call_is_answered_and_hello_comes_first_on_both_connections() -> None:
    async with pair() as p:
        assert await p.net.append_entries(append(0), AMPLE) == Success(p.service.store_id, LogId(LEADER, 0))
        assert await p.net.heartbeat(BEAT, AMPLE) == Success(p.service.store_id, None)
        assert (await p.net.vote(VoteRequest(VOTE, None), AMPLE)).granted
        assert (await p.net.pre_vote(VoteRequest(VOTE, None), AMPLE)).granted
        assert (await p.net.transfer_leader(TransferLeaderRequest(VOTE, None), AMPLE)).accepted
        assert (await p.net.read_index(ReadIndexRequest("lease", 5), AMPLE)).read_log_id is None
        assert (await p.net.forward(ForwardRequest("write", b"body", 5), AMPLE)).body == b"body"
        assert (await p.net.hello(AMPLE)).node_id == "n2"
        order = [kind for kind, _, _ in p.service.calls]
        assert order[:4] == ["hello", "append_entries", "hello", "heartbeat"]
        peer = p.service.calls[1][2]
        assert peer is not None
        assert (peer.node_id, peer.store_id) == ("n1", p.caller.store_id)


async def test_pipelined_appends_arrive_in_order_also_those_made_before_the_connection_is_open() -> None:
    async with pair() as p:
        await asyncio.gather(*[p.net.append_entries(append(index), AMPLE) for index in range(500)])
        arrived = [message.entries[0].index for kind, message, _ in p.service.calls if kind == "append_entries"]
        assert arrived == list(range(500))


async def test_answers_come_as_they_complete_not_in_the_order_of_requests() -> None:
    async with pair() as p:
        gates = [asyncio.get_running_loop().create_future() for _ in range(3)]
        p.service.reactions["append_entries"] = lambda request: gates[request.entries[0].index]
        waiting = [asyncio.ensure_future(p.net.append_entries(append(index), AMPLE)) for index in range(3)]
        await until(lambda: p.service.count("append_entries") >= 3)
        gates[2].set_result(Success("third", None))
        assert await waiting[2] == Success("third", None)
        assert not waiting[0].done()
        for gate in gates[:2]:
            gate.set_result(Success("s", None))
        await asyncio.gather(*waiting)


async def test_a_restarted_peer_is_reached_again_and_nothing_is_sent_twice() -> None:
    async with pair() as p:
        p.service.reactions["append_entries"] = lambda request: asyncio.get_running_loop().create_future()
        waiting = [asyncio.ensure_future(p.net.append_entries(append(index), 30)) for index in range(4)]
        await until(lambda: p.service.count("append_entries") >= 4)
        await p.restart_target()
        for result in await asyncio.gather(*waiting, return_exceptions=True):
            assert isinstance(result, NetworkError)
        p.service.reactions.clear()
        await p.net.append_entries(append(9), AMPLE)
        assert p.service.count("append_entries") == 5


async def test_a_port_nobody_listens_on_is_unreachable() -> None:
    async with pair() as p:
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            port = unused.getsockname()[1]
        net = p.source.connect("n2", Node(f"http://127.0.0.1:{port}"), p.caller)
        with pytest.raises(Unreachable, match="cannot connect to n2"):
            await net.heartbeat(BEAT, AMPLE)
        with pytest.raises(Unreachable):
            await net.hello(AMPLE)


async def test_a_refused_hello_is_unreachable_for_calls_and_typed_for_hello() -> None:
    async with pair() as p:
        p.caller.cluster = "other"
        with pytest.raises(Unreachable, match="this is cluster default, not other"):
            await p.net.append_entries(append(0), AMPLE)
        with pytest.raises(IdentityError, match="this is cluster default"):
            await p.net.hello(AMPLE)
        assert p.service.count("append_entries") == 0


async def test_a_group_that_is_not_served_here_is_refused_with_words() -> None:
    async with pair() as p:
        stranger = RecordingService("n1", group="g2")
        net = p.source.connect("n2", p.target.advertised(), stranger)
        with pytest.raises(IdentityError, match="'g2' is not served here"):
            await net.hello(AMPLE)


async def test_an_address_taken_over_by_another_node_is_refused_before_anything_else_is_sent() -> None:
    async with pair() as p:
        wrong = p.source.connect("n3", p.target.advertised(), p.caller)
        with pytest.raises(Unreachable, match="this is node n2, not n3"):
            await wrong.append_entries(append(0), AMPLE)
        assert p.service.count("append_entries") == 0


async def test_a_peer_that_never_answers_times_out_and_the_silent_connection_is_dropped() -> None:
    async with pair() as p:
        p.service.reactions["append_entries"] = lambda request: asyncio.get_running_loop().create_future()
        first = asyncio.ensure_future(p.net.append_entries(append(0), 0.2))
        second = asyncio.ensure_future(p.net.append_entries(append(1), 30))
        with pytest.raises(RPCTimeout):
            await first
        with pytest.raises(NetworkError, match="went silent"):
            await second
        p.service.reactions.clear()
        await p.net.append_entries(append(2), AMPLE)
        assert p.service.count("hello") == 2


@pytest.mark.parametrize("kind", ["forward", "read_index"])
async def test_a_client_in_a_hurry_breaks_no_other_call(kind: str) -> None:
    """Its leader may have no quorum, and answers nobody for a while: the connection is well."""
    async with pair() as p:
        gates: list[asyncio.Future[Any]] = []

        def held(request: Any) -> Any:
            gates.append(asyncio.get_running_loop().create_future())
            return gates[-1]

        p.service.reactions[kind] = held
        ask: Callable[[float], Any] = (
            (lambda seconds: p.net.forward(ForwardRequest("write", b"", 5), seconds))
            if kind == "forward"
            else (lambda seconds: p.net.read_index(ReadIndexRequest("lease", 5), seconds))
        )
        patient = asyncio.ensure_future(ask(30))
        await until(lambda: len(gates) == 1)
        for _ in range(3):
            with pytest.raises(RPCTimeout):
                await ask(0.03)
        await until(lambda: p.service.count("hello") >= 2)  # it was asked whether it is there
        gates[1].set_result(None)  # too late, for nobody
        gates[0].set_result(ForwardResponse(b"at last") if kind == "forward" else ReadIndexResponse(LogId(LEADER, 7)))
        await patient
        lane = p.net._data if kind == "forward" else p.net._control
        assert lane.is_open
        assert not lane._calls


async def test_a_connection_that_swallows_forwards_is_found_out_and_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    async with pair() as p:
        monkeypatch.setattr(p.net._data, "_dial_timeout", 0.2)
        await p.net.forward(ForwardRequest("write", b"", 5), AMPLE)
        for accepted in p.target._endpoint._accepted:
            accepted._frames.transport.pause_reading()  # as if the packets vanished
        patient = asyncio.ensure_future(p.net.forward(ForwardRequest("write", b"", 5), 30))
        await asyncio.sleep(0.01)
        with pytest.raises(RPCTimeout):
            await p.net.forward(ForwardRequest("write", b"", 5), 0.03)
        with pytest.raises(NetworkError, match="went silent"):
            await patient
        p.net._data._dial_timeout = AMPLE
        await p.net.forward(ForwardRequest("write", b"", 5), AMPLE)
        assert p.service.count("hello") == 2


async def test_a_server_that_accepts_and_says_nothing_is_unreachable_in_time() -> None:
    accepted: list[asyncio.StreamWriter] = []
    mute = await asyncio.start_server(lambda reader, writer: accepted.append(writer), "127.0.0.1", 0)
    try:
        async with pair() as p:
            net = p.source.connect("n2", Node(f"http://127.0.0.1:{mute.sockets[0].getsockname()[1]}"), p.caller)
            with pytest.raises(Unreachable):
                await net.heartbeat(BEAT, 0.2)
    finally:
        mute.close()
        for writer in accepted:
            writer.close()
            await writer.wait_closed()


async def test_errors_of_the_peer_keep_their_type_where_a_client_waits() -> None:
    async with pair() as p:

        def not_leader(request: Any) -> Any:
            raise ForwardToLeader("ask n3", leader="n3", leader_node=Node("http://n3:7401"))

        def broken(request: Any) -> Any:
            raise ZeroDivisionError("secret detail")

        p.service.reactions |= {"forward": not_leader, "append_entries": broken}
        with pytest.raises(ForwardToLeader) as caught:
            await p.net.forward(ForwardRequest("write", b"", 5), AMPLE)
        assert caught.value.leader_node == Node("http://n3:7401")
        with pytest.raises(RemoteError, match="ZeroDivisionError") as remote:
            await p.net.append_entries(append(0), AMPLE)
        assert "secret" not in str(remote.value)


async def test_an_append_of_many_megabytes_arrives_whole() -> None:
    async with pair() as p:
        request = append(0, bytes(8 * MIB), entries=7)
        await p.net.append_entries(request, 30)
        assert p.service.calls[-1][1] == request


async def test_a_frame_beyond_the_limit_is_refused_before_it_is_sent() -> None:
    async with pair() as p:
        with pytest.raises(PayloadTooLarge):
            await p.net.append_entries(append(0, bytes(16 * MIB), entries=4), AMPLE)
        with pytest.raises(PayloadTooLarge):
            await p.net.read_index(ReadIndexRequest("x" * 5000, 5), AMPLE)


async def test_heartbeats_do_not_wait_for_a_large_append_in_flight() -> None:
    async with pair() as p:
        await p.net.heartbeat(BEAT, AMPLE)
        gate = asyncio.get_running_loop().create_future()
        p.service.reactions["append_entries"] = lambda request: gate
        big = asyncio.ensure_future(p.net.append_entries(append(0, bytes(8 * MIB), entries=4), 30))
        await asyncio.sleep(0)
        beats = 0
        while p.service.count("append_entries") == 0:
            await p.net.heartbeat(BEAT, AMPLE)
            beats += 1
        assert beats >= 3
        await p.net.heartbeat(BEAT, AMPLE)
        gate.set_result(Success("s", None))
        await big


async def test_more_than_the_bound_of_pending_calls_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "CALLS_MAX", 3)
    async with pair() as p:
        p.service.reactions["append_entries"] = lambda request: asyncio.get_running_loop().create_future()
        waiting = [asyncio.ensure_future(p.net.append_entries(append(index), 30)) for index in range(4)]
        with pytest.raises(RPCError) as caught:
            await waiting[3]
        assert caught.value.code == "PEER_BUSY"
        await p.net.close()
        assert all(isinstance(r, Unreachable) for r in await asyncio.gather(*waiting[:3], return_exceptions=True))


async def test_closing_fails_pending_calls_at_once_on_both_sides() -> None:
    async with pair() as p:
        cancelled = asyncio.Event()

        async def endless(request: Any) -> Success:
            try:
                await asyncio.sleep(3600)
            finally:
                cancelled.set()
            raise AssertionError

        p.service.reactions["append_entries"] = endless
        call = asyncio.ensure_future(p.net.append_entries(append(0), 60))
        await until(lambda: p.service.count("append_entries") >= 1)
        begin = asyncio.get_running_loop().time()
        await p.source.close()
        with pytest.raises(NetworkError, match="closed"):
            await call
        await asyncio.wait_for(cancelled.wait(), AMPLE)
        await p.target.close()
        assert asyncio.get_running_loop().time() - begin < 2


# --- What strangers send ----------------------------------------------------------------------------------------------


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


# --- Snapshots --------------------------------------------------------------------------------------------------------


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
        source.before_chunk = None
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


# --- Listening --------------------------------------------------------------------------------------------------------


async def test_a_port_in_use_is_named_with_a_hint() -> None:
    async with pair() as p:
        port = p.target.server.port
        twin = make_factory(port)
        with pytest.raises(AddressInUse, match=f"port {port}") as caught:
            await twin.serve("default", RecordingService("n9"))
        assert str(port) in (caught.value.hint or "")
        await twin.close()


async def test_routes_are_added_before_the_server_starts_and_refused_after() -> None:
    async with pair() as p:
        with pytest.raises(ConfigError, match="before the HTTP server starts"):
            p.target.server.add_routes([])


async def test_two_groups_share_one_listener_and_end_one_by_one() -> None:
    async with pair() as p:
        other = RecordingService("n2", group="g2")
        await p.target.serve("g2", other)
        net = p.source.connect("n2", p.target.advertised(), RecordingService("n1", group="g2"))
        await net.heartbeat(BEAT, AMPLE)
        await p.net.heartbeat(BEAT, AMPLE)
        await p.target.stop_serving("g2")
        await p.net.heartbeat(BEAT, AMPLE)
        with pytest.raises(RPCError):
            await net.heartbeat(BEAT, AMPLE)
        assert other.count("heartbeat") == 1
