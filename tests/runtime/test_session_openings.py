"""Opening a client session: once, however often it is asked for."""

from __future__ import annotations

import asyncio

import pytest
from session_checks import sessions_gone, sessions_of
from three_nodes import others

from raftkit_core.errors import BadRequest, ForwardToLeader, OutcomeUnknown, QuorumNotEnough, WaitTimeout
from raftkit_core.network.disturbances import DROP
from raftkit_core.runtime import session_service
from raftkit_core.testing.cluster import memory_cluster, outcome
from raftkit_core.types.operations import CloseSession, KeepSession, OpenSession

pytestmark = pytest.mark.virtual_time


async def test_an_opening_that_is_repeated_gives_the_same_session_and_leaves_no_orphan() -> None:
    async with memory_cluster(3) as cluster:
        leader = await cluster.leader()
        opening = OpenSession(30_000, "of this opening")
        first, second = await asyncio.gather(leader.call(opening, timeout=5), leader.call(opening, timeout=5))
        third = await leader.call(opening, timeout=5)
        assert first.session == second.session == third.session
        others = [await leader.call(each, timeout=5) for each in (OpenSession(30_000, "x"), *[OpenSession(30_000)] * 2)]
        assert len({first.session, *(each.session for each in others)}) == 4
        assert len(leader._core.worker.system.sessions) == 4


async def test_an_opening_whose_answer_a_follower_did_not_get_gives_the_same_session_again() -> None:
    async with memory_cluster(3) as cluster:
        leader = await cluster.leader()
        follower = next(raft for raft in cluster.rafts.values() if raft is not leader)
        opening = OpenSession(30_000, "n")
        cluster.hub.post_hook = lambda _src, dst, kind: DROP if kind == "forward" and dst == leader.id else None
        lost = await outcome(follower.call(opening, timeout=0.5))
        assert isinstance(lost, OutcomeUnknown)
        cluster.hub.post_hook = None
        opened = await follower.call(opening, timeout=5)
        assert opened.session.id in leader._core.worker.system.sessions
        assert len(leader._core.worker.system.sessions) == 1


async def test_an_opening_that_failed_or_whose_session_is_over_begins_anew() -> None:
    async with memory_cluster(3) as cluster:
        leader = await cluster.leader()
        opening = OpenSession(1000, "n")
        first = await leader.call(opening, timeout=5)
        await leader.call(CloseSession(first.session), timeout=5)
        again = await leader.call(opening, timeout=5)
        assert again.session != first.session
        with pytest.raises(BadRequest, match="nonce"):
            await leader.call(OpenSession(1000, "n" * 65), timeout=5)


async def test_who_is_told_of_a_session_again_has_its_whole_time_to_live_again() -> None:
    """A client counts from the request that was answered: a session that ended by the first one would end under it."""
    async with memory_cluster(3) as cluster:
        leader = await cluster.leader()
        opening = OpenSession(2000, "n")
        first = await leader.call(opening, timeout=5)
        for _ in range(4):
            await asyncio.sleep(1.5)
            assert (await leader.call(opening, timeout=5)).session == first.session
        await asyncio.sleep(1.5)
        assert first.session.id in sessions_of(leader)
        await sessions_gone(cluster, leader, first.session.id)


async def test_a_leader_that_is_cut_off_tells_nobody_of_a_session_again() -> None:
    async with memory_cluster(3) as cluster:
        leader = await cluster.leader()
        opening = OpenSession(30_000, "n")
        await leader.call(opening, timeout=5)
        cluster.hub.isolate(leader.id)
        await asyncio.sleep(0.6)  # longer than the lease, shorter than until it steps down
        assert leader.metrics().value.current_leader == leader.id
        told = await outcome(leader._sessions.open(opening, 0.2))
        assert isinstance(told, QuorumNotEnough | ForwardToLeader | WaitTimeout), told


async def test_an_opening_that_is_repeated_at_a_new_leader_leaves_a_session_that_expires() -> None:
    """Which request opened what is in the memory of the leader that took it. The orphan costs a place for its time to
    live, and nothing is written under it."""
    async with memory_cluster(3) as cluster:
        leader = await cluster.leader()
        opening = OpenSession(2000, "n")
        orphan = await leader.call(opening, timeout=5)
        await leader.transfer_leader()
        leader = await cluster.leader(*others(leader))
        repeated = await leader.call(opening, timeout=5)
        assert repeated.session != orphan.session
        assert len(sessions_of(leader)) == 2
        for _ in range(4):
            await asyncio.sleep(1.0)
            await leader.call(KeepSession(repeated.session), timeout=5)
        assert orphan.session.id not in sessions_of(leader)
        assert repeated.session.id in sessions_of(leader)


async def test_openings_repeated_side_by_side_after_the_session_is_over_open_one() -> None:
    async with memory_cluster(3) as cluster:
        leader = await cluster.leader()
        opening = OpenSession(30_000, "n")
        first = await leader.call(opening, timeout=5)
        await leader.call(CloseSession(first.session), timeout=5)
        again = await asyncio.gather(*(leader.call(opening, timeout=5) for _ in range(5)))
        assert len({each.session for each in again}) == 1
        assert len(sessions_of(leader)) == 1


async def test_no_more_openings_are_remembered_than_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_service, "OPENINGS_KEPT", 3)
    async with memory_cluster(1) as cluster:
        leader = await cluster.leader()
        for number in range(6):
            await leader.call(OpenSession(30_000, str(number)), timeout=5)
        assert len(leader._sessions._openings) == 3
