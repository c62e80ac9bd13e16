"""Scenarios of clients: writes, reads, forwarding and what a client is told (openraft.md §3.1 client_api, elect)."""

from __future__ import annotations

import asyncio

import pytest

from raftkit_core.config import Config, ReadPolicy, SnapshotPolicy
from raftkit_core.errors import (
    BadCommand,
    ForwardToLeader,
    NotApplied,
    OutcomeUnknown,
    Overloaded,
    PreconditionFailed,
    QuorumNotEnough,
    Stopped,
)
from raftkit_core.network.memory import DROP
from raftkit_core.raft import Raft
from raftkit_core.runtime.messages import ClientWriteResponse
from raftkit_core.testing.cluster import MemoryCluster, memory_cluster, outcome
from raftkit_core.types.ids import NodeId
from raftkit_core.types.kv import CompareAndSet, Get, Put, WriteResult
from raftkit_core.types.metrics import ServerState

pytestmark = pytest.mark.virtual_time

ALL = ("n1", "n2", "n3")


def others(leader: Raft) -> list[NodeId]:
    return [node_id for node_id in ALL if node_id != leader.id]


def last_index(raft: Raft) -> int:
    return raft.metrics().value.last_log_index or 0


# --- writes -----------------------------------------------------------------------------------------------------------


async def test_six_writers_with_a_hundred_writes_each_end_on_every_node() -> None:
    config = Config(snapshot_policy=SnapshotPolicy.LogsSinceLast(200))
    async with memory_cluster(3, config=config) as cluster:
        leader = await cluster.leader()

        async def writer(name: str) -> None:
            for number in range(100):
                await leader.client_write(Put(f"{name}/{number}", b"v"))

        await asyncio.gather(*(writer(f"w{number}") for number in range(6)))
        await cluster.applied(last_index(leader))
        assert {len(cluster.raft(node_id).machine) for node_id in ALL} == {600}  # type: ignore[arg-type]
        assert len({cluster.raft(node_id).machine.digest() for node_id in ALL}) == 1


async def test_a_write_gives_its_log_id_and_the_machine_s_result() -> None:
    async with memory_cluster(1) as cluster:
        raft = cluster.raft("n1")
        response = await raft.client_write(Put("a", b"1"))
        assert response.data == WriteResult(revision=response.log_id.index)
        assert response.membership is None
        assert cluster.log("n1")[-1].log_id == response.log_id


async def test_a_write_and_forget_gives_its_result_later_in_order() -> None:
    async with memory_cluster(3) as cluster:
        leader = await cluster.leader()
        first = leader.client_write_ff(Put("a", b"1"))
        second = leader.client_write_ff(Put("a", b"2"))
        assert not first.done()
        assert (await second).data.previous_revision == (await first).log_id.index


async def test_many_writes_are_one_append_and_each_gets_its_own_result() -> None:
    async with memory_cluster(3) as cluster:
        leader = await cluster.leader()
        before = cluster.hub.counts["append_entries"]
        results = await leader.client_write_many(
            [Put("a", b"1"), CompareAndSet("a", b"other", b"2"), CompareAndSet("a", b"1", b"2")]
        )
        assert isinstance(results[0], ClientWriteResponse)
        assert isinstance(results[1], PreconditionFailed)
        assert isinstance(results[2], ClientWriteResponse)
        assert results[2].log_id.index == results[0].log_id.index + 2
        assert cluster.hub.counts["append_entries"] - before == 2, "one request for each follower"
        assert await leader.client_write_many([]) == []


async def test_concurrent_writes_share_appends() -> None:
    async with memory_cluster(3) as cluster:
        leader = await cluster.leader()
        before = cluster.hub.counts["append_entries"]
        await asyncio.gather(*(leader.client_write(Put(f"k{number}", b"v")) for number in range(500)))
        assert cluster.hub.counts["append_entries"] - before <= 8


async def test_a_follower_refuses_a_client_write_and_names_the_leader() -> None:
    async with memory_cluster(3) as cluster:
        leader = await cluster.leader()
        with pytest.raises(ForwardToLeader) as refused:
            await cluster.raft(others(leader)[0]).client_write(Put("a", b"1"))
        assert refused.value.leader == leader.id
        assert refused.value.leader_node is not None
        assert refused.value.leader_node.peer == cluster.address(leader.id).peer
        assert refused.value.outcome == "not_applied"


