"""Client sessions on whole nodes: one effect per serial, keep-alives, expiry, leader changes, restarts."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from raftkit_core.config import Config, SnapshotPolicy
from raftkit_core.errors import (
    BadCommand,
    BadRequest,
    CommandRejected,
    ForwardToLeader,
    NotApplied,
    OutcomeUnknown,
    PreconditionFailed,
    QuorumNotEnough,
    RaftError,
    ResultForgotten,
    SessionExpired,
    WaitTimeout,
)
from raftkit_core.network.client_session import Serials
from raftkit_core.network.memory import DROP
from raftkit_core.raft import Raft
from raftkit_core.runtime import session_service
from raftkit_core.runtime.held_sessions import Session
from raftkit_core.testing.cluster import MemoryCluster, memory_cluster, outcome
from raftkit_core.testing.counting import Add, Counter
from raftkit_core.types.entry import NORMAL, decode_envelope
from raftkit_core.types.kv import CompareAndSet, Get, Put
from raftkit_core.types.log_id import index_of
from raftkit_core.types.operations import CloseSession, KeepSession, OpenSession, SessionOpened
from raftkit_core.types.session import SessionRef, SessionSerial

pytestmark = pytest.mark.virtual_time

ALL = ("n1", "n2", "n3")


def counters(**options: Any) -> Any:
    return memory_cluster(3, machine=Counter, **options)


def others(leader: Raft) -> list[str]:
    return [node_id for node_id in ALL if node_id != leader.id]


def sessions_of(raft: Raft) -> Any:
    return raft._core.worker.system.sessions


async def total(raft: Raft) -> int:
    found: int = await raft.read(lambda machine: machine.value)
    return found


async def opened(raft: Raft, ttl_ms: int = 5000) -> SessionRef:
    """A session nobody keeps alive."""
    done: SessionOpened = await raft.call(OpenSession(ttl_ms), timeout=5)
    return done.session


def lose_answers(cluster: MemoryCluster) -> None:
    """Nobody hears what became of what was forwarded."""
    cluster.hub.post_hook = lambda _src, _dst, kind: DROP if kind == "forward" else None


def lose_requests(cluster: MemoryCluster, kind: str, src: str | None = None) -> None:
    cluster.hub.pre_hook = lambda sender, _dst, sent, _message: DROP if sent == kind and src in (None, sender) else None


def clear(cluster: MemoryCluster) -> None:
    cluster.hub.pre_hook = cluster.hub.post_hook = None


def expiries(cluster: MemoryCluster, node_id: str) -> int:
    bodies = [decode_envelope(entry.payload).body for entry in cluster.log(node_id) if entry.kind == NORMAL]
    return sum(b"session_expire" in body for body in bodies)


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


# --- living and expiring ----------------------------------------------------------------------------------------------


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


async def sessions_gone(cluster: MemoryCluster, raft: Raft, session_id: int) -> None:
    await cluster.eventually(lambda: session_id not in sessions_of(raft), "the session expires", timeout=120)


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


# --- remembered -------------------------------------------------------------------------------------------------------


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


# --- opening ----------------------------------------------------------------------------------------------------------


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
