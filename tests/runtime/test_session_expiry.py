"""Client sessions live while somebody keeps them alive: keep-alives, expiry, leader changes."""

from __future__ import annotations

import asyncio

import pytest
from session_checks import clear, counters, lose_answers, lose_requests, opened, sessions_gone, sessions_of, total
from three_nodes import ALL, others

from raftkit_core.errors import ForwardToLeader, OutcomeUnknown, QuorumNotEnough, RaftError, SessionExpired
from raftkit_core.network.disturbances import DROP
from raftkit_core.testing.cluster import MemoryCluster, memory_cluster, outcome
from raftkit_core.testing.counting import Add, Counter
from raftkit_core.types.entry import NORMAL, decode_envelope
from raftkit_core.types.operations import KeepSession
from raftkit_core.types.session import SessionSerial

pytestmark = pytest.mark.virtual_time


def expiries(cluster: MemoryCluster, node_id: str) -> int:
    bodies = [decode_envelope(entry.payload).body for entry in cluster.log(node_id) if entry.kind == NORMAL]
    return sum(b"session_expire" in body for body in bodies)


async def test_a_session_that_is_kept_alive_lives_and_writes_nothing_to_the_log() -> None:
    async with counters() as cluster:
        leader = await cluster.leader()
        async with cluster.raft(others(leader)[0]).open_session(ttl=2) as session:
            before = leader.metrics().value.last_log_index
            for _ in range(50):
                await asyncio.sleep(0.5)
                assert session.is_valid
                assert session.seconds_left > 0.9
            assert leader.metrics().value.last_log_index == before


async def test_a_session_nobody_keeps_alive_expires_by_an_entry_and_its_writes_are_refused_at_apply() -> None:
    async with counters() as cluster:
        leader = await cluster.leader()
        ref = await opened(leader, ttl_ms=2000)
        kept = await leader.open_session(ttl=2)
        await leader.write(Add(1), session=SessionSerial(ref, 1))
        await asyncio.sleep(1.9)
        assert ref.id in sessions_of(leader)
        await asyncio.sleep(0.3)
        for node_id in ALL:
            assert ref.id not in sessions_of(cluster.raft(node_id))
            assert kept.id in sessions_of(cluster.raft(node_id))
        assert {expiries(cluster, node_id) for node_id in ALL} == {1}
        before = leader.metrics().value.last_log_index
        for serial in (1, 2):
            refused = await outcome(leader.write(Add(1), session=SessionSerial(ref, serial)))
            assert isinstance(refused, SessionExpired)
            assert refused.outcome == "not_applied"
        assert leader.metrics().value.last_log_index == before + 2, "refused at apply"
        assert await total(leader) == 1
        await kept.close()


async def test_writes_under_a_session_keep_it_alive_too() -> None:
    async with counters() as cluster:
        leader = await cluster.leader()
        ref = await opened(leader, ttl_ms=1000)
        for serial in range(1, 20):
            await asyncio.sleep(0.6)
            await leader.write(Add(1), session=SessionSerial(ref, serial, serial - 1))
        assert await total(leader) == 19


async def test_a_retry_after_the_session_expired_has_an_unknown_outcome_and_no_second_effect() -> None:
    async with counters() as cluster:
        leader = await cluster.leader()
        follower = cluster.raft(others(leader)[0])
        session = await follower.open_session(ttl=2)
        lose_answers(cluster)
        pending = asyncio.ensure_future(session.write(Add(7), timeout=60))
        await cluster.eventually(lambda: leader.machine.value == 7, "the write is applied")
        lose_requests(cluster, "forward")
        await sessions_gone(cluster, leader, session.id)
        clear(cluster)
        told = await outcome(pending)
        assert isinstance(told, OutcomeUnknown)
        assert isinstance(told.__cause__, SessionExpired)
        assert session.is_expired
        with pytest.raises(SessionExpired):
            await session.write(Add(1))
        assert await total(follower) == 7
        await session.close()


async def test_a_leader_that_is_cut_off_answers_no_keep_alive_and_expires_nothing() -> None:
    async with counters() as cluster:
        leader = await cluster.leader()
        ref = await opened(leader, ttl_ms=3000)
        cluster.hub.isolate(leader.id)
        await asyncio.sleep(0.3)
        kept = await outcome(leader._operations.run(KeepSession(ref), 0.2))
        assert not isinstance(kept, RaftError), "inside its read lease nobody else can lead"
        await asyncio.sleep(0.2)
        told = await outcome(leader._operations.run(KeepSession(ref), 1.0))
        assert isinstance(told, QuorumNotEnough | ForwardToLeader), told
        new_leader = await cluster.leader(*others(leader))
        await asyncio.sleep(2.5)
        assert ref.id in sessions_of(new_leader), "the new leader grants a full time to live"
        await asyncio.sleep(1.5)
        assert ref.id not in sessions_of(new_leader)
        assert expiries(cluster, leader.id) == 0
        cluster.hub.heal()
        assert isinstance(await outcome(leader.call(KeepSession(ref), timeout=5)), SessionExpired)


async def test_no_keep_alive_is_answered_while_an_expiry_is_in_the_log() -> None:
    async with counters() as cluster:
        leader = await cluster.leader()
        ref = await opened(leader, ttl_ms=2000)
        # Followers take nothing new: the expiry gets into the leader's log and cannot be committed.
        lose_requests(cluster, "append_entries")
        await cluster.eventually(lambda: leader._core.sessions.expiry_of(ref.id), "the expiry is proposed")
        assert ref.id in sessions_of(leader)
        pending = asyncio.ensure_future(outcome(leader.call(KeepSession(ref), timeout=20)))
        await asyncio.sleep(0.2)
        assert not pending.done()
        clear(cluster)
        assert isinstance(await pending, SessionExpired)


