"""Peers over HTTP keep the clauses T1 to T5 on real sockets."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from peer_pairs import AMPLE, BEAT, LEADER, MIB, VOTE, append, make_factory, pair, until

from raftkit_core.errors import (
    AddressInUse,
    ConfigError,
    ForwardToLeader,
    IdentityError,
    NetworkError,
    PayloadTooLarge,
    RemoteError,
    RPCError,
    RPCTimeout,
    Unreachable,
)
from raftkit_core.network import calls, serving
from raftkit_core.testing.ports import free_urls
from raftkit_core.testing.recording_service import RecordingService
from raftkit_core.types.log_id import LogId
from raftkit_core.types.membership import Node
from raftkit_core.types.messages import (
    ForwardRequest,
    ForwardResponse,
    ReadIndexRequest,
    ReadIndexResponse,
    Success,
    TransferLeaderRequest,
    VoteRequest,
)


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
        (nowhere,) = free_urls(1)
        net = p.source.connect("n2", Node(nowhere), p.caller)
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


async def test_as_many_calls_as_a_peer_may_have_pending_keep_no_other_from_being_read() -> None:
    """A leader without a quorum owes answers to a thousand forwarded writes. Entries that would settle them, and a
    hello that asks whether the connection still is one, come on the same connection."""
    assert serving.REQUESTS_MAX > calls.CALLS_MAX
    assert serving.REQUEST_BYTES_MAX > calls.CALL_BYTES_MAX
    async with pair() as p:
        gate = asyncio.get_running_loop().create_future()
        p.service.reactions["forward"] = lambda request: gate
        await p.net.append_entries(append(0), AMPLE)
        waiting = [p.net.forward(ForwardRequest("write", b"body", 30_000), 30) for _ in range(1100)]
        assert (await p.net._data.hello(AMPLE)).node_id == "n2"
        assert p.service.count("forward") == 1100
        assert await p.net.append_entries(append(1), AMPLE) == Success(p.service.store_id, LogId(LEADER, 1))
        gate.set_result(ForwardResponse(b"done"))
        assert {(await call).body for call in waiting} == {b"done"}


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