async def test_garbage_and_oversized_commands_never_become_entries() -> None:
    async with memory_cluster(1, config=Config(max_entry_bytes=1000)) as cluster:
        raft = cluster.raft("n1")
        before = last_index(raft)
        for command in (Put("k", b"x" * 2000), Put("k" * 5000, b""), "no command", None):
            with pytest.raises(BadCommand):
                await raft.client_write(command)
            with pytest.raises(BadCommand):
                await raft.write(command)
        assert last_index(raft) == before


async def test_a_refused_command_is_a_result_and_the_node_goes_on() -> None:
    async with memory_cluster(3) as cluster:
        follower = cluster.raft(others(await cluster.leader())[0])
        with pytest.raises(PreconditionFailed):
            await follower.write(CompareAndSet("a", b"x", b"y"))
        await follower.write(Put("a", b"x"))


async def test_too_many_uncommitted_bytes_are_refused_until_the_earlier_ones_commit() -> None:
    async with memory_cluster(3, config=Config(max_uncommitted_bytes=10_000)) as cluster:
        leader = await cluster.leader()
        for node_id in others(leader):
            cluster.hub.isolate(node_id)
        pending = [leader.client_write_ff(Put(f"k{number}", b"x" * 3000)) for number in range(4)]
        await asyncio.sleep(0.05)
        assert isinstance(pending[3].exception(), Overloaded)
        cluster.hub.heal()
        await asyncio.gather(*pending[:3])
        await leader.client_write(Put("k4", b"x" * 3000))


async def test_a_cancelled_write_leaves_the_node_as_it_was() -> None:
    async with memory_cluster(3) as cluster:
        leader = await cluster.leader()
        task = asyncio.ensure_future(leader.client_write(Put("a", b"1")))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        await leader.client_write(Put("b", b"2"))
        assert leader.metrics().value.pending_writes == 0


# --- what becomes of a write when the leader is lost ----------------------------------------------------------------


async def write_cut_off(
    cluster: MemoryCluster, leader: Raft, timeout: float = 30.0
) -> asyncio.Future[ClientWriteResponse]:
    """A write that reaches the leader's log and nobody else's."""
    cluster.hub.isolate(leader.id)
    pending = leader.client_write_ff(Put("cut", b"off"), timeout=timeout)
    await asyncio.sleep(0.05)
    assert not pending.done()
    return pending


async def test_a_write_replaced_by_another_leader_s_entry_is_told_that_it_was_not_applied() -> None:
    async with memory_cluster(3) as cluster:
        leader = await cluster.leader()
        pending = await write_cut_off(cluster, leader)
        new_leader = await cluster.leader(*others(leader))
        await new_leader.client_write(Put("a", b"1"))
        assert not pending.done(), "losing leadership answers nobody"
        cluster.hub.heal()
        with pytest.raises(NotApplied):
            await pending
        assert await new_leader.read(Get("cut")) is None


async def test_a_write_that_commits_after_the_leader_stepped_down_succeeds() -> None:
    async with memory_cluster(3) as cluster:
        leader = await cluster.leader()
        cluster.hub.cut(others(leader)[0], leader.id)
        cluster.hub.cut(others(leader)[1], leader.id)
        pending = leader.client_write_ff(Put("a", b"1"), timeout=30.0)
        await cluster.eventually(lambda: not leader._core.engine.is_leader, "the leader steps down")
        assert not pending.done()
        cluster.hub.heal()
        assert (await pending).data.changed
        assert (await leader.read(Get("a"))).value == b"1"


async def test_a_write_without_an_answer_by_its_deadline_has_an_unknown_outcome() -> None:
    async with memory_cluster(3) as cluster:
        leader = await cluster.leader()
        pending = await write_cut_off(cluster, leader, timeout=0.5)
        with pytest.raises(OutcomeUnknown) as told:
            await pending
        assert told.value.outcome == "unknown"


async def test_a_write_under_way_at_shutdown_has_an_unknown_outcome_and_a_later_one_a_definite_one() -> None:
    async with memory_cluster(3) as cluster:
        leader = await cluster.leader()
        pending = await write_cut_off(cluster, leader)
        await cluster.stop(leader.id)
        with pytest.raises(OutcomeUnknown) as told:
            await pending
        assert isinstance(told.value.__cause__, Stopped)
        with pytest.raises(Stopped) as refused:
            await leader.client_write(Put("a", b"1"))
        assert refused.value.outcome == "not_applied"


