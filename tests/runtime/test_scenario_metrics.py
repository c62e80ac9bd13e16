"""Metrics, waiting for them, switches, and who may speak to a node (openraft.md §3.1 metrics; DESIGN §5)."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from three_nodes import ALL

from raftkit_core.config import Config
from raftkit_core.errors import IdentityError, NeedsRejoin, PeerBusy, StorageFull, WaitTimeout
from raftkit_core.runtime.metrics import Watch
from raftkit_core.runtime.ticker import Ticker
from raftkit_core.testing.cluster import memory_cluster, outcome
from raftkit_core.types.identity import PeerIdentity
from raftkit_core.types.ids import PROTOCOL_MAX
from raftkit_core.types.kv import Put
from raftkit_core.types.messages import HeartbeatRequest, HelloRequest, VoteRequest
from raftkit_core.types.metrics import ServerState
from raftkit_core.types.vote import LeaderId, Vote

pytestmark = pytest.mark.virtual_time


async def test_every_node_reports_the_same_leader() -> None:
    async with memory_cluster(3) as cluster:
        leader = await cluster.leader()
        assert {cluster.raft(node_id).current_leader() for node_id in ALL} == {leader.id}


async def test_the_replication_map_is_the_leader_s_alone_and_follows_the_membership() -> None:
    async with memory_cluster(3, ["n4"]) as cluster:
        leader = await cluster.leader("n1", "n2", "n3")
        index = (await leader.client_write(Put("a", b"1"))).log_id
        await leader.wait(5).metrics(
            lambda m: m.replication is not None and all(peer.matching == index for peer in m.replication.values()),
            "everything replicated",
        )
        replication = leader.metrics().value.replication
        assert replication is not None
        assert set(replication) == {"n1", "n2", "n3", "n4"} - {leader.id}
        target = next(node_id for node_id in ALL if node_id != leader.id)
        await leader.transfer_leader(target)
        assert leader.metrics().value.replication is None
        assert cluster.raft(target).metrics().value.replication is not None


async def test_the_age_of_the_last_quorum_answer_grows_in_silence() -> None:
    async with memory_cluster(3) as cluster:
        leader = await cluster.leader()
        await asyncio.sleep(0.5)
        fresh = leader.metrics().value.millis_since_quorum_ack
        assert fresh is not None
        assert fresh <= 130
        for node_id in ALL:
            if node_id != leader.id:
                cluster.hub.isolate(node_id)
        await asyncio.sleep(0.45)
        stale = leader.metrics().value.millis_since_quorum_ack
        assert stale is not None
        assert stale >= 400
        cluster.hub.heal()
        leader.trigger().heartbeat()
        await asyncio.sleep(0.02)
        assert (leader.metrics().value.millis_since_quorum_ack or 0) < 100


async def test_what_the_metrics_call_applied_is_in_the_machine() -> None:
    async with memory_cluster(3) as cluster:
        leader = await cluster.leader()
        for number in range(20):
            index = (await leader.client_write(Put(f"k{number}", b"v"))).log_id.index
            for node_id in ALL:
                await cluster.raft(node_id).wait(5).applied_index_at_least(index)
                assert len(cluster.raft(node_id).machine) == number + 1  # type: ignore[arg-type]


async def test_writes_move_the_data_metrics_and_leave_the_server_metrics_alone() -> None:
    async with memory_cluster(1) as cluster:
        raft = cluster.raft("n1")
        data, server = raft.data_metrics().value, raft.server_metrics().value
        await raft.client_write(Put("a", b"1"))
        assert raft.data_metrics().value != data
        assert raft.server_metrics().value == server


async def test_watching_metrics_gives_the_present_value_and_every_later_one() -> None:
    async with memory_cluster(1) as cluster:
        raft = cluster.raft("n1")
        seen: list[int | None] = []

        async def watch() -> None:
            async for metrics in raft.metrics():
                seen.append(metrics.applied_index)
                if metrics.applied_index == 3:
                    return

        watcher = asyncio.ensure_future(watch())
        await asyncio.sleep(0)
        await raft.client_write(Put("a", b"1"))
        await raft.client_write(Put("b", b"1"))
        await watcher
        assert (seen[0], seen[-1]) == (1, 3)


async def test_a_watcher_that_is_busy_when_the_node_ends_still_hears_why() -> None:
    async with memory_cluster(1) as cluster:
        raft = cluster.raft("n1")
        seen = []
        async for value in raft.metrics():
            seen.append(value.fatal)
            if len(seen) == 1:
                raft.fail(StorageFull("no room", subject="log", verb="write"))
                await asyncio.sleep(1)  # the watch is closed meanwhile
    assert seen[0] is None
    assert "no room" in (seen[-1] or "")


async def test_a_watcher_that_was_busy_sees_what_changed_meanwhile_at_once() -> None:
    numbers = [1]
    watch = Watch(lambda: numbers[-1])
    seen = []
    async for value in watch:
        seen.append(value)
        if len(seen) == 2:
            break
        numbers.append(2)
        watch.publish()  # nobody waits just now, and nothing is published later
    assert seen == [1, 2]


async def test_waiting_ends_with_the_latest_metrics_when_the_time_is_over() -> None:
    async with memory_cluster(1) as cluster:
        raft = cluster.raft("n1")
        with pytest.raises(WaitTimeout, match=r"n1 leader term 1"):
            await raft.wait(0.5).log_index_at_least(1000)
        waiting = raft.wait(0.0)  # what holds already is seen before any deadline
        for condition in (
            waiting.current_leader("n1"),
            waiting.state(ServerState.LEADER),
            waiting.log_index(1),
            waiting.applied_index(1),
            waiting.voter_ids(["n1"]),
            waiting.snapshot(None),
            waiting.purged(None),
            waiting.vote(raft.metrics().value.vote),
        ):
            assert (await condition).id == "n1"


async def test_heartbeats_can_be_switched_off_and_on_and_write_nothing() -> None:
    async with memory_cluster(3, config=Config(enable_elect=False)) as cluster:
        leader = await cluster.leader()
        index = leader.metrics().value.last_log_index
        leader.runtime_config().heartbeat(False)
        await asyncio.sleep(0.2)
        before = cluster.hub.counts["heartbeat"]
        await asyncio.sleep(0.2)
        assert cluster.hub.counts["heartbeat"] == before
        leader.runtime_config().heartbeat(True)
        await asyncio.sleep(0.5)
        assert cluster.hub.counts["heartbeat"] >= before + 6
        assert leader.metrics().value.last_log_index == index


async def test_deadlines_of_callers_run_on_while_ticks_are_off() -> None:
    async with memory_cluster(3) as cluster:
        leader = await cluster.leader()
        for node_id in ALL:
            cluster.raft(node_id).runtime_config().tick(False)
        cluster.hub.isolate(leader.id)
        assert (await outcome(leader.client_write(Put("a", b"1"), timeout=1.0))).code == "OUTCOME_UNKNOWN"


async def test_replication_does_not_wait_for_heartbeats() -> None:
    config = Config(
        heartbeat_interval_ms=10_000,
        leader_lease_ms=20_000,
        election_timeout_min_ms=20_000,
        election_timeout_max_ms=30_000,
        max_payload_entries=2,
    )
    async with memory_cluster(1, ["n2"], config=config) as cluster:
        leader = cluster.raft("n1")
        await leader.client_write_many([Put(f"k{number}", b"v") for number in range(50)])
        await cluster.applied(leader.metrics().value.last_log_index or 0, timeout=3)


async def test_an_unreachable_peer_is_asked_ever_more_slowly() -> None:
    async with memory_cluster(3) as cluster:
        leader = await cluster.leader()
        lost = next(node_id for node_id in ALL if node_id != leader.id)
        cluster.hub.isolate(lost, silent=False)
        await leader.client_write(Put("a", b"1"))
        before = cluster.hub.counts["append_entries"]
        await asyncio.sleep(10)
        assert 5 <= cluster.hub.counts["append_entries"] - before <= 30
        cluster.hub.heal()
        await cluster.applied(leader.metrics().value.last_log_index or 0, timeout=2)
        assert (await leader.status()).replication is not None


async def test_d13_ticks_stay_on_their_grid_whatever_rounding_does() -> None:
    ticks: list[float] = []
    loop = asyncio.get_running_loop()
    period = 0.1 / 3
    await asyncio.sleep(0.7)
    started = loop.time()
    ticker = Ticker(period, lambda: ticks.append(loop.time()))
    ticker.start()
    await asyncio.sleep(100)
    ticker.stop()
    assert len(ticks) in (2999, 3000)
    assert all(abs(at - (started + (n + 1) * period)) < 1e-6 for n, at in enumerate(ticks))


async def test_late_ticks_are_skipped_and_not_made_up_for() -> None:
    ticks: list[float] = []
    loop = asyncio.get_running_loop()
    ticker = Ticker(0.02, lambda: ticks.append(loop.time()))
    ticker.start()
    await asyncio.sleep(0.1)
    count = len(ticks)
    loop._virtual_now += 5.0  # type: ignore[attr-defined]  # the process was stopped
    await asyncio.sleep(0.05)
    ticker.stop()
    assert len(ticks) - count <= 4


# --- who may speak ----------------------------------------------------------------------------------------------------


def hello(raft: Any, **changed: Any) -> HelloRequest:
    said = {
        "cluster": "default",
        "cluster_id": None,
        "group": "default",
        "node_id": "n9",
        "store_id": "9" * 32,
        "target_node_id": raft.id,
        "target_store_id": None,
        "single_term_leader": False,
    }
    return HelloRequest(**(said | changed))


async def test_a_pristine_node_joins_only_the_cluster_that_names_its_store() -> None:
    async with memory_cluster(1, initialize=False) as cluster:
        raft = cluster.raft("n1")
        for stranger in (
            hello(raft, cluster_id="a" * 32),
            hello(raft, cluster_id="a" * 32, target_store_id="f" * 32),
            hello(raft, target_store_id=raft.store_id),
        ):
            assert (await raft._service.hello(stranger)).cluster_id is None
        named = hello(raft, cluster_id="a" * 32, target_store_id=raft.store_id)
        assert (await raft._service.hello(named)).cluster_id == "a" * 32
        assert cluster.disk("n1").identity is not None
        assert cluster.disk("n1").identity.cluster_id == "a" * 32
        with pytest.raises(IdentityError, match="belongs to cluster"):
            await raft._service.hello(hello(raft, cluster_id="b" * 32, target_store_id=raft.store_id))


@pytest.mark.parametrize(
    "changed",
    [
        {"target_node_id": "n2"},
        {"cluster": "other"},
        {"group": "other"},
        {"single_term_leader": True},
        {"protocol_min": PROTOCOL_MAX + 1, "protocol_max": PROTOCOL_MAX + 1},
    ],
)
async def test_a_hello_that_does_not_fit_is_refused(changed: dict[str, Any]) -> None:
    async with memory_cluster(1) as cluster:
        raft = cluster.raft("n1")
        with pytest.raises(IdentityError):
            await raft._service.hello(hello(raft, **changed))


async def test_a_node_believes_nobody_before_it_belongs_to_a_cluster_and_no_foreign_store_after() -> None:
    async with memory_cluster(3, initialize=False) as cluster:
        raft = cluster.raft("n2")
        vote = Vote(LeaderId(7, "n1"))
        peer = PeerIdentity("n1", cluster.raft("n1").store_id)
        with pytest.raises(PeerBusy):
            await raft.vote(VoteRequest(vote, None), peer)
        await cluster.raft("n1").initialize(cluster.members(*ALL))
        await cluster.leader()
        foreign = PeerIdentity("n1", "f" * 32)
        for call in (
            lambda: raft.vote(VoteRequest(vote, None), foreign),
            lambda: raft._service.heartbeat(HeartbeatRequest(vote.as_committed(), None, None, 500), foreign),
        ):
            with pytest.raises(NeedsRejoin):
                await call()
        with pytest.raises(IdentityError, match="speaks for"):
            await raft.vote(VoteRequest(Vote(LeaderId(7, "n3")), None), peer)
        assert raft.metrics().value.current_term < 7
