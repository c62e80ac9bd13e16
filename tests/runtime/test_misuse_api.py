"""What the public API does when it is used wrongly: a typed error or a bounded effect, never a hang (rows A1-A10)."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from raftkit_core.config import Config, ReadPolicy, SnapshotPolicy
from raftkit_core.errors import (
    BadCommand,
    ChangeMembershipError,
    ConfigError,
    EmptyMembership,
    ForwardToLeader,
    InProgress,
    LearnerNotFound,
    NotAllowed,
    NotInMembers,
    Overloaded,
    QuorumNotEnough,
    RaftError,
    Stopped,
    TransferFailed,
)
from raftkit_core.network.disturbances import DROP
from raftkit_core.network.memory import MemoryNetworkFactory
from raftkit_core.raft import Raft
from raftkit_core.state_machine.kv import KvStateMachine
from raftkit_core.storage.memory import MemoryLogStorage, MemorySnapshotStorage
from raftkit_core.testing.cluster import memory_cluster, outcome
from raftkit_core.testing.virtual_time import VirtualClock
from raftkit_core.types.kv import Get, Put
from raftkit_core.types.membership import Node

pytestmark = pytest.mark.virtual_time

VOTERS = ("n1", "n2", "n3")
ON_REQUEST = Config(snapshot_policy=SnapshotPolicy.Never(), max_in_snapshot_log_to_keep=0, purge_batch_size=1)


def leader_only(raft: Raft) -> list[Awaitable[Any]]:
    """One call of each kind that only a leader carries out."""
    return [
        raft.client_write(Put("a", b"1")),
        raft.ensure_linearizable(),
        raft.ensure_linearizable(ReadPolicy.LEASE),
        raft.get_read_log_id(),
        raft.change_membership(["n1"]),
        raft.add_learner("n9", Node("memory:elsewhere/n9")),
        raft.set_members(["n1"]),
    ]


# --- A1 · on the wrong node -------------------------------------------------------------------------------------------


async def test_a1_a_follower_names_the_leader_and_its_address_for_every_call_that_only_a_leader_carries_out() -> None:
    async with memory_cluster(3) as cluster:
        leader = await cluster.leader()
        follower = next(raft for raft in cluster.rafts.values() if raft is not leader)
        for told in [await outcome(call) for call in leader_only(follower)]:
            assert isinstance(told, ForwardToLeader), told
            assert told.leader == leader.id
            assert told.leader_node is not None
            assert told.leader_node.peer == cluster.address(leader.id).peer
        assert leader.metrics().value.last_log_index == follower.metrics().value.last_log_index == 1


async def test_a1_without_a_leader_nobody_is_named() -> None:
    async with memory_cluster(1, initialize=False) as cluster:
        for told in [await outcome(call) for call in leader_only(cluster.raft("n1"))]:
            assert isinstance(told, ForwardToLeader), told
            assert (told.leader, told.leader_node) == (None, None)


# --- A2 · initialize --------------------------------------------------------------------------------------------------


async def test_a2_initialize_is_refused_twice_without_oneself_and_where_another_cluster_is() -> None:
    async with memory_cluster(3, initialize=False) as cluster:
        n1, n2, n3 = (cluster.raft(node_id) for node_id in VOTERS)
        with pytest.raises(NotInMembers):
            await n1.initialize(cluster.members("n2"))
        with pytest.raises(ConfigError):
            await n1.initialize(["n1", "n2"])
        assert not await n1.is_initialized()
        await n1.initialize(cluster.members("n1", "n2"))
        await cluster.leader("n1", "n2")
        for raft in (n1, n2):
            with pytest.raises(NotAllowed):
                await raft.initialize(cluster.members("n1", "n2"))
        with pytest.raises(RaftError):
            await n3.initialize(cluster.members("n2", "n3"))
        assert n1.cluster_id == n2.cluster_id
        assert n3.cluster_id != n1.cluster_id


# --- A3 · membership changes ------------------------------------------------------------------------------------------


async def test_a3_changes_that_cannot_be_are_refused_and_the_same_set_is_no_error() -> None:
    async with memory_cluster(3) as cluster:
        leader = await cluster.leader()
        before = leader.metrics().value.last_log_index
        for change, error in (([], EmptyMembership), (["n1", "n2", "n9"], LearnerNotFound)):
            with pytest.raises(error):
                await leader.change_membership(change)
        for bad in ("", "a/b", "x" * 64):
            with pytest.raises(ChangeMembershipError):
                await leader.add_learner(bad, cluster.address("n1"))
        with pytest.raises(ConfigError):
            await leader.add_learner("n4", Node("nonsense"))
        assert leader.metrics().value.last_log_index == before, "nothing entered the log"
        same = await leader.change_membership(VOTERS)
        assert same.membership is not None
        assert same.membership.voter_ids == VOTERS
        assert not same.membership.is_joint


async def test_a3_a_second_change_waits_for_nobody_and_says_that_one_is_in_progress() -> None:
    async with memory_cluster(3) as cluster:
        leader = await cluster.leader()
        cluster.hub.latency = 0.05
        first = asyncio.ensure_future(leader.change_membership(["n1", "n2"]))
        await asyncio.sleep(0)
        with pytest.raises(InProgress):
            await leader.change_membership(VOTERS)
        assert (await first).membership.voter_ids == ("n1", "n2")


# --- A4 · configuration -----------------------------------------------------------------------------------------------

BAD_SETTINGS: list[tuple[str, Any]] = [
    *((name, bad) for name in ("max_payload_entries", "snapshot_chunk_bytes", "max_inflight") for bad in (0, -1, 1.5)),
    *(("heartbeat_interval_ms", bad) for bad in (0, -100, float("nan"), float("inf"), "100", True, None)),
    *(("max_clock_drift", bad) for bad in (float("nan"), 1.0, -0.1, "0.1", None)),
    ("election_timeout_max_ms", 500),
    ("election_timeout_min_ms", 1000),
    ("election_timeout_min_ms", 100),
    ("leader_lease_ms", 150),
    ("max_in_snapshot_log_to_keep", -1),
    ("replication_lag_threshold", "many"),
    ("max_entry_bytes", 2**40),
    ("snapshot_policy", "never"),
    ("snapshot_policy", SnapshotPolicy.LogsSinceLast(0)),
    ("cluster", ""),
    ("pre_vote", 1),
]


@pytest.mark.parametrize(("name", "value"), BAD_SETTINGS, ids=lambda part: str(part)[:40])
def test_a4_a_setting_that_is_wrong_is_named_when_the_config_is_made(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=name.removesuffix("_min_ms").removesuffix("_max_ms")):
        Config(**{name: value})


# --- A5 · cancelling --------------------------------------------------------------------------------------------------


async def test_a5_a_cancelled_write_may_be_applied_and_leaves_nothing_behind() -> None:
    async with memory_cluster(3) as cluster:
        leader = await cluster.leader()
        calls = [asyncio.ensure_future(leader.client_write(Put(f"k{number}", b"1"))) for number in range(20)]
        calls += [asyncio.ensure_future(leader.ensure_linearizable()) for _ in range(20)]
        for turns, call in enumerate(calls):
            if turns % 7 == 0:
                await asyncio.sleep(0)
            call.cancel()
        await asyncio.wait(calls)
        after = await leader.client_write(Put("after", b"1"))
        await cluster.applied(after.log_id.index)
        await asyncio.sleep(6)
        assert leader.metrics().value.pending_writes == 0
        assert not leader._core.waiting._requests, "no future of a cancelled call is kept"
        assert len({raft.machine.digest() for raft in cluster.rafts.values()}) == 1


# --- A6 · before and after --------------------------------------------------------------------------------------------


async def test_a6_every_call_after_a_shutdown_is_stopped_and_a_second_shutdown_does_nothing() -> None:
    async with memory_cluster(1) as cluster:
        raft = cluster.raft("n1")
        await asyncio.gather(raft.shutdown(), raft.shutdown())
        await raft.shutdown()
        calls: list[Callable[[], Any]] = [
            lambda: raft.client_write(Put("a", b"1")),
            lambda: raft.write(Put("a", b"1")),
            lambda: raft.client_write_many([Put("a", b"1")]),
            lambda: raft.read(Get("a")),
            lambda: raft.read(Get("a"), ReadPolicy.STALE),
            raft.ensure_linearizable,
            raft.get_snapshot,
            raft.is_initialized,
            lambda: raft.initialize(["n1"]),
            lambda: raft.change_membership(["n1"]),
            raft.transfer_leader,
            lambda: raft.with_raft_state(lambda state: None),
            lambda: raft.wait(1).current_leader("n2"),
        ]
        for call in calls:
            with pytest.raises(Stopped):
                await call()
        with pytest.raises(Stopped):
            raft.client_write_ff(Put("a", b"1"))
        for trigger in (raft.trigger().elect, raft.trigger().snapshot, raft.trigger().heartbeat):
            with pytest.raises(Stopped):
                trigger()
        assert (await raft.status()).role == "shutdown"


@pytest.mark.parametrize("turns", range(8))
async def test_a6_a_start_that_is_cancelled_at_any_point_lets_go_of_everything(turns: int) -> None:
    async with memory_cluster(0) as cluster:
        disk = cluster.disk("n1")
        starting = asyncio.ensure_future(
            Raft.start(
                "n1",
                storage=MemoryLogStorage(disk),
                snapshots=MemorySnapshotStorage(disk),
                state_machine=KvStateMachine(),
                network=MemoryNetworkFactory(cluster.name, "n1"),
                clock=VirtualClock(),
            )
        )
        for _ in range(turns):
            await asyncio.sleep(0)
        starting.cancel()
        done = (await asyncio.gather(starting, return_exceptions=True))[0]
        if isinstance(done, Raft):
            await done.shutdown()
        raft = await cluster.start("n1")
        await raft.initialize(["n1"])


async def test_a6_a_shutdown_right_after_the_start_and_with_calls_under_way_ends_them_all() -> None:
    async with memory_cluster(0) as cluster:
        raft = await cluster.start("n1")
        calls = [
            asyncio.ensure_future(outcome(call))
            for call in (
                raft.initialize(["n1"]),
                raft.write(Put("a", b"1"), timeout=30),
                raft.wait(30).current_leader("n1"),
            )
        ]
        await asyncio.sleep(0)
        await cluster.stop("n1")
        done, _ = await asyncio.wait(calls, timeout=0.2)
        assert len(done) == len(calls)


# --- A7 · from elsewhere ----------------------------------------------------------------------------------------------


def in_a_thread(work: Callable[[], Any]) -> Any:
    """What ``work`` gives or raises in another thread; the node's own loop stands still meanwhile."""
    found: list[Any] = []

    def run() -> None:
        try:
            found.append(work())
        except BaseException as error:
            found.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(60)
    assert found, "the call hung"
    return found[0]


