"""What nodes remember of client sessions: over restarts, in snapshots, byte for byte."""

from __future__ import annotations

import asyncio

import pytest
from session_checks import counters, opened, sessions_gone, total
from three_nodes import ALL, others

from raftkit_core.config import Config, SnapshotPolicy
from raftkit_core.errors import BadCommand, CommandRejected, NotApplied, PreconditionFailed, ResultForgotten
from raftkit_core.runtime.held_sessions import Session
from raftkit_core.testing.cluster import memory_cluster, outcome
from raftkit_core.testing.counting import Add, Counter
from raftkit_core.types.kv import CompareAndSet, Get, Put
from raftkit_core.types.log_id import index_of
from raftkit_core.types.session import SessionRef, SessionSerial

pytestmark = pytest.mark.virtual_time


async def test_sessions_and_results_survive_restarts_of_all_nodes() -> None:
    async with counters() as cluster:
        leader = await cluster.leader()
        ref = await opened(leader, ttl_ms=60_000)
        first = await leader.write(Add(5), session=SessionSerial(ref, 1))
        for node_id in ALL:
            await cluster.kill(node_id)
        for node_id in ALL:
            await cluster.start(node_id)
        leader = await cluster.leader()
        again = await leader.write(Add(5), session=SessionSerial(ref, 1))
        assert (again.data, again.log_id) == (5, first.log_id)
        assert await total(leader) == 5


async def test_sessions_travel_in_snapshots() -> None:
    config = Config(snapshot_policy=SnapshotPolicy.Never(), max_in_snapshot_log_to_keep=0, purge_batch_size=1)
    async with counters(config=config) as cluster:
        leader = await cluster.leader()
        late = others(leader)[0]
        ref = await opened(leader, ttl_ms=60_000)
        await leader.write(Add(5), session=SessionSerial(ref, 2))
        await cluster.kill(late)
        await leader.write(Add(5), session=SessionSerial(ref, 1))
        await leader.write(Add(5), session=SessionSerial(ref, 4, 1))
        last = leader.metrics().value.last_log_index or 0
        leader.trigger().snapshot()
        await leader.wait(5).metrics(lambda m: index_of(m.purged) == last, "the log is purged")
        await cluster.start(late)
        await cluster.applied(leader.metrics().value.last_log_index or 0)
        installed = cluster.raft(late)
        await installed.wait(5).metrics(lambda m: m.snapshot is not None, "the snapshot")
        assert installed._core.worker.system.encode() == leader._core.worker.system.encode()
        await cluster.kill(leader.id)
        for serial, result in ((2, 5), (4, 15)):
            done = await installed.write(Add(5), session=SessionSerial(ref, serial, 1))
            assert done.data == result
        assert isinstance(await outcome(installed.write(Add(5), session=SessionSerial(ref, 1))), ResultForgotten)
        assert (await installed.write(Add(5), session=SessionSerial(ref, 3, 1))).data == 20


async def test_a_write_superseded_by_a_snapshot_gets_its_remembered_result() -> None:
    """The old leader learns the fate of its entry by a snapshot: unknown, so the session asks again."""
    config = Config(snapshot_policy=SnapshotPolicy.Never(), max_in_snapshot_log_to_keep=0, purge_batch_size=1)
    async with counters(config=config) as cluster:
        leader = await cluster.leader()
        async with leader.open_session(ttl=60) as session:
            cluster.hub.isolate(leader.id)
            pending = asyncio.ensure_future(session.write(Add(3), timeout=60))
            await asyncio.sleep(0.05)
            new_leader = await cluster.leader(*others(leader))
            for _ in range(5):
                await new_leader.write(Add(100))
            new_leader.trigger().snapshot()
            await new_leader.wait(5).metrics(lambda m: m.purged is not None, "the log is purged")
            cluster.hub.heal()
            assert (await pending).data == 503
            assert await total(leader) == 503


