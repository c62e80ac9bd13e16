"""The in-process network keeps the clauses T1 to T5, and loses, delays and refuses what it is told to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from raftkit_core.errors import (
    AddressInUse,
    ConfigError,
    Fatal,
    ForwardToLeader,
    IdentityError,
    NetworkError,
    PeerBusy,
    RemoteError,
    RPCTimeout,
    Unreachable,
)
from raftkit_core.network.disturbances import DROP
from raftkit_core.network.memory import MemoryHub, MemoryNetwork, MemoryNetworkFactory
from raftkit_core.network.reply import Reply
from raftkit_core.testing.recording_service import BytesSource, RecordingService
from raftkit_core.types.entry import NORMAL, Entry
from raftkit_core.types.identity import PeerIdentity
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

pytestmark = pytest.mark.virtual_time

LEADER = LeaderId(1, "n1")
VOTE = Vote(LEADER, True)
BEAT = HeartbeatRequest(VOTE, None, None, 500)


def append(index: int) -> AppendEntriesRequest:
    prev = LogId(LEADER, index - 1) if index else None
    return AppendEntriesRequest(VOTE, prev, [Entry(LogId(LEADER, index), 0, NORMAL, b"x")], None, 500)


class Pair:
    """n1 calls n2 on one hub."""

    def __init__(self, source: MemoryNetworkFactory, target: MemoryNetworkFactory) -> None:
        self.source, self.target = source, target
        self.caller, self.service = RecordingService("n1"), RecordingService("n2")
        self.hub = MemoryHub.named("t")
        self.net: MemoryNetwork = source.connect("n2", Node("memory:t/n2"), self.caller)


@asynccontextmanager
async def pair() -> AsyncIterator[Pair]:
    made = Pair(MemoryNetworkFactory("t", "n1"), MemoryNetworkFactory("t", "n2"))
    try:
        await made.target.serve("default", made.service)
        yield made
    finally:
        await made.source.close()
        await made.target.close()


async def test_every_kind_of_call_is_answered_and_hello_comes_first_on_each_lane() -> None:
    async with pair() as p:
        assert await p.net.append_entries(append(0), 1) == Success(p.service.store_id, LogId(LEADER, 0))
        assert await p.net.heartbeat(BEAT, 1) == Success(p.service.store_id, None)
        assert (await p.net.vote(VoteRequest(VOTE, None), 1)).granted
        assert (await p.net.pre_vote(VoteRequest(VOTE, None), 1)).granted
        assert (await p.net.transfer_leader(TransferLeaderRequest(VOTE, None), 1)).accepted
        assert (await p.net.read_index(ReadIndexRequest("lease", 5), 1)).read_log_id is None
        assert (await p.net.forward(ForwardRequest("write", b"body", 5), 1)).body == b"body"
        kinds = [kind for kind, _, _ in p.service.calls]
        assert kinds == ["hello", "append_entries", "hello", *kinds[3:]]
        assert kinds.count("hello") == 2
        peer = p.service.calls[1][2]
        assert peer is not None
        assert (peer.node_id, peer.store_id) == ("n1", p.caller.store_id)


async def test_calls_arrive_in_the_order_they_were_made_also_before_the_connection_is_open() -> None:
    async with pair() as p:
        await asyncio.gather(*[p.net.append_entries(append(index), 1) for index in range(200)])
        arrived = [message.entries[0].index for kind, message, _ in p.service.calls if kind == "append_entries"]
        assert arrived == list(range(200))
        assert p.service.count("hello") == 1


async def test_what_was_called_off_before_the_connection_is_open_does_not_leave() -> None:
    """A node that fails calls everything off; a heartbeat that waited for a hello must not be sent after that (S28)."""
    async with pair() as p:
        called_off, kept = p.net.heartbeat(BEAT, 1), p.net.heartbeat(BEAT, 1)
        called_off.cancel()
        await kept
        assert p.service.count("heartbeat") == 1
        assert p.net._control._calls == {}
        assert p.net._control._call_bytes == 0


async def test_a_frame_that_cannot_be_delivered_ends_the_connection_rather_than_leave_a_hole_in_it() -> None:
    async with pair() as p:
        await p.net.append_entries(append(0), 1)
        told: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))

        def broken(src: str, dst: str, kind: str) -> None:
            raise KeyError(kind)

        p.hub.post_hook = broken
        calls = [p.net.append_entries(append(index), 30) for index in (1, 2)]
        begin = asyncio.get_running_loop().time()
        for call in calls:
            with pytest.raises(NetworkError, match="KeyError"):
                await call
        assert asyncio.get_running_loop().time() - begin < 1
        assert [str(context["message"]) for context in told] == ["a frame could not be delivered"]
        p.hub.post_hook = None
        assert await p.net.append_entries(append(1), 1) == Success(p.service.store_id, LogId(LEADER, 1))


async def test_coroutine_handlers_start_in_order_and_answer_as_they_complete() -> None:
    async with pair() as p:
        started: list[int] = []

        async def slow_first(request: AppendEntriesRequest) -> Success:
            index = request.entries[0].index
            started.append(index)
            await asyncio.sleep(1 if index == 0 else 0.1)
            return Success("s2", LogId(LEADER, index))

        p.service.reactions["append_entries"] = slow_first
        calls = [asyncio.ensure_future(p.net.append_entries(append(index), 5)) for index in range(3)]
        done: list[int] = []
        for index, call in enumerate(calls):
            call.add_done_callback(lambda _, index=index: done.append(index))
        await asyncio.gather(*calls)
        assert (started, done) == ([0, 1, 2], [1, 2, 0])


async def test_a_heartbeat_overtakes_an_append_that_is_delayed() -> None:
    async with pair() as p:
        p.hub.pre_hook = lambda src, dst, kind, message: 3.0 if kind == "append_entries" else None
        slow = p.net.append_entries(append(0), 10)
        await p.net.heartbeat(BEAT, 0.1)
        assert p.service.count("append_entries") == 0
        await slow


async def test_a_delayed_message_is_not_overtaken_on_its_lane() -> None:
    async with pair() as p:
        delays = iter([2.0, None, None])
        p.hub.pre_hook = lambda src, dst, kind, message: next(delays) if kind == "append_entries" else None
        await asyncio.gather(*[p.net.append_entries(append(index), 10) for index in range(3)])
        assert [m.entries[0].index for k, m, _ in p.service.calls if k == "append_entries"] == [0, 1, 2]


async def test_nobody_there_is_unreachable_and_the_next_call_tries_again() -> None:
    async with pair() as p:
        await p.target.stop_serving("default")
        with pytest.raises(Unreachable, match="nobody serves"):
            await p.net.heartbeat(BEAT, 1)
        await p.target.serve("default", p.service)
        await p.net.heartbeat(BEAT, 1)


async def test_a_refused_hello_is_unreachable_for_calls_and_an_identity_error_for_hello() -> None:
    async with pair() as p:
        p.caller.cluster = "other"
        with pytest.raises(Unreachable, match="this is cluster default, not other"):
            await p.net.heartbeat(BEAT, 1)
        with pytest.raises(IdentityError, match="this is cluster default"):
            await p.net.hello(1)
        assert p.service.count("heartbeat") == 0
        assert p.target.links == {}


async def test_an_answer_from_the_wrong_node_is_refused_before_anything_else_is_sent() -> None:
    async with pair() as p:
        wrong = p.source.connect("n3", Node("memory:t/n2"), p.caller)
        with pytest.raises(Unreachable, match="n2"):
            await wrong.append_entries(append(0), 1)
        p.service.reactions["hello"] = lambda request: RecordingService("n2").hello(
            RecordingService("n1").local_hello("n2")
        )
        with pytest.raises(Unreachable, match="expected node n3"):
            await wrong.append_entries(append(0), 1)
        assert p.service.count("append_entries") == 0


async def test_hello_gives_who_is_there_afresh_each_time() -> None:
    async with pair() as p:
        assert (await p.net.hello(1)).cluster_id is None
        p.service.cluster_id = "c1"
        assert (await p.net.hello(1)).cluster_id == "c1"
        assert p.service.count("hello") == 2
        p.service.cluster = "moved"
        with pytest.raises(IdentityError):
            await p.net.hello(1)
        with pytest.raises(Unreachable):
            await p.net.heartbeat(BEAT, 1)


async def test_a_peer_that_never_answers_times_out_on_time_and_a_late_answer_is_dropped() -> None:
    async with pair() as p:
        gate = asyncio.get_running_loop().create_future()
        p.service.reactions["append_entries"] = lambda request: gate
        begin = asyncio.get_running_loop().time()
        with pytest.raises(RPCTimeout):
            await p.net.append_entries(append(0), 0.5)
        assert asyncio.get_running_loop().time() - begin == pytest.approx(0.5, abs=0.01)
        gate.set_result(Success("late", None))
        del p.service.reactions["append_entries"]
        assert await p.net.append_entries(append(0), 1) == Success(p.service.store_id, LogId(LEADER, 0))


async def test_a_coroutine_handler_is_cancelled_when_nobody_waits_any_more() -> None:
    async with pair() as p:
        ended = asyncio.Event()

        async def endless(request: Any) -> Success:
            try:
                await asyncio.sleep(3600)
            finally:
                ended.set()
            raise AssertionError

        p.service.reactions["append_entries"] = endless
        with pytest.raises(RPCTimeout):
            await p.net.append_entries(append(0), 0.5)
        await asyncio.wait_for(ended.wait(), 1)


async def test_a_broken_connection_fails_everything_pending_and_nothing_is_sent_twice() -> None:
    async with pair() as p:
        p.service.reactions["append_entries"] = lambda request: asyncio.get_running_loop().create_future()
        calls = [p.net.append_entries(append(index), 60) for index in range(5)]
        await asyncio.sleep(0.01)
        await p.target.stop_serving("default")
        for result in await asyncio.gather(*calls, return_exceptions=True):
            assert isinstance(result, NetworkError)
        await p.target.serve("default", p.service)
        await p.net.forward(ForwardRequest("write", b"", 5), 1)
        assert p.service.count("append_entries") == 5


async def test_closing_fails_what_is_pending_and_refuses_what_comes_later() -> None:
    async with pair() as p:
        p.service.reactions["append_entries"] = lambda request: asyncio.get_running_loop().create_future()
        call = p.net.append_entries(append(0), 60)
        await asyncio.sleep(0)
        await p.net.close()
        await p.net.close()
        with pytest.raises(Unreachable, match="closed"):
            await call
        with pytest.raises(Unreachable, match="closed"):
            await p.net.heartbeat(BEAT, 1)
        with pytest.raises(Unreachable, match="closed"):
            await p.net.hello(1)


async def test_a_silent_cut_loses_one_direction_only_until_healed() -> None:
    async with pair() as p:
        await p.net.append_entries(append(0), 1)
        p.hub.cut("n2", "n1")
        with pytest.raises(RPCTimeout):
            await p.net.append_entries(append(1), 1)
        assert p.service.count("append_entries") == 2
        p.hub.heal()
        p.hub.cut("n1", "n2")
        with pytest.raises(Unreachable):
            await p.net.append_entries(append(2), 0.2)
        assert p.service.count("append_entries") == 2
        p.hub.heal("n2")
        await p.net.append_entries(append(2), 0.1)


async def test_a_cut_that_is_not_silent_and_isolation_fail_at_once() -> None:
    async with pair() as p:
        await p.net.heartbeat(BEAT, 1)
        p.hub.cut("n1", "n2", silent=False)
        begin = asyncio.get_running_loop().time()
        with pytest.raises(Unreachable):
            await p.net.heartbeat(BEAT, 10)
        p.hub.heal()
        p.hub.isolate("n2", silent=False)
        with pytest.raises(Unreachable):
            await p.net.heartbeat(BEAT, 10)
        assert asyncio.get_running_loop().time() - begin < 0.01
        p.hub.heal()
        p.hub.partition({"n1"}, {"n2", "n3"}, silent=False)
        with pytest.raises(Unreachable):
            await p.net.heartbeat(BEAT, 10)


async def test_a_pre_hook_may_raise_drop_and_see_every_request() -> None:
    async with pair() as p:
        seen: list[tuple[str, str, str]] = []

        def hook(src: str, dst: str, kind: str, message: Any) -> str | None:
            seen.append((src, dst, kind))
            if kind == "vote":
                raise PeerBusy("not now")
            return DROP if kind == "pre_vote" else None

        p.hub.pre_hook = hook
        with pytest.raises(PeerBusy):
            await p.net.vote(VoteRequest(VOTE, None), 1)
        with pytest.raises(RPCTimeout):
            await p.net.pre_vote(VoteRequest(VOTE, None), 1)
        assert seen == [("n1", "n2", "hello"), ("n1", "n2", "vote"), ("n1", "n2", "pre_vote")]
        assert p.hub.counts == {"hello": 1, "vote": 1, "pre_vote": 1}


async def test_a_client_call_raises_the_peers_own_error_and_a_raft_call_a_remote_error() -> None:
    async with pair() as p:

        def not_leader(request: Any) -> Any:
            raise ForwardToLeader("ask n3", leader="n3", leader_node=Node("memory:t/n3"))

        p.service.reactions |= {"forward": not_leader, "read_index": not_leader, "append_entries": not_leader}
        with pytest.raises(ForwardToLeader) as caught:
            await p.net.forward(ForwardRequest("write", b"", 5), 1)
        assert caught.value.leader_node == Node("memory:t/n3")
        with pytest.raises(ForwardToLeader):
            await p.net.read_index(ReadIndexRequest("lease", 5), 1)
        with pytest.raises(RemoteError) as remote:
            await p.net.append_entries(append(0), 1)
        assert remote.value.info is not None
        assert remote.value.info.code == "FORWARD_TO_LEADER"


async def test_a_dead_peer_never_reads_as_if_this_node_were_dead() -> None:
    async with pair() as p:

        def dead(request: Any) -> Any:
            raise Fatal("disk gone")

        p.service.reactions["forward"] = dead
        with pytest.raises(RemoteError, match="disk gone"):
            await p.net.forward(ForwardRequest("write", b"", 5), 1)


async def test_two_nodes_cannot_share_an_address() -> None:
    async with pair() as p:
        twin = MemoryNetworkFactory("t", "n2")
        with pytest.raises(AddressInUse, match="memory:t/n2"):
            await twin.serve("default", RecordingService("n2"))
        await p.target.serve("other", RecordingService("n2", group="other"))
        with pytest.raises(ConfigError, match="no address on the hub memory:t"):
            p.source.connect("n2", Node("http://127.0.0.1:1"), p.caller)
        assert p.target.advertised() == Node("memory:t/n2")


def _snapshot(size: int) -> tuple[InstallSnapshotRequest, BytesSource]:
    meta = SnapshotMeta(LogId(LEADER, 9), StoredMembership(), "ab-1", 0, size, "")
    return InstallSnapshotRequest(VOTE, meta), BytesSource(meta, bytes(range(256)) * (size // 256), 4096)


async def test_a_snapshot_arrives_whole_and_resumes_where_a_broken_stream_ended() -> None:
    async with pair() as p:
        request, source = _snapshot(64 * 1024)

        async def break_at_half(offset: int) -> None:
            if offset == 32 * 1024:
                raise NetworkError("cable out")

        source.before_chunk = break_at_half
        with pytest.raises(NetworkError, match="cable out"):
            await p.net.install_snapshot(request, source, 1)
        await asyncio.sleep(0.01)
        assert [str(error) for error in p.service.stream_errors] == ["the snapshot stream broke"]
        kept = len(p.service.snapshot_bytes["ab-1"])
        assert 0 < kept <= 32 * 1024
        source.before_chunk = None
        answer = await p.net.install_snapshot(request, source, 1)
        assert (answer.store_id, answer.vote) == (p.service.store_id, VOTE)
        assert source.opened_at == [0, kept]
        assert bytes(p.service.snapshot_bytes["ab-1"]) == source.content


async def test_a_snapshot_may_take_long_but_not_without_progress() -> None:
    async with pair() as p:
        request, source = _snapshot(16 * 1024)

        async def slow(offset: int) -> None:
            await asyncio.sleep(0.9)

        async def install(request: Any) -> Any:
            await asyncio.sleep(30)
            return await RecordingService("n2").install_snapshot(request, 0, source.open(0), None)  # type: ignore[arg-type]

        source.before_chunk = slow
        p.service.reactions["install_snapshot"] = install
        await p.net.install_snapshot(request, source, 1)
        p.service.snapshot_bytes.clear()

        async def stuck(offset: int) -> None:
            await asyncio.sleep(3600)

        source.before_chunk = stuck
        with pytest.raises(RPCTimeout, match="no progress"):
            await p.net.install_snapshot(request, source, 1)


async def test_closing_ends_a_snapshot_under_way() -> None:
    async with pair() as p:
        request, source = _snapshot(16 * 1024)

        async def stuck(offset: int) -> None:
            await asyncio.sleep(3600)

        source.before_chunk = stuck
        call = asyncio.ensure_future(p.net.install_snapshot(request, source, 60))
        await asyncio.sleep(0.1)
        await p.net.close()
        with pytest.raises(Unreachable, match="closed"):
            await call


async def test_nodes_that_answer_each_other_at_once_leave_time_to_everybody_else() -> None:
    """An answer may come back in the turn of its request; what the caller says to that has a turn of its own."""
    async with pair() as p:
        await p.net.append_entries(append(0), 1.0)
        exchanges = 0

        def at_once(request: AppendEntriesRequest, peer: PeerIdentity) -> Reply[Any]:
            reply: Reply[Any] = Reply()
            reply.set_result(Success("s", None))
            return reply

        def again(reply: Reply[Any], _argument: Any) -> None:
            nonlocal exchanges
            if reply.failed:
                return  # the end of the test
            exchanges += 1
            p.net.append_entries(append(exchanges), 1.0).then(again)

        p.service.append_entries = at_once  # type: ignore[method-assign]
        p.net.append_entries(append(0), 1.0).then(again)
        for turn in range(1, 50):
            await asyncio.sleep(0)
            assert exchanges == turn