async def test_a7_a_call_from_another_loop_is_an_error_at_once() -> None:
    async with memory_cluster(3) as cluster:
        leader = await cluster.leader()
        follower = next(raft for raft in cluster.rafts.values() if raft is not leader)

        async def everything(raft: Raft) -> list[Any]:
            calls: list[Callable[[], Awaitable[Any]]] = [
                lambda: raft.client_write(Put("a", b"1")),
                lambda: raft.client_write_many([Put("a", b"1")]),
                lambda: raft.write(Put("a", b"1")),
                lambda: raft.read(Get("a")),
                lambda: raft.read(Get("a"), ReadPolicy.STALE),
                raft.ensure_linearizable,
                raft.get_read_log_id,
                raft.is_initialized,
                raft.status,
                raft.get_snapshot,
                lambda: raft.initialize(["n1"]),
                lambda: raft.change_membership(["n1"]),
                lambda: raft.set_members(["n1"]),
                lambda: raft.add_learner("n4", cluster.address("n4")),
                raft.transfer_leader,
                lambda: raft.with_raft_state(lambda state: None),
                lambda: raft.external_request(lambda engine, now: None),
                lambda: raft.wait(1).current_leader("nobody"),
                raft.shutdown,
            ]
            found = []
            for call in calls:
                try:
                    found.append(await call())
                except Exception as error:
                    found.append(error)
            return found

        for raft in (leader, follower):
            for told in in_a_thread(lambda raft=raft: asyncio.run(everything(raft))):
                assert type(told) is RuntimeError, told
                assert "another event loop" in str(told)
        assert (await leader.write(Put("b", b"1"))).log_id.index == 2, "nothing of it arrived"


