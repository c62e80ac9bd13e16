"""Clauses T1 to T5 of :class:`~raftkit_core.network.interface.RaftNetwork`, each as named tests.

::

    class TestMyNetwork(NetworkConformance):
        url = "mynet://127.0.0.1:0"  # of an installed plugin, as in --network; port 0 lets the system choose

The peers are :class:`~raftkit_core.testing.recording_service.RecordingService`, so no Raft runs here: what is proved is
what the transport does with calls. Deadlines are tenths of a second, so cases run on the real clock in about that time.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from hashlib import sha256
from typing import Any

import pytest

from raftkit_core.errors import (
    ConfigError,
    ForwardToLeader,
    IdentityError,
    NetworkError,
    PayloadTooLarge,
    RemoteError,
    RPCError,
    RPCTimeout,
    StorageError,
    Unreachable,
)
from raftkit_core.network.interface import RaftNetwork, RaftNetworkFactory
from raftkit_core.plugins import load_plugins
from raftkit_core.testing.conformance.kit import ConformanceKit, same_bytes
from raftkit_core.testing.recording_service import BytesSource, RecordingService
from raftkit_core.types.entry import NORMAL, Entry
from raftkit_core.types.ids import MAX_FRAME_BYTES
from raftkit_core.types.log_id import LogId
from raftkit_core.types.membership import Node, StoredMembership
from raftkit_core.types.messages import (
    AppendEntriesRequest,
    ForwardRequest,
    HeartbeatRequest,
    InstallSnapshotRequest,
    ReadIndexRequest,
    Success,
    TransferLeaderRequest,
    VoteRequest,
)
from raftkit_core.types.snapshot import SnapshotMeta
from raftkit_core.types.vote import LeaderId, Vote

LEADER = LeaderId(1, "n1")
VOTE = Vote(LEADER, True)
BEAT = HeartbeatRequest(VOTE, None, None, 500)
LONG = 20.0
"""Seconds: more than anything here may take."""
SHORT = 0.3
"""Seconds a call waits for an answer that does not come."""
MIB = 1024 * 1024


def append(index: int, payload: bytes = b"x") -> AppendEntriesRequest:
    prev = LogId(LEADER, index - 1) if index else None
    return AppendEntriesRequest(VOTE, prev, [Entry(LogId(LEADER, index), 0, NORMAL, payload)], None, 500)


def announced(content: bytes, snapshot_id: str = "aa-01") -> InstallSnapshotRequest:
    meta = SnapshotMeta(LogId(LEADER, 9), StoredMembership(), snapshot_id, 0, len(content), sha256(content).hexdigest())
    return InstallSnapshotRequest(VOTE, meta)


def stalling() -> tuple[InstallSnapshotRequest, BytesSource]:
    """A snapshot of several chunks whose second one never comes."""
    content = b"s" * 300_000
    request = announced(content)
    source = BytesSource(request.meta, content)

    async def never(offset: int) -> None:
        if offset:
            await asyncio.Event().wait()

    source.before_chunk = never
    return request, source


async def until(condition: Callable[[], object]) -> None:
    """Let everybody work until ``condition`` holds."""
    async with asyncio.timeout(LONG):
        while not condition():  # noqa: ASYNC110 (what is waited for is plain data)
            await asyncio.sleep(0.001)


def future() -> asyncio.Future[Any]:
    return asyncio.get_running_loop().create_future()


class Pair:
    """n1 calls n2."""

    def __init__(self, kit: NetworkConformance) -> None:
        self.kit = kit
        self.source, self.target = kit.factory("n1"), kit.factory("n2")
        self.caller, self.service = RecordingService("n1"), RecordingService("n2")
        self.net: RaftNetwork
        self.address: Node

    def arrived(self, kind: str) -> list[Any]:
        return [message for known, message, _ in self.service.calls if known == kind]

    async def restart_target(self) -> None:
        """The same address again, as a restarted process would have it."""
        await self.target.close()
        self.target = self.kit.factory("n2", self.address.peer)
        await self.target.serve("default", self.service)


class NetworkConformance(ConformanceKit):
    """Give ``url`` or :meth:`factory`."""

    interface = RaftNetwork
    url: str | None = None

    def factory(self, node_id: str, peer: str | None = None) -> RaftNetworkFactory:
        """A transport for ``node_id`` on an address of its own; with ``peer`` on exactly that advertised address."""
        url = peer or self.url
        if url is None:
            raise NotImplementedError("give url = '…' or factory() in the subclass")
        return load_plugins().network(url, self.context(node_id))

    @asynccontextmanager
    async def pair(self) -> AsyncIterator[Pair]:
        made = Pair(self)
        try:
            await made.target.serve("default", made.service)
            made.address = made.target.advertised()
            made.net = made.source.connect("n2", made.address, made.caller)
            yield made
        finally:
            await made.source.close()
            await made.target.close()

    # --- T1: hello ----------------------------------------------------------------------------------------------------

    async def test_t1_every_kind_of_call_is_answered_after_a_hello(self) -> None:
        async with self.pair() as p:
            assert await p.net.append_entries(append(0), LONG) == Success(p.service.store_id, LogId(LEADER, 0))
            assert await p.net.heartbeat(BEAT, LONG) == Success(p.service.store_id, None)
            assert (await p.net.vote(VoteRequest(VOTE, None), LONG)).granted
            assert (await p.net.pre_vote(VoteRequest(VOTE, None), LONG)).granted
            assert (await p.net.transfer_leader(TransferLeaderRequest(VOTE, None), LONG)).accepted
            assert (await p.net.read_index(ReadIndexRequest("lease", 5), LONG)).read_log_id is None
            assert (await p.net.forward(ForwardRequest("write", b"body", 5), LONG)).body == b"body"
            assert p.service.calls[0][0] == "hello"

    async def test_t1_the_handlers_are_told_who_calls(self) -> None:
        async with self.pair() as p:
            await p.net.append_entries(append(0), LONG)
            await p.net.heartbeat(BEAT, LONG)
            peers = [peer for kind, _, peer in p.service.calls if kind != "hello"]
            assert {(peer.node_id, peer.store_id) for peer in peers if peer} == {("n1", p.caller.store_id)}
            assert None not in peers

    async def test_t1_hello_says_who_is_there(self) -> None:
        async with self.pair() as p:
            answer = await p.net.hello(LONG)
            assert (answer.node_id, answer.store_id, answer.cluster) == ("n2", p.service.store_id, "default")
            assert p.arrived("hello")[0].store_id == p.caller.store_id

    async def test_t1_a_refused_hello_is_unreachable_for_calls_and_typed_for_hello(self) -> None:
        async with self.pair() as p:
            p.service.cluster = "another"
            with pytest.raises(IdentityError):
                await p.net.hello(LONG)
            with pytest.raises(Unreachable):
                await p.net.append_entries(append(0), LONG)
            with pytest.raises(Unreachable):
                await p.net.vote(VoteRequest(VOTE, None), LONG)
            assert p.arrived("append_entries") == p.arrived("vote") == []

    async def test_t1_who_answers_as_somebody_else_is_told_nothing(self) -> None:
        """The address was given to another node: its hello is refused here, before anything else is sent."""
        async with self.pair() as p:
            p.service.reactions["hello"] = lambda request: _hello_of("n9")
            with pytest.raises(Unreachable):
                await p.net.append_entries(append(0), LONG)
            with pytest.raises(Unreachable):
                await p.net.vote(VoteRequest(VOTE, None), LONG)
            assert p.arrived("append_entries") == p.arrived("vote") == []

    async def test_t1_a_group_that_is_not_served_is_refused(self) -> None:
        async with self.pair() as p:
            stranger = p.source.connect("n2", p.address, RecordingService("n1", group="other"))
            with pytest.raises(RPCError):
                await stranger.append_entries(append(0), LONG)
            assert p.service.calls == []

    async def test_t1_a_restarted_peer_is_greeted_again(self) -> None:
        async with self.pair() as p:
            await p.net.append_entries(append(0), LONG)
            before = p.service.count("hello")
            await p.restart_target()
            await _until_answered(lambda: p.net.append_entries(append(1), 1.0))
            assert p.service.count("hello") > before

    # --- T2: order ----------------------------------------------------------------------------------------------------

    async def test_t2_appends_arrive_in_the_order_of_the_calls(self) -> None:
        async with self.pair() as p:
            if not p.net.pipelined:
                pytest.skip("the transport says pipelined = False")
            await asyncio.gather(*[p.net.append_entries(append(index), LONG) for index in range(300)])
            assert [message.entries[0].index for message in p.arrived("append_entries")] == list(range(300))

    async def test_t2_control_messages_arrive_in_the_order_of_the_calls(self) -> None:
        async with self.pair() as p:
            if not p.net.pipelined:
                pytest.skip("the transport says pipelined = False")
            votes = [Vote(LeaderId(term, "n1"), False) for term in range(1, 101)]
            await asyncio.gather(*[p.net.vote(VoteRequest(vote, None), LONG) for vote in votes])
            assert [message.vote for message in p.arrived("vote")] == votes

    async def test_t2_answers_come_when_they_are_ready_not_in_order(self) -> None:
        async with self.pair() as p:
            if not p.net.pipelined:
                pytest.skip("the transport says pipelined = False")
            gates = [future() for _ in range(3)]
            p.service.reactions["append_entries"] = lambda request: gates[request.entries[0].index]
            waiting = [asyncio.ensure_future(p.net.append_entries(append(index), LONG)) for index in range(3)]
            await until(lambda: p.service.count("append_entries") == 3)
            gates[2].set_result(Success("third", None))
            assert await waiting[2] == Success("third", None)
            assert not waiting[0].done()
            for gate in gates[:2]:
                gate.set_result(Success("s", None))
            await asyncio.gather(*waiting)

    # --- T3: heartbeats do not wait -----------------------------------------------------------------------------------

    async def test_t3_a_heartbeat_does_not_wait_for_an_append_without_an_answer(self) -> None:
        async with self.pair() as p:
            gate = future()
            p.service.reactions["append_entries"] = lambda request: gate
            waiting = asyncio.ensure_future(p.net.append_entries(append(0, b"x" * MIB), LONG))
            await until(lambda: p.service.count("append_entries"))
            for _ in range(3):
                await p.net.heartbeat(BEAT, LONG)
                assert (await p.net.vote(VoteRequest(VOTE, None), LONG)).granted
            assert not waiting.done()
            gate.set_result(Success("s", None))
            await waiting

    async def test_t3_a_heartbeat_does_not_wait_for_a_snapshot(self) -> None:
        async with self.pair() as p:
            content = b"s" * 300_000
            source, gate = BytesSource(announced(content).meta, content), asyncio.Event()

            async def wait_in_the_middle(offset: int) -> None:
                if offset:
                    await gate.wait()

            source.before_chunk = wait_in_the_middle
            sending = asyncio.ensure_future(p.net.install_snapshot(announced(content), source, LONG))
            await until(lambda: p.service.count("install_snapshot"))
            for _ in range(3):
                await p.net.heartbeat(BEAT, LONG)
                await p.net.append_entries(append(0), LONG)
            assert not sending.done()
            gate.set()
            await sending

    # --- T4: deadlines ------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("kind", ["append_entries", "heartbeat", "vote", "forward", "read_index"])
    async def test_t4_a_call_without_an_answer_ends_in_time(self, kind: str) -> None:
        async with self.pair() as p:
            p.service.reactions[kind] = lambda request: future()
            message = _message(kind)
            loop = asyncio.get_running_loop()
            await p.net.hello(LONG)
            began = loop.time()
            with pytest.raises(RPCError):
                await getattr(p.net, kind)(message, SHORT)
            assert SHORT * 0.5 <= loop.time() - began < SHORT + 2

    async def test_t4_a_late_answer_is_dropped_and_belongs_to_nobody_else(self) -> None:
        async with self.pair() as p:
            gate = future()
            answers = iter([gate, Success("second", None)])
            p.service.reactions["append_entries"] = lambda request: next(answers)
            with pytest.raises(RPCTimeout):
                await p.net.append_entries(append(0), SHORT)
            gate.set_result(Success("late", None))
            assert await _until_answered(lambda: p.net.append_entries(append(1), 5.0)) == Success("second", None)

    async def test_t4_nobody_at_the_address_is_unreachable_in_time(self) -> None:
        async with self.pair() as p:
            await p.target.close()
            for call in (p.net.append_entries(append(0), 2.0), p.net.vote(VoteRequest(VOTE, None), 2.0)):
                async with asyncio.timeout(LONG):
                    with pytest.raises(Unreachable):
                        await call
            with pytest.raises(RPCError):
                await p.net.hello(2.0)

    async def test_t4_a_peer_that_comes_back_is_reached_again(self) -> None:
        async with self.pair() as p:
            await p.net.append_entries(append(0), LONG)
            await p.target.close()
            with pytest.raises(RPCError):
                await p.net.append_entries(append(1), 2.0)
            await p.restart_target()
            assert await _until_answered(lambda: p.net.append_entries(append(2), 1.0))

    # --- T5: broken connections ---------------------------------------------------------------------------------------

    async def test_t5_what_is_pending_fails_when_the_peer_dies_and_nothing_is_sent_twice(self) -> None:
        async with self.pair() as p:
            p.service.reactions["append_entries"] = lambda request: future()
            waiting = [asyncio.ensure_future(p.net.append_entries(append(index), LONG)) for index in range(4)]
            await until(lambda: p.service.count("append_entries") == 4)
            await p.restart_target()
            failures = await asyncio.gather(*waiting, return_exceptions=True)
            assert all(isinstance(failure, NetworkError | Unreachable) for failure in failures), failures
            p.service.reactions.clear()
            await _until_answered(lambda: p.net.append_entries(append(9), 1.0))
            assert sorted(message.entries[0].index for message in p.arrived("append_entries"))[:5] == [0, 1, 2, 3, 9]

    async def test_t5_closing_fails_what_is_pending_and_refuses_what_comes_later(self) -> None:
        async with self.pair() as p:
            p.service.reactions["append_entries"] = lambda request: future()
            waiting = asyncio.ensure_future(p.net.append_entries(append(0), LONG))
            await until(lambda: p.service.count("append_entries"))
            await p.net.close()
            await p.net.close()
            with pytest.raises(RPCError):
                await waiting
            with pytest.raises(RPCError):
                await p.net.append_entries(append(1), LONG)

    async def test_t5_a_factory_closes_all_it_made_and_closes_twice(self) -> None:
        async with self.pair() as p:
            p.service.reactions["append_entries"] = lambda request: future()
            waiting = asyncio.ensure_future(p.net.append_entries(append(0), LONG))
            await until(lambda: p.service.count("append_entries"))
            await p.source.close()
            await p.source.close()
            with pytest.raises(RPCError):
                await waiting

    async def test_t5_a_group_that_is_not_served_any_more_is_gone(self) -> None:
        async with self.pair() as p:
            await p.net.append_entries(append(0), LONG)
            await p.target.stop_serving("default")
            await p.target.stop_serving("default")
            with pytest.raises(RPCError):
                await p.net.append_entries(append(1), 2.0)

    # --- Errors, sizes, snapshots -------------------------------------------------------------------------------------

    async def test_t4_an_error_of_the_peer_is_its_answer(self) -> None:
        async with self.pair() as p:

            def fail(request: Any) -> Any:
                raise StorageError("the disk of the peer")

            p.service.reactions["append_entries"] = fail
            with pytest.raises(RemoteError, match="the disk of the peer"):
                await p.net.append_entries(append(0), LONG)

    async def test_t4_a_client_gets_the_peers_own_typed_error(self) -> None:
        async with self.pair() as p:

            def not_here(request: Any) -> Any:
                raise ForwardToLeader("n3 leads", leader="n3")

            p.service.reactions["forward"] = p.service.reactions["read_index"] = not_here
            with pytest.raises(ForwardToLeader) as refused:
                await p.net.forward(ForwardRequest("write", b"", 5), LONG)
            assert refused.value.leader == "n3"
            with pytest.raises(ForwardToLeader):
                await p.net.read_index(ReadIndexRequest("lease", 5), LONG)

    async def test_t2_a_message_of_many_megabytes_arrives_whole(self) -> None:
        async with self.pair() as p:
            payload = bytes(range(256)) * (8 * MIB // 256)
            await p.net.append_entries(append(0, payload), LONG)
            assert p.arrived("append_entries")[0].entries[0].payload == payload

    async def test_t2_a_message_beyond_the_limit_is_refused_and_the_next_one_is_not(self) -> None:
        async with self.pair() as p:
            with pytest.raises(PayloadTooLarge):
                await p.net.forward(ForwardRequest("write", b"x" * MAX_FRAME_BYTES, 5), LONG)
            assert await p.net.append_entries(append(0), LONG) == Success(p.service.store_id, LogId(LEADER, 0))

    @pytest.mark.parametrize("size", [1, 100_000, 3 * MIB])
    async def test_t4_a_snapshot_arrives_whole(self, size: int) -> None:
        async with self.pair() as p:
            content = (bytes(range(251)) * (size // 251 + 1))[:size]
            request = announced(content)
            answer = await p.net.install_snapshot(request, BytesSource(request.meta, content), LONG)
            assert answer.store_id == p.service.store_id
            assert same_bytes(bytes(p.service.snapshot_bytes["aa-01"]), content)

    async def test_t4_a_snapshot_goes_on_where_the_peer_is(self) -> None:
        async with self.pair() as p:
            content = bytes(range(250)) * 2000
            request = announced(content)
            p.service.snapshot_bytes["aa-01"] = bytearray(content[:200_000])
            source = BytesSource(request.meta, content)
            await p.net.install_snapshot(request, source, LONG)
            assert source.opened_at == [200_000]
            assert same_bytes(bytes(p.service.snapshot_bytes["aa-01"]), content)

    async def test_t4_a_snapshot_without_progress_ends_in_time(self) -> None:
        async with self.pair() as p:
            request, source = stalling()
            async with asyncio.timeout(LONG):
                with pytest.raises(RPCError):
                    await p.net.install_snapshot(request, source, SHORT)
            await until(lambda: p.service.stream_errors)

    async def test_t4_an_error_of_the_installation_is_the_answer(self) -> None:
        async with self.pair() as p:

            def full(request: Any) -> Any:
                raise StorageError("no room for it")

            p.service.reactions["install_snapshot"] = full
            request = announced(b"s" * 1000)
            with pytest.raises(RPCError, match="no room for it"):
                await p.net.install_snapshot(request, BytesSource(request.meta, b"s" * 1000), LONG)

    async def test_t5_closing_ends_a_snapshot_under_way(self) -> None:
        async with self.pair() as p:
            request, source = stalling()
            sending = asyncio.ensure_future(p.net.install_snapshot(request, source, LONG))
            await until(lambda: p.service.count("install_snapshot"))
            await p.net.close()
            async with asyncio.timeout(LONG):
                with pytest.raises(RPCError):
                    await sending

    # --- Addresses ----------------------------------------------------------------------------------------------------

    async def test_t1_what_is_advertised_can_be_connected_to(self) -> None:
        async with self.pair() as p:
            p.target.validate_address(p.address.peer)
            assert p.address.store_id is None
            assert (await p.net.hello(LONG)).node_id == "n2"

    @pytest.mark.parametrize("peer", ["", "no address", "other-scheme:nowhere"])
    async def test_t1_what_is_no_address_is_refused_before_it_is_used(self, peer: str) -> None:
        async with self.pair() as p:
            with pytest.raises(ConfigError):
                p.source.validate_address(peer)
            with pytest.raises(ConfigError):
                p.source.connect("n3", Node(peer), p.caller)

    async def test_t1_two_groups_share_one_transport(self) -> None:
        async with self.pair() as p:
            other = RecordingService("n2", group="other")
            await p.target.serve("other", other)
            net = p.source.connect("n2", p.address, RecordingService("n1", group="other"))
            await net.append_entries(append(5), LONG)
            await p.net.append_entries(append(0), LONG)
            assert (other.count("append_entries"), p.service.count("append_entries")) == (1, 1)


def _hello_of(node_id: str) -> Any:
    from raftkit_core.types.messages import HelloResponse

    return HelloResponse("default", None, "default", node_id, "f" * 32, False)


def _message(kind: str) -> Any:
    return {
        "append_entries": append(0),
        "heartbeat": BEAT,
        "vote": VoteRequest(VOTE, None),
        "forward": ForwardRequest("write", b"", 5),
        "read_index": ReadIndexRequest("lease", 5),
    }[kind]


async def _until_answered(call: Callable[[], Awaitable[Any]]) -> Any:
    """Call again while the connection is being made anew."""
    async with asyncio.timeout(LONG):
        while True:
            try:
                return await call()
            except (Unreachable, NetworkError, RPCTimeout):
                await asyncio.sleep(0.02)
