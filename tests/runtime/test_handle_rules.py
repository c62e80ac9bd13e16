"""What single calls, switches and settings of a node promise, where no larger scenario shows it."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import pytest

from raftkit_core.config import Config, SnapshotPolicy
from raftkit_core.errors import Fatal, Stopped, StorageError, WaitTimeout
from raftkit_core.network.disturbances import DROP
from raftkit_core.testing.cluster import memory_cluster
from raftkit_core.types.ids import NodeId
from raftkit_core.types.kv import Put
from raftkit_core.types.membership import (
    AddNodes,
    AddVoterIds,
    AddVoters,
    Node,
    RemoveNodes,
    RemoveVoters,
    ReplaceAllNodes,
    ReplaceAllVoters,
    SetNodes,
)
from raftkit_core.types.messages import AppendEntriesRequest
from raftkit_core.types.metrics import ServerState

pytestmark = pytest.mark.virtual_time


# --- switches ---------------------------------------------------------------------------------------------------------


async def test_with_elections_off_nobody_campaigns_until_told_and_when_on_again_by_itself() -> None:
    async with memory_cluster(3) as cluster:
        leader = await cluster.leader()
        others = [raft for raft in cluster.rafts.values() if raft is not leader]
        for raft in others:
            raft.runtime_config().elect(False)
        term = leader.metrics().value.current_term
        await cluster.kill(leader.id)
        await asyncio.sleep(10)
        assert [raft.metrics().value.current_term for raft in others] == [term, term]
        others[0].trigger().elect()
        assert (await cluster.leader(timeout=2)) is others[0]
        await cluster.start(leader.id)
        for raft in others:
            raft.runtime_config().elect(True)
        await cluster.kill(others[0].id)
        await cluster.leader(timeout=10)


async def test_a_node_without_ticks_neither_campaigns_nor_beats_until_they_are_on() -> None:
    async with memory_cluster(2, initialize=False, config=Config(enable_tick=False)) as cluster:
        raft = cluster.raft("n1")
        await raft.initialize(cluster.members("n1", "n2"))
        await raft.wait(5).current_leader("n1")  # initialize campaigns without any tick
        await asyncio.sleep(0.5)
        before = cluster.hub.counts["heartbeat"]
        await asyncio.sleep(5)
        assert cluster.hub.counts["heartbeat"] == before
        assert raft.metrics().value.state is ServerState.LEADER, "who does not tick does not notice its silence either"
        await cluster.restart("n1")
        await asyncio.sleep(10)
        assert cluster.raft("n1").metrics().value.current_leader is None
        cluster.raft("n1").runtime_config().tick(True)
        await cluster.raft("n1").wait(10).current_leader("n1")


# --- membership -------------------------------------------------------------------------------------------------------


async def test_adding_a_learner_waits_until_it_lags_no_more_than_the_threshold() -> None:
    async with memory_cluster(1, ["n2"], config=Config(replication_lag_threshold=10)) as cluster:
        leader = cluster.raft("n1")
        cluster.hub.isolate("n2")
        await leader.client_write_many([Put(f"k{number}", b"v") for number in range(9)])
        await leader.add_learner("n2", cluster.address("n2"), timeout=1)  # with this very entry it lags by ten
        with pytest.raises(WaitTimeout, match="n2 to catch up"):
            await leader.add_learner("n2", cluster.address("n2"), timeout=1)
        cluster.hub.heal()
        await leader.add_learner("n2", cluster.address("n2"))


async def test_every_kind_of_change_does_to_voters_and_nodes_what_it_says() -> None:
    async with memory_cluster(1) as cluster:
        for node_id in ("n2", "n3"):
            await cluster.start(node_id)
        leader = cluster.raft("n1")
        at = cluster.members("n1", "n2", "n3")
        bound = Node(at["n2"].peer, store_id=cluster.raft("n2").store_id)
        tagged = {node_id: Node(node.peer, tags={"zone": "b"}) for node_id, node in at.items()}
        steps: list[tuple[Any, bool, tuple[str, ...], tuple[str, ...]]] = [
            (AddNodes({"n2": bound}), False, ("n1",), ("n1", "n2")),
            (AddVoterIds(("n2",)), False, ("n1", "n2"), ("n1", "n2")),
            (AddVoters({"n3": at["n3"]}), False, ("n1", "n2", "n3"), ("n1", "n2", "n3")),
            (RemoveVoters(("n3", "n9")), True, ("n1", "n2"), ("n1", "n2", "n3")),
            (ReplaceAllVoters(("n1",)), True, ("n1",), ("n1", "n2", "n3")),
            (SetNodes({"n2": tagged["n2"]}), False, ("n1",), ("n1", "n2", "n3")),
            (RemoveNodes(("n3",)), False, ("n1",), ("n1", "n2")),
            (ReplaceAllNodes({"n1": tagged["n1"]}), False, ("n1",), ("n1",)),
        ]
        for change, retain, voters, nodes in steps:
            done = await leader.change_membership(change, retain=retain, force=True)
            assert done.membership is not None
            assert (done.membership.voter_ids, tuple(done.membership.nodes)) == (voters, nodes), change
            if isinstance(change, AddNodes | AddVoters):
                await leader.add_learner("n2", at["n2"])  # until it has caught up; known nodes are not overridden
        assert leader.metrics().value.membership.membership.nodes["n1"].tags == {"zone": "b"}


# --- limits -----------------------------------------------------------------------------------------------------------


async def test_a_request_carries_no_more_bytes_than_its_limit_but_always_one_whole_entry() -> None:
    sent: list[list[int]] = []

    def look(_src: NodeId, _dst: NodeId, _kind: str, message: Any) -> None:
        if isinstance(message, AppendEntriesRequest) and message.entries:
            sent.append([len(entry.payload) for entry in message.entries])

    async with memory_cluster(2, config=Config(max_payload_bytes=1000)) as cluster:
        leader = await cluster.leader()
        cluster.hub.pre_hook = look
        await leader.client_write_many([Put(f"k{number}", b"v" * 200) for number in range(20)])
        await leader.client_write(Put("large", b"v" * 5000))
        await cluster.applied(leader.metrics().value.last_log_index or 0)
    assert max(map(len, sent)) > 1
    assert all(sum(sizes) <= 1000 or len(sizes) == 1 for sizes in sent), sent
    assert max(map(sum, sent)) > 5000


async def test_a_snapshot_without_progress_is_given_up_after_its_timeout_and_begun_anew() -> None:
    config = Config(
        snapshot_policy=SnapshotPolicy.Never(),
        max_in_snapshot_log_to_keep=0,
        purge_batch_size=1,
        install_snapshot_timeout_ms=3000,
    )
    attempts: list[float] = []

    def lose(_src: NodeId, _dst: NodeId, kind: str, _message: Any) -> str | None:
        if kind != "snapshot_offset":
            return None
        attempts.append(asyncio.get_running_loop().time())
        return DROP

    async with memory_cluster(1, config=config) as cluster:
        leader = cluster.raft("n1")
        await leader.client_write(Put("a", b"1"))
        leader.trigger().snapshot()
        await leader.wait(5).metrics(lambda m: m.purged == m.last_log_id, "an empty log")
        await cluster.start("n2")
        cluster.hub.pre_hook = lose
        await leader.add_learner("n2", cluster.address("n2"), blocking=False)
        await cluster.eventually(lambda: len(attempts) >= 3, "three attempts")
        gaps = [later - earlier for earlier, later in itertools.pairwise(attempts)]
        assert all(3.0 <= gap < 4.5 for gap in gaps), gaps
        cluster.hub.pre_hook = None
        await cluster.applied(leader.metrics().value.last_log_index or 0, "n2")


# --- waiting and looking ----------------------------------------------------------------------------------------------


async def test_waiting_ends_when_its_condition_comes_true_or_the_node_stops() -> None:
    async with memory_cluster(1) as cluster:
        raft = cluster.raft("n1")
        index = raft.metrics().value.last_log_index or 0
        waits = [
            asyncio.ensure_future(wait)
            for wait in (
                raft.wait(5).log_index_at_least(index + 2),
                raft.wait(5).applied_index_at_least(index + 1),
                raft.wait(5).any_leader(),
                raft.wait(5).metrics(lambda m: m.current_term >= 1),
            )
        ]
        endless = asyncio.ensure_future(raft.wait(1e9).log_index(10**9))
        await asyncio.sleep(0)
        await raft.client_write_many([Put("a", b"1"), Put("b", b"1")])
        assert [met.id for met in await asyncio.gather(*waits)] == ["n1"] * 4
        await cluster.stop("n1")
        with pytest.raises(Stopped, match="last log index 1000000000"):
            await endless


async def test_a_function_for_the_engine_gives_its_value_and_is_refused_after_the_end() -> None:
    async with memory_cluster(1) as cluster:
        raft = cluster.raft("n1")
        assert await raft.external_request(lambda engine, now: (engine.is_leader, now >= 0)) == (True, True)
        await cluster.stop("n1")
        with pytest.raises(Stopped):
            await raft.external_request(lambda engine, now: None)


async def test_a_storage_error_tells_what_was_touched_and_what_was_tried() -> None:
    async with memory_cluster(1) as cluster:
        raft = cluster.raft("n1")
        raft.fail(StorageError("the disk is on fire", subject="vote", verb="write"))
        with pytest.raises(Fatal) as fatal:
            await raft.client_write(Put("a", b"1"))
        cause = fatal.value.__cause__ if isinstance(fatal.value.__cause__, StorageError) else fatal.value
        assert isinstance(cause, StorageError)
        assert (cause.subject, cause.verb) == ("vote", "write")
        metrics = raft.metrics().value
        assert (metrics.running, metrics.state) == (False, ServerState.SHUTDOWN)
        assert "on fire" in str(metrics.fatal)