def test_a7_a_call_from_another_loop_of_the_same_thread_is_an_error() -> None:
    """The node's own loop stands still meanwhile: what was queued would be lost, or hang."""
    own, other = asyncio.new_event_loop(), asyncio.new_event_loop()
    try:
        cluster = own.run_until_complete(_entered(manager := memory_cluster(1)))
        raft = own.run_until_complete(cluster.leader())

        async def everything() -> list[Any]:
            found = []
            for call in (
                lambda: raft.client_write(Put("a", b"1")),
                lambda: raft.client_write_many([Put("a", b"1")]),
                lambda: raft.write(Put("a", b"1")),
                lambda: raft.read(Get("a")),
                lambda: raft.change_membership(["n1"]),
            ):
                try:
                    found.append(await asyncio.wait_for(call(), 0.2))
                except Exception as error:
                    found.append(error)
            return found

        for _ in range(2):
            assert [type(told) for told in other.run_until_complete(everything())] == [RuntimeError] * 5
            for number in range(4):  # alone, each after the one before: such a write takes its turn at once
                own.run_until_complete(raft.client_write(Put("b", str(number).encode())))
        own.run_until_complete(manager.__aexit__(None, None, None))
    finally:
        own.close()
        other.close()


async def _entered(manager: Any) -> Any:
    return await manager.__aenter__()