async def test_d09_a_write_superseded_by_a_snapshot_is_answered_as_unknown() -> None:
    config = Config(max_in_snapshot_log_to_keep=0, purge_batch_size=1, snapshot_policy=SnapshotPolicy.Never())
    async with memory_cluster(3, config=config) as cluster:
        leader = await cluster.leader()
        pending = await write_cut_off(cluster, leader)
        new_leader = await cluster.leader(*others(leader))
        for number in range(20):
            await new_leader.client_write(Put(f"k{number}", b"v"))
        new_leader.trigger().snapshot()
        await new_leader.wait(5).metrics(lambda m: m.purged == m.last_applied, "everything purged")
        cluster.hub.heal()
        with pytest.raises(OutcomeUnknown, match="snapshot"):
            await pending
        assert cluster.raft(leader.id).machine.query(Get("k19")).value == b"v"


async def test_an_isolated_leader_refuses_writes_once_its_lease_is_over_then_steps_down() -> None:
    async with memory_cluster(3) as cluster:
        leader = await cluster.leader()
        cluster.hub.isolate(leader.id)
        await asyncio.sleep(0.65)
        with pytest.raises(QuorumNotEnough) as refused:
            await leader.client_write(Put("a", b"1"))
        assert refused.value.outcome == "not_applied"
        await leader.wait(5).metrics(lambda m: m.state is not ServerState.LEADER, "stepping down")
        with pytest.raises(QuorumNotEnough):
            await leader.write(Put("a", b"1"), timeout=2)
        with pytest.raises(QuorumNotEnough):
            await leader.read(Get("a"), timeout=2)
        assert await leader.read(Get("a"), ReadPolicy.STALE) is None


# --- forwarding -------------------------------------------------------------------------------------------------------


async def test_any_node_takes_writes_and_reads() -> None:
    async with memory_cluster(3, ["n4"]) as cluster:
        for number, node_id in enumerate([*ALL, "n4"]):
            response = await cluster.raft(node_id).write(Put(f"k{number}", node_id.encode()))
            assert response.data.changed
            for policy in (ReadPolicy.READ_INDEX, ReadPolicy.LEASE):
                for reader in [*ALL, "n4"]:
                    found = await cluster.raft(reader).read(Get(f"k{number}"), policy)
                    assert found.value == node_id.encode()


async def test_a_forwarded_write_takes_one_hop_and_carries_its_remaining_deadline() -> None:
    async with memory_cluster(3) as cluster:
        leader = await cluster.leader()
        seen = []

        def look(src: NodeId, dst: NodeId, kind: str, message: object) -> None:
            if kind == "forward":
                seen.append((src, dst, message.timeout_ms))  # type: ignore[attr-defined]

        cluster.hub.pre_hook = look
        follower = others(leader)[0]
        await cluster.raft(follower).write(Put("a", b"1"), timeout=3.0)
        assert seen == [(follower, leader.id, 3000)]


async def test_a_forward_is_never_forwarded_again() -> None:
    async with memory_cluster(3) as cluster:
        leader = await cluster.leader()
        one, two = (cluster.raft(node_id) for node_id in others(leader))
        request_body = one.machine.codec.encode_command(Put("a", b"1"))
        from raftkit_core.runtime.operations import Write, _encoder
        from raftkit_core.types.messages import ForwardRequest

        client = one._core.peers.get(two.id, one._core.engine.effective.nodes[two.id])
        with pytest.raises(ForwardToLeader) as refused:
            await client.forward(ForwardRequest("write", _encoder.encode(Write(request_body)), 1000), 1.0)
        assert refused.value.leader == leader.id


async def test_a_lost_answer_to_a_forwarded_write_is_an_unknown_outcome() -> None:
    async with memory_cluster(3) as cluster:
        leader = await cluster.leader()
        follower = cluster.raft(others(leader)[0])
        await follower.write(Put("warm", b"up"))
        task = asyncio.ensure_future(follower.write(Put("a", b"1"), timeout=1.0))
        await asyncio.sleep(0)
        cluster.hub.cut(leader.id, follower.id)
        with pytest.raises(OutcomeUnknown):
            await task
        cluster.hub.heal()
        assert (await leader.read(Get("a"))).value == b"1", "it had been applied"


async def test_a_forward_that_was_lost_on_the_way_is_an_unknown_outcome_too() -> None:
    async with memory_cluster(3) as cluster:
        leader = await cluster.leader()
        follower = cluster.raft(others(leader)[0])
        cluster.hub.pre_hook = lambda _src, _dst, kind, _message: DROP if kind == "forward" else None
        with pytest.raises(OutcomeUnknown):
            await follower.write(Put("a", b"1"), timeout=1.0)