async def test_an_expiry_that_never_commits_ends_with_its_leader() -> None:
    async with counters() as cluster:
        leader = await cluster.leader()
        ref = await opened(leader, ttl_ms=2000)
        lose_requests(cluster, "append_entries", leader.id)
        await cluster.eventually(lambda: leader._core.sessions.expiry_of(ref.id), "the expiry is proposed")
        pending = asyncio.ensure_future(outcome(leader._operations.run(KeepSession(ref), 20)))
        await asyncio.sleep(0.1)
        cluster.hub.isolate(leader.id)
        new_leader = await cluster.leader(*others(leader))
        await new_leader.call(KeepSession(ref), timeout=5)
        cluster.hub.heal()
        clear(cluster)
        assert isinstance(await pending, ForwardToLeader | QuorumNotEnough)
        await leader.call(KeepSession(ref), timeout=5)
        assert all(ref.id in sessions_of(cluster.raft(node_id)) for node_id in ALL)


async def test_a_new_leader_answers_no_keep_alive_before_its_first_entry_is_applied() -> None:
    """Else it could keep a session whose expiry it inherited and has not applied yet."""
    async with counters() as cluster:
        leader = await cluster.leader()
        ref = await opened(leader, ttl_ms=1500)
        cluster.hub.post_hook = lambda _src, _dst, kind: DROP if kind == "append_entries" else None
        await cluster.eventually(
            lambda: all(expiries(cluster, node_id) for node_id in ALL), "the expiry is everywhere, committed nowhere"
        )
        assert all(ref.id in sessions_of(cluster.raft(node_id)) for node_id in ALL)
        await cluster.kill(leader.id)
        new_leader = await cluster.leader()
        assert ref.id in sessions_of(new_leader)
        pending = asyncio.ensure_future(outcome(new_leader.call(KeepSession(ref), timeout=20)))
        await asyncio.sleep(0.1)
        assert not pending.done()
        clear(cluster)
        assert isinstance(await pending, SessionExpired)


async def test_a_leader_that_was_paused_grants_every_session_its_time_again() -> None:
    async with counters() as cluster:
        leader = await cluster.leader()
        ref = await opened(leader, ttl_ms=2000)
        await asyncio.sleep(1.4)
        # Nobody answers for a moment, and nobody can be elected: the quorum lease ends and comes back.
        for node_id in others(leader):
            cluster.raft(node_id).runtime_config().elect(False)
        cluster.hub.isolate(leader.id)
        await asyncio.sleep(0.7)
        cluster.hub.heal()
        await cluster.eventually(lambda: leader._core.engine.is_leader, "it leads on")
        await asyncio.sleep(1.7)
        assert ref.id in sessions_of(leader)
        await sessions_gone(cluster, leader, ref.id)


async def test_a_single_voter_that_stood_still_grants_every_session_its_time_again() -> None:
    async with memory_cluster(1, machine=Counter) as cluster:
        leader = await cluster.leader()
        ref = await opened(leader, ttl_ms=2000)
        await asyncio.sleep(0.1)
        leader.runtime_config().tick(False)  # as in a process that is stopped: nothing is looked at
        await asyncio.sleep(3.0)
        leader.runtime_config().tick(True)
        await asyncio.sleep(1.5)
        assert ref.id in sessions_of(leader), "what its client sent meanwhile may be waiting to be read"
        await sessions_gone(cluster, leader, ref.id)


async def test_a_client_counts_its_time_from_the_send_of_the_last_answered_keep_alive() -> None:
    async with counters() as cluster:
        leader = await cluster.leader()
        loop = asyncio.get_running_loop()
        session = await cluster.raft(others(leader)[0]).open_session(ttl=4)
        await asyncio.sleep(1.0)
        cut_at = loop.time()
        lose_requests(cluster, "forward")
        lasts_until = loop.time() + session.seconds_left
        await cluster.eventually(lambda: not session.is_valid, "the client gives it up")
        client_gave_up_at = loop.time()
        assert client_gave_up_at == pytest.approx(lasts_until, abs=0.02)
        assert client_gave_up_at <= cut_at + 4 * (1 - leader.config.max_clock_drift)
        assert session.id in sessions_of(leader), "the client gives up before the cluster does"
        await sessions_gone(cluster, leader, session.id)
        clear(cluster)
        await cluster.eventually(lambda: session.is_expired, "the client is told")
        await session.close()


async def test_a_write_under_a_session_that_was_just_closed_is_refused_and_troubles_nobody() -> None:
    async with counters() as cluster:
        leader = await cluster.leader()
        async with leader.open_session() as session:
            pass
        assert isinstance(await outcome(leader.write(Add(1), session=SessionSerial(session.ref, 1))), SessionExpired)
        await leader.write(Add(1))


async def test_many_sessions_expire_by_few_entries() -> None:
    async with counters() as cluster:
        leader = await cluster.leader()
        refs = await asyncio.gather(*(opened(leader, ttl_ms=2000) for _ in range(300)))
        assert len({ref.id for ref in refs}) == 300
        await asyncio.sleep(4)
        assert len(sessions_of(leader)) == 0
        assert expiries(cluster, leader.id) <= 3
        assert not leader._core.sessions._expiring, "what is over costs no memory"