async def test_a7_a_call_without_a_loop_is_an_error_at_once() -> None:
    async with memory_cluster(1, clock=VirtualClock(asyncio.get_running_loop())) as cluster:
        raft = cluster.raft("n1")
        for call in (
            lambda: raft.client_write_ff(Put("a", b"1")),
            raft.trigger().elect,
            raft.trigger().snapshot,
            raft.trigger().transfer_leader,
            lambda: raft.runtime_config().tick(False),
            lambda: raft.runtime_config().heartbeat(False),
            lambda: raft.runtime_config().elect(False),
        ):
            assert type(in_a_thread(call)) is RuntimeError
        assert in_a_thread(lambda: raft.metrics().value).current_leader == "n1", "looking is allowed"
        await raft.client_write(Put("a", b"1"))


# --- A8 · too many ----------------------------------------------------------------------------------------------------


async def test_a8_of_ten_thousand_writes_at_once_each_is_applied_in_order_or_refused() -> None:
    config = Config(max_uncommitted_bytes=64 * 1024)
    async with memory_cluster(3, config=config) as cluster:
        leader = await cluster.leader()
        calls = [outcome(leader.client_write(Put(f"k{number}", b"x" * 20), timeout=30)) for number in range(10_000)]
        told = await asyncio.gather(*calls)
        applied = [result.log_id.index for result in told if not isinstance(result, RaftError)]
        refused = [result for result in told if isinstance(result, RaftError)]
        assert {type(error) for error in refused} <= {Overloaded}
        assert len(applied) > 100
        assert applied == sorted(applied), "in the order of the calls"
        assert leader.metrics().value.pending_writes == 0
        assert leader.metrics().value.last_log_index == 1 + len(applied)
        await leader.client_write(Put("after", b"1"))


# --- A9 · bad commands ------------------------------------------------------------------------------------------------