async def test_a_forward_under_way_when_its_node_stops_is_an_unknown_outcome() -> None:
    async with memory_cluster(3) as cluster:
        leader = await cluster.leader()
        follower = cluster.raft(others(leader)[0])
        await follower.write(Put("warm", b"up"))
        cluster.hub.latency = 0.05
        task = asyncio.ensure_future(follower.write(Put("a", b"1"), timeout=5.0))
        await asyncio.sleep(0.06)
        await cluster.kill(follower.id)
        with pytest.raises(OutcomeUnknown):
            await task
        cluster.hub.latency = 0.0
        await asyncio.sleep(1)
        assert (await leader.read(Get("a"))).value == b"1", "it was under way, and is applied"


async def test_a_write_waits_for_the_next_leader_until_its_deadline() -> None:
    async with memory_cluster(3) as cluster:
        leader = await cluster.leader()
        follower = cluster.raft(others(leader)[0])
        await cluster.kill(leader.id)
        response = await follower.write(Put("a", b"1"), timeout=10.0)
        assert response.data.changed


async def test_a_write_to_a_leader_that_shuts_down_is_carried_out_by_the_next_one() -> None:
    async with memory_cluster(3) as cluster:
        leader = await cluster.leader()
        follower = cluster.raft(others(leader)[0])
        stopping = asyncio.ensure_future(cluster.stop(leader.id))
        results = await asyncio.gather(*(outcome(follower.write(Put(f"k{n}", b"v"))) for n in range(20)))
        await stopping
        for number, result in enumerate(results):
            assert isinstance(result, ClientWriteResponse | OutcomeUnknown), result
            if isinstance(result, ClientWriteResponse):
                assert await follower.read(Get(f"k{number}")) is not None


async def test_without_a_cluster_a_write_says_how_to_make_one() -> None:
    async with memory_cluster(1, initialize=False) as cluster:
        for call in (
            cluster.raft("n1").write(Put("a", b"1"), timeout=0.5),
            cluster.raft("n1").read(Get("a"), timeout=0.5),
        ):
            with pytest.raises(ForwardToLeader) as refused:
                await call
            assert "raftkit cluster init" in str(refused.value.hint)


# --- reads ------------------------------------------------------------------------------------------------------------


async def test_a_linearizable_read_needs_a_quorum_and_only_the_leader_confirms_it() -> None:
    async with memory_cluster(3) as cluster:
        leader = await cluster.leader()
        await leader.ensure_linearizable()
        for node_id in others(leader):
            with pytest.raises(ForwardToLeader):
                await cluster.raft(node_id).ensure_linearizable()
        cluster.hub.isolate(others(leader)[0])
        await leader.ensure_linearizable()
        cluster.hub.isolate(others(leader)[1])
        with pytest.raises(QuorumNotEnough):
            await leader.ensure_linearizable(timeout=0.3)


async def test_a_lease_read_asks_nobody_and_ends_with_the_lease() -> None:
    async with memory_cluster(3) as cluster:
        leader = await cluster.leader()
        await asyncio.sleep(0.3)
        before = cluster.hub.counts["heartbeat"]
        await leader.ensure_linearizable(ReadPolicy.LEASE)
        assert cluster.hub.counts["heartbeat"] == before
        for node_id in others(leader):
            cluster.hub.isolate(node_id)
        await asyncio.sleep(0.6)
        with pytest.raises(QuorumNotEnough):
            await leader.ensure_linearizable(ReadPolicy.LEASE, timeout=0.2)


async def test_a_read_is_confirmed_only_by_messages_that_left_after_it_arrived() -> None:
    async with memory_cluster(3) as cluster:
        leader = await cluster.leader()
        for node_id in others(leader):
            cluster.hub.cut(leader.id, node_id)
        read = asyncio.ensure_future(leader.ensure_linearizable(timeout=0.2))
        with pytest.raises(QuorumNotEnough):
            await read


async def test_many_reads_share_one_round() -> None:
    async with memory_cluster(3) as cluster:
        leader = await cluster.leader()
        await leader.client_write(Put("a", b"1"))
        await asyncio.sleep(0.001)
        before = cluster.hub.counts["heartbeat"]
        await asyncio.gather(*(leader.read(Get("a")) for _ in range(200)))
        assert cluster.hub.counts["heartbeat"] - before <= 4