async def test_all_nodes_hold_equal_bytes() -> None:
    async with memory_cluster(3) as cluster:
        leader = await cluster.leader()
        async with leader.open_session() as session, leader.open_session() as second:
            await asyncio.gather(
                *(session.write(Put(f"k{number % 7}", b"v%d" % number)) for number in range(200)),
                *(outcome(second.write(CompareAndSet("k1", b"no", b"x"))) for _ in range(50)),
            )
            await cluster.applied(leader.metrics().value.last_log_index or 0)
            encoded = {cluster.raft(node_id)._core.worker.system.encode() for node_id in ALL}
            assert len(encoded) == 1
            assert isinstance(await outcome(second.write(CompareAndSet("k1", b"no", b"x"))), PreconditionFailed)
            assert await leader.read(Get("k1")) is not None


async def test_a_node_that_shuts_down_ends_its_sessions_tasks_and_the_cluster_forgets_them() -> None:
    async with counters() as cluster:
        leader = await cluster.leader()
        follower = others(leader)[0]
        session = await cluster.raft(follower).open_session(ttl=2)
        await cluster.stop(follower)
        assert session.is_closed
        await sessions_gone(cluster, leader, session.id)


async def test_not_applied_is_no_answer_for_a_session() -> None:
    """Another entry took the place of the first attempt: definite for that entry, and the write is sent again."""
    async with counters() as cluster:
        leader = await cluster.leader()
        ref = await opened(leader, ttl_ms=60_000)
        cluster.hub.isolate(leader.id)
        pending = asyncio.ensure_future(leader._writes.write_once(Add(3), lambda: SessionSerial(ref, 1), 60))
        plain = leader.client_write_ff(Add(1000), timeout=60)
        new_leader = await cluster.leader(*others(leader))
        await new_leader.write(Add(1))
        cluster.hub.heal()
        assert (await pending).data == 4
        assert isinstance(await outcome(plain), NotApplied)


async def test_a_durable_machine_that_does_not_store_what_sessions_remember_stops_its_node() -> None:
    class Forgetful(Counter):
        durable = True

    async with memory_cluster(1, machine=Forgetful, initialize=False) as cluster:
        raft = cluster.raft("n1")
        await outcome(raft.initialize(cluster.members("n1")))
        await cluster.eventually(lambda: raft.fatal, "the node stops")
        assert "batch.seal" in str(raft.fatal)


def test_a_session_s_token_names_its_cluster() -> None:
    ref = SessionRef("0123456789abcdef" * 2, 42)
    assert SessionRef.parse(ref.token) == ref
    for wrong in (
        "",
        "42",
        "0123456789abcdef-42",
        ref.token + "x",
        ref.token.upper(),
        f"{'0' * 32}-0",
        f"{'0' * 32}--1",
    ):
        with pytest.raises(ValueError, match="session"):
            SessionRef.parse(wrong)


async def test_the_public_names() -> None:
    async with memory_cluster(1) as cluster:
        session = await cluster.raft("n1").open_session()
        assert isinstance(session, Session)
        assert (await cluster.raft("n1").write(Put("a", b"1"), session=session)).data.changed
        assert session.ref.token in repr(session)
        await session.close()
        await session.close()


async def test_many_writes_from_any_node_have_their_own_outcomes() -> None:
    async with counters() as cluster:
        leader = await cluster.leader()
        ref = await opened(leader)
        for raft in (leader, cluster.raft(others(leader)[0])):
            serials = [SessionSerial(ref, serial) for serial in (1, 2, 3, 4)]
            commands = [Add(1), Add(-1), "nonsense", Add(1)]
            results = await raft.write_many(commands, serials)
            assert [getattr(result, "data", type(result)) for result in results] == [1, CommandRejected, BadCommand, 2]
            assert [getattr(r, "data", type(r)) for r in await raft.write_many([Add(0), None])][1] is BadCommand
        assert await raft.write_many([]) == []
        assert await total(leader) == 2