async def test_a9_what_is_no_command_never_enters_the_log() -> None:
    async with memory_cluster(3, config=Config(max_entry_bytes=1000)) as cluster:
        leader = await cluster.leader()
        before = leader.metrics().value.last_log_index
        bad: list[Any] = [None, object(), b"", b"\x00", {}, "text", 7, lambda: None, Put("k", "text"), Put(None, b"v")]  # type: ignore[arg-type]
        bad += [Put("k", b"v" * 2000), Put("\ud800", b"v"), [[]] * 5]
        for command in bad:
            for write in (leader.client_write, leader.write):
                with pytest.raises(BadCommand):
                    await write(command)
            with pytest.raises(BadCommand):
                await leader.client_write_many([Put("fine", b"1"), command])
        assert leader.metrics().value.last_log_index == before
        assert (await leader.client_write(Put("empty", b""))).log_id.index == 2, "no bytes at all are a value"


# --- A10 · triggers ---------------------------------------------------------------------------------------------------


async def test_a10_an_election_on_the_leader_changes_nothing() -> None:
    async with memory_cluster(3) as cluster:
        leader = await cluster.leader()
        vote = leader.metrics().value.vote
        for _ in range(5):
            leader.trigger().elect()
            await asyncio.sleep(0.3)
        assert leader.metrics().value.vote == vote


async def test_a10_two_snapshots_at_one_position_are_one_build() -> None:
    builds = 0

    class Counting(KvStateMachine):
        def snapshot(self) -> Any:
            nonlocal builds
            builds += 1
            return super().snapshot()

    async with memory_cluster(1, config=ON_REQUEST, machine=Counting) as cluster:
        raft = cluster.raft("n1")
        done = await raft.client_write(Put("a", b"1"))
        for _ in range(3):
            raft.trigger().snapshot()
        await raft.wait(5).snapshot(done.log_id)
        raft.trigger().snapshot()
        await asyncio.sleep(0.2)
        assert builds == 1


async def test_a10_a_purge_goes_no_further_than_the_snapshot() -> None:
    config = Config(snapshot_policy=SnapshotPolicy.Never(), max_in_snapshot_log_to_keep=1000)
    async with memory_cluster(1, config=config) as cluster:
        raft = cluster.raft("n1")
        raft.trigger().purge_log(10**9)
        await asyncio.sleep(0.1)
        assert raft.metrics().value.purged is None
        done = await raft.client_write(Put("a", b"1"))
        raft.trigger().snapshot()
        await raft.wait(5).snapshot(done.log_id)
        await raft.client_write(Put("b", b"1"))
        for upto in (10**9, -5, 0):
            raft.trigger().purge_log(upto)
        await raft.wait(5).purged(done.log_id)
        assert (await raft.client_write(Put("c", b"1"))).log_id.index == done.log_id.index + 2


async def test_a10_a_transfer_to_nobody_who_can_lead_is_refused_and_writes_go_on() -> None:
    async with memory_cluster(3, ["n4"]) as cluster:
        leader = await cluster.leader(*VOTERS)
        for target in ("n4", "n9", ""):
            with pytest.raises(TransferFailed):
                await leader.transfer_leader(target)
        assert await leader.transfer_leader(leader.id) == leader.id, "it leads already"
        assert leader.metrics().value.current_leader == leader.id
        await leader.client_write(Put("a", b"1"))


async def test_a10_a_transfer_to_a_node_that_lags_ends_in_time_and_writes_resume() -> None:
    async with memory_cluster(3) as cluster:
        leader = await cluster.leader()
        lagging = next(node_id for node_id in VOTERS if node_id != leader.id)
        cluster.hub.pre_hook = lambda _src, dst, kind, _message: (
            DROP if dst == lagging and kind == "append_entries" else None
        )
        await leader.client_write(Put("a", b"1"))
        loop = asyncio.get_running_loop()
        started = loop.time()
        with pytest.raises(TransferFailed):
            await leader.transfer_leader(lagging, timeout=3)
        assert loop.time() - started <= 3.2
        cluster.hub.pre_hook = None
        try:
            await leader.client_write(Put("b", b"1"))
        except (ForwardToLeader, QuorumNotEnough):
            pytest.fail("a hand-over that failed must not cost leadership")