async def test_reads_of_a_follower_share_calls_to_the_leader() -> None:
    async with memory_cluster(3) as cluster:
        leader = await cluster.leader()
        await leader.client_write(Put("a", b"1"))
        follower = cluster.raft(others(leader)[0])
        for policy in (ReadPolicy.READ_INDEX, ReadPolicy.LEASE):
            before = cluster.hub.counts["read_index"]
            found = await asyncio.gather(*(follower.read(Get("a"), policy) for _ in range(200)))
            assert {item.value for item in found} == {b"1"}
            assert cluster.hub.counts["read_index"] - before == 1


async def test_a_lost_call_of_a_follower_holds_up_the_reads_behind_it_for_one_heartbeat() -> None:
    async with memory_cluster(3) as cluster:
        leader = await cluster.leader()
        await leader.client_write(Put("a", b"1"))
        follower = cluster.raft(others(leader)[0])
        asked = 0

        def lose_the_first(_src: NodeId, _dst: NodeId, kind: str, _message: object) -> str | None:
            nonlocal asked
            asked += kind == "read_index"
            return DROP if kind == "read_index" and asked == 1 else None

        cluster.hub.pre_hook = lose_the_first
        lost = asyncio.ensure_future(follower.read(Get("a"), timeout=5))
        await asyncio.sleep(0.01)
        loop = asyncio.get_running_loop()
        began = loop.time()
        assert (await follower.read(Get("a"), timeout=5)).value == b"1"
        assert loop.time() - began <= 1.5 * cluster.config.heartbeat_interval_ms / 1000
        assert (await lost).value == b"1", "it asks again when its call has run out"


async def test_a_reader_that_gives_up_takes_nobody_with_it() -> None:
    async with memory_cluster(3) as cluster:
        leader = await cluster.leader()
        await leader.client_write(Put("a", b"1"))
        follower = cluster.raft(others(leader)[0])
        first, second = (asyncio.ensure_future(follower.read(Get("a"))) for _ in range(2))
        await asyncio.sleep(0)
        first.cancel()
        assert (await second).value == b"1"
        assert first.cancelled()


async def test_a_follower_that_stops_ends_its_readers_and_its_call() -> None:
    async with memory_cluster(3) as cluster:
        leader = await cluster.leader()
        follower = cluster.raft(others(leader)[0])
        cluster.hub.cut(follower.id, leader.id)
        reads = [asyncio.ensure_future(outcome(follower.read(Get("a"), timeout=5))) for _ in range(3)]
        await asyncio.sleep(0.01)
        await cluster.stop(follower.id)
        assert [type(result) for result in await asyncio.gather(*reads)] == [Stopped] * 3


async def test_the_read_position_is_the_leader_s_own_first_entry_until_that_commits() -> None:
    async with memory_cluster(3, config=Config(enable_elect=False)) as cluster:
        leader = await cluster.leader()
        await leader.client_write(Put("a", b"1"))
        await cluster.applied(last_index(leader))
        target = cluster.raft(others(leader)[0])

        def drop_entries(_src: NodeId, _dst: NodeId, kind: str, message: object) -> str | None:
            return DROP if kind == "append_entries" and message.entries else None  # type: ignore[attr-defined]

        await leader.transfer_leader(target.id)
        await target.client_write(Put("b", b"2"))
        cluster.hub.pre_hook = drop_entries
        committed = target.metrics().value.committed
        pending = target.client_write_ff(Put("c", b"3"))
        read_log_id, applied = await target.get_read_log_id()
        assert read_log_id == committed == applied
        cluster.hub.pre_hook = None
        await pending
        read_log_id, applied = await target.get_read_log_id()
        assert read_log_id == (await pending).log_id == applied


async def test_a_deposed_leader_serves_no_read_after_a_pause() -> None:
    async with memory_cluster(3) as cluster:
        leader = await cluster.leader()
        await leader.client_write(Put("a", b"old"))
        cluster.hub.isolate(leader.id)
        leader.runtime_config().tick(False)  # it notices nothing by itself, like a paused process
        new_leader = await cluster.leader(*others(leader))
        await new_leader.client_write(Put("a", b"new"))
        assert leader.metrics().value.state is ServerState.LEADER
        for policy in (ReadPolicy.LEASE, ReadPolicy.READ_INDEX):
            with pytest.raises(QuorumNotEnough):
                await leader.read(Get("a"), policy, timeout=0.5)
        cluster.hub.heal()
        assert (await leader.read(Get("a"))).value == b"new"


