"""Client sessions on whole nodes: one effect per serial, whatever is lost or sent again."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from session_checks import clear, counters, lose_answers, lose_requests, opened, sessions_of, total
from three_nodes import ALL, others

from raftkit_core.errors import BadRequest, OutcomeUnknown, ResultForgotten, SessionExpired
from raftkit_core.network.client_session import Serials
from raftkit_core.network.disturbances import DROP
from raftkit_core.testing.cluster import memory_cluster, outcome
from raftkit_core.testing.counting import Add, Counter
from raftkit_core.types.log_id import index_of
from raftkit_core.types.operations import CloseSession, KeepSession, OpenSession
from raftkit_core.types.session import SessionSerial

pytestmark = pytest.mark.virtual_time

# --- one effect -------------------------------------------------------------------------------------------------------


async def test_a_session_s_id_is_the_log_index_of_its_entry_on_every_node() -> None:
    async with counters() as cluster:
        leader = await cluster.leader()
        async with cluster.raft(others(leader)[0]).open_session(ttl=5) as session:
            assert session.ref.cluster_id == leader.cluster_id
            assert session.is_valid
            await cluster.applied(session.id)
            assert all(session.id in sessions_of(cluster.raft(node_id)) for node_id in ALL)
        await cluster.applied(session.id + 1)
        assert not any(session.id in sessions_of(cluster.raft(node_id)) for node_id in ALL)
        assert not session.is_valid
        with pytest.raises(SessionExpired):
            await session.write(Add(1))


@pytest.mark.parametrize("where", ["leader", "follower"])
async def test_a_write_sent_twice_has_one_effect_and_one_result(where: str) -> None:
    async with counters() as cluster:
        leader = await cluster.leader()
        raft = leader if where == "leader" else cluster.raft(others(leader)[0])
        ref = await opened(raft)
        first = await raft.write(Add(5), session=SessionSerial(ref, 1))
        again = await raft.write(Add(5), session=SessionSerial(ref, 1))
        assert (again.data, again.log_id) == (first.data, first.log_id) == (5, first.log_id)
        assert await total(raft) == 5
        refused = await outcome(raft.write(Add(-1), session=SessionSerial(ref, 2, 1)))
        refused_again = await outcome(raft.write(Add(-1), session=SessionSerial(ref, 2, 1)))
        assert (type(refused), str(refused)) == (type(refused_again), str(refused_again))
        assert refused_again.outcome == "applied"
        assert isinstance(await outcome(raft.write(Add(5), session=SessionSerial(ref, 1))), ResultForgotten)
        assert await total(raft) == 5


async def test_duplicates_side_by_side_are_one_effect() -> None:
    async with counters() as cluster:
        leader = await cluster.leader()
        ref = await opened(leader)
        writes = [raft.write(Add(1), session=SessionSerial(ref, 1)) for raft in cluster.rafts.values()]
        writes += [leader.write(Add(1), session=SessionSerial(ref, serial)) for serial in (3, 2, 3, 2, 1)]
        results = await asyncio.gather(*writes)
        assert len({done.log_id for done in results}) == 3
        assert await total(leader) == 3


async def test_an_answer_that_is_lost_is_fetched_again() -> None:
    async with counters() as cluster:
        leader = await cluster.leader()
        follower = cluster.raft(others(leader)[0])
        async with follower.open_session() as session:
            lost = []

            def lose_the_first(_src: str, _dst: str, kind: str) -> str | None:
                if kind == "forward" and not lost:
                    lost.append(kind)
                    return DROP
                return None

            cluster.hub.post_hook = lose_the_first
            done = await session.write(Add(3), timeout=10)
            assert lost
            assert done.data == 3
            assert await total(follower) == 3


async def test_without_a_session_a_lost_answer_stays_unknown() -> None:
    async with counters() as cluster:
        leader = await cluster.leader()
        follower = cluster.raft(others(leader)[0])
        lose_answers(cluster)
        with pytest.raises(OutcomeUnknown):
            await follower.write(Add(3), timeout=2)


async def test_a_write_survives_the_leader_that_took_it() -> None:
    """The leader is cut off with the entry in its log alone: the retry goes to the next one."""
    async with counters() as cluster:
        leader = await cluster.leader()
        async with leader.open_session() as session:
            await session.write(Add(1))
            cluster.hub.isolate(leader.id)
            pending = asyncio.ensure_future(session.write(Add(10), timeout=30))
            await asyncio.sleep(0.05)
            new_leader = await cluster.leader(*others(leader))
            assert not pending.done()
            cluster.hub.heal()
            assert (await pending).data == 11
            assert await total(new_leader) == 11


async def test_a_write_that_commits_while_its_answer_is_lost_is_not_repeated_by_the_next_leader() -> None:
    async with counters() as cluster:
        leader = await cluster.leader()
        follower = cluster.raft(others(leader)[0])
        async with follower.open_session() as session:
            lose_answers(cluster)
            pending = asyncio.ensure_future(session.write(Add(10), timeout=30))
            await cluster.eventually(lambda: leader.machine.value == 10, "the write is applied")
            await cluster.kill(leader.id)
            clear(cluster)
            assert (await pending).data == 10
            assert await total(follower) == 10
            assert sessions_of(follower)._sessions[session.id].results.keys() == {1}


async def test_pipelined_writes_of_a_session_all_arrive_once_and_old_results_are_forgotten() -> None:
    async with counters() as cluster:
        leader = await cluster.leader()
        async with cluster.raft(others(leader)[0]).open_session() as session:
            results = await asyncio.gather(*(session.write(Add(1), timeout=30) for _ in range(1500)))
            assert sorted(done.data for done in results) == list(range(1, 1501))
            await session.write(Add(1))
            held = sessions_of(leader)._sessions[session.id]
            assert held.floor == 1500
            assert held.results.keys() == {1501}


def test_the_floor_stays_below_the_oldest_write_that_waits() -> None:
    serials = Serials()
    first, second, third = serials.take(), serials.take(), serials.take()
    serials.settle(third)
    serials.settle(second)
    assert (serials.floor, serials.ahead) == (0, 3)
    serials.settle(first)
    assert (serials.floor, serials.ahead) == (3, 0)


async def test_a_cancelled_write_blocks_no_later_one() -> None:
    async with counters() as cluster:
        leader = await cluster.leader()
        async with leader.open_session() as session:
            task = asyncio.ensure_future(session.write(Add(1)))
            await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
            await session.write(Add(10))
            assert sessions_of(leader)._sessions[session.id].floor == 1


# --- what a session is not --------------------------------------------------------------------------------------------


async def test_thousands_of_writes_that_wait_for_room_are_woken_once_each(monkeypatch: pytest.MonkeyPatch) -> None:
    wait, waits = asyncio.wait, 0

    async def counted(*args: Any, **options: Any) -> Any:
        nonlocal waits
        waits += 1
        return await wait(*args, **options)

    async with memory_cluster(1, machine=Counter) as cluster:
        leader = await cluster.leader()
        async with leader.open_session() as session:
            monkeypatch.setattr(asyncio, "wait", counted)
            writes = [asyncio.ensure_future(session.write(Add(1))) for _ in range(3000)]
            await asyncio.sleep(0)
            for cancelled in writes[600:2900:7]:
                cancelled.cancel()
            done = await asyncio.gather(*writes, return_exceptions=True)
            monkeypatch.setattr(asyncio, "wait", wait)
            assert waits < 3500
            written = [each for each in done if not isinstance(each, BaseException)]
            assert len(written) + len(writes[600:2900:7]) == 3000
            assert await total(leader) == len(written)
            assert not session._room


async def test_writes_that_wait_for_room_end_with_their_session() -> None:
    async with counters() as cluster:
        leader = await cluster.leader()
        session = await cluster.raft(others(leader)[0]).open_session(ttl=5)
        lose_requests(cluster, "forward")
        writes = [asyncio.ensure_future(outcome(session.write(Add(1), timeout=60))) for _ in range(600)]
        await asyncio.sleep(1)
        await session.close()
        clear(cluster)
        told = await asyncio.gather(*writes)
        assert {type(each) for each in told[512:]} == {SessionExpired}, "they were never sent"


async def test_a_session_of_another_cluster_is_refused_though_its_number_is_open_here() -> None:
    async with counters() as cluster, counters() as elsewhere:
        leader, stranger = await cluster.leader(), await elsewhere.leader()
        ref = await opened(leader)
        while index_of(stranger.metrics().value.last_applied) < ref.id - 1:
            await stranger.write(Add(0))
        theirs = await opened(stranger)
        assert theirs.id == ref.id
        for raft in (stranger, elsewhere.raft(others(stranger)[0])):
            for call in (
                raft.write(Add(1), session=SessionSerial(ref, 1)),
                raft.call(KeepSession(ref), timeout=2),
                raft.call(CloseSession(ref), timeout=2),
            ):
                refused = await outcome(call)
                assert isinstance(refused, SessionExpired)
                assert refused.outcome == "not_applied"
        assert theirs.id in sessions_of(stranger)
        assert await total(stranger) == 0


async def test_impossible_times_to_live_and_serials_are_refused_before_the_log() -> None:
    async with counters() as cluster:
        leader = await cluster.leader()
        ref = await opened(leader)
        before = leader.metrics().value.last_log_index
        for call in (
            leader.call(OpenSession(0), timeout=1),
            leader.call(OpenSession(10**9), timeout=1),
            leader.write(Add(1), session=SessionSerial(ref, 0)),
            leader.write(Add(1), session=SessionSerial(ref, 2, 2)),
        ):
            assert isinstance(await outcome(call), BadRequest)
        assert leader.metrics().value.last_log_index == before