# --- elections --------------------------------------------------------------------------------------------------------


async def test_a_new_leader_serves_within_three_timeouts_after_the_old_one_died() -> None:
    async with memory_cluster(3) as cluster:
        for _ in range(3):
            leader = await cluster.leader()
            await cluster.kill(leader.id)
            started = asyncio.get_running_loop().time()
            new_leader = await cluster.leader()
            await new_leader.write(Put("a", b"1"))
            assert asyncio.get_running_loop().time() - started < 4.5
            await cluster.start(leader.id)
            await cluster.leader()


async def test_without_faults_there_is_never_a_second_election() -> None:
    async with memory_cluster(5) as cluster:
        leader = await cluster.leader()
        term = leader.metrics().value.current_term
        await asyncio.sleep(40)
        assert (await cluster.leader()).id == leader.id
        assert leader.metrics().value.current_term == term


async def test_an_isolated_follower_does_not_raise_its_term() -> None:
    async with memory_cluster(3) as cluster:
        leader = await cluster.leader()
        follower = others(leader)[0]
        term = leader.metrics().value.current_term
        cluster.hub.isolate(follower)
        await asyncio.sleep(10)
        assert cluster.raft(follower).metrics().value.current_term == term
        cluster.hub.heal()
        await asyncio.sleep(3)
        assert (await cluster.leader()).id == leader.id
        assert leader.metrics().value.current_term == term


async def test_a_campaign_on_request_is_refused_while_the_leader_s_lease_runs() -> None:
    async with memory_cluster(3) as cluster:
        leader = await cluster.leader()
        term = leader.metrics().value.current_term
        cluster.raft(others(leader)[0]).trigger().elect()
        leader.trigger().elect()
        await asyncio.sleep(2)
        assert (await cluster.leader()).id == leader.id
        assert leader.metrics().value.current_term == term


async def test_a_campaign_on_request_wins_once_heartbeats_have_ended() -> None:
    async with memory_cluster(3, config=Config(enable_elect=False)) as cluster:
        leader = await cluster.leader()
        leader.runtime_config().heartbeat(False)
        await asyncio.sleep(0.8)
        target = others(leader)[0]
        cluster.raft(target).trigger().elect()
        await cluster.raft(target).wait(3).current_leader(target)


async def test_conflicting_entries_of_a_deposed_leader_are_overwritten() -> None:
    async with memory_cluster(3) as cluster:
        leader = await cluster.leader()
        cluster.hub.isolate(leader.id)
        lost = [leader.client_write_ff(Put(f"lost{number}", b"v"), timeout=60) for number in range(100)]
        new_leader = await cluster.leader(*others(leader))
        for number in range(20):
            await new_leader.client_write(Put(f"kept{number}", b"v"))
        cluster.hub.heal()
        await new_leader.client_write(Put("end", b"v"))
        await cluster.applied(last_index(new_leader))
        assert cluster.log(leader.id) == cluster.log(new_leader.id)
        told = await asyncio.gather(*(outcome(write) for write in lost))
        assert {type(error) for error in told[:20]} == {NotApplied}


# --- handing over -----------------------------------------------------------------------------------------------------


async def test_leadership_is_handed_over_without_waiting_for_a_timeout() -> None:
    async with memory_cluster(3) as cluster:
        leader = await cluster.leader()
        target = others(leader)[1]
        started = asyncio.get_running_loop().time()
        assert await leader.transfer_leader(target) == target
        assert (await cluster.leader()).id == target
        assert asyncio.get_running_loop().time() - started < 0.2
        await cluster.raft(leader.id).write(Put("a", b"1"))


async def test_writes_go_on_after_a_hand_over_that_failed() -> None:
    async with memory_cluster(3) as cluster:
        leader = await cluster.leader()
        target = others(leader)[0]
        cluster.hub.isolate(target)
        failed = await outcome(leader.transfer_leader(target, timeout=3))
        assert failed.code == "TRANSFER_FAILED"
        assert (await leader.write(Put("a", b"1"))).data.changed


async def test_nobody_hands_over_to_a_learner_or_a_stranger() -> None:
    async with memory_cluster(3, ["n4"]) as cluster:
        leader = await cluster.leader()
        for target in ("n4", "n9"):
            failed = await outcome(leader.transfer_leader(target))
            assert failed.code == "TRANSFER_FAILED"
        assert await leader.transfer_leader(leader.id) == leader.id
