"""A lost quorum: the newest survivor is named, begins alone under a new cluster id, and the old nodes stay out."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import pytest

from raftkit_core.config import Config
from raftkit_core.errors import IdentityError, NeedsRejoin, StorageError
from raftkit_core.offline.machine import Standing, standing_of
from raftkit_core.offline.recover import Candidate, apply_recovery, choose_survivor, look, plan_recovery, retire_for
from raftkit_core.offline.store import open_store, write_log
from raftkit_core.runtime.opening import open_identity
from raftkit_core.state_machine.kv import KvStateMachine
from raftkit_core.storage.interface import LogBatch
from raftkit_core.storage.memory import MemoryLogStorage, MemorySnapshotStorage
from raftkit_core.testing.cluster import MemoryCluster, memory_cluster
from raftkit_core.types.entry import Entry, decode_membership
from raftkit_core.types.kv import Get, Put
from raftkit_core.types.log_id import LogId
from raftkit_core.types.membership import Membership, Node, StoredMembership
from raftkit_core.types.vote import LeaderId, Vote

SOME_HEX = "ab" * 16
THREE = Membership.of([("n1", "n2", "n3")], {f"n{n}": Node(f"memory:n{n}", store_id=str(n) * 32) for n in (1, 2, 3)})


def candidate(node: str, term: int, index: int, *, cluster_id: str = "c" * 32, retired: str = "") -> Candidate:
    last = LogId(LeaderId(term, "n1"), index)
    return Candidate(
        node_id=node,
        location=node,
        store_id=node.removeprefix("n") * 32,
        cluster_id=cluster_id,
        retired=retired,
        vote=Vote(LeaderId(term, "n1"), True),
        last_log_id=last,
        committed=LogId(LeaderId(term, "n1"), index - 2),
        membership=StoredMembership(LogId(LeaderId(0, ""), 0), THREE),
        time_ms=70,
    )


# --- the plan -------------------------------------------------------------------------------------------------------


def test_the_survivor_has_the_newest_log_by_leader_then_by_index() -> None:
    assert choose_survivor([candidate("n1", 2, 9), candidate("n2", 3, 5), candidate("n3", 3, 4)]).node_id == "n2"


def test_retired_stores_and_stores_of_two_clusters_are_not_recovered_from() -> None:
    with pytest.raises(IdentityError, match="different clusters"):
        choose_survivor([candidate("n1", 2, 9), candidate("n2", 2, 9, cluster_id="d" * 32)])
    with pytest.raises(IdentityError, match="none of these"):
        choose_survivor([candidate("n1", 2, 9, retired="migrated to redis://x")])
    assert choose_survivor([candidate("n1", 3, 9, retired="gone"), candidate("n2", 2, 1)]).node_id == "n2"


def test_the_plan_says_what_is_kept_and_what_may_be_lost() -> None:
    plan = plan_recovery([candidate("n2", 3, 9)], random_hex=SOME_HEX)
    assert (plan.survivor, plan.missing_voters, plan.had_quorum) == ("n2", ("n1", "n3"), False)
    assert plan.kept_uncommitted == 2
    assert plan.entry.log_id == LogId(LeaderId(4, "n2"), 10)
    assert plan.entry.time_ms == 70
    assert plan.vote == Vote(LeaderId(4, "n2"))
    assert decode_membership(plan.entry.payload) == plan.membership
    assert plan.membership == Membership.of([("n2",)], {"n2": Node("memory:n2", store_id="2" * 32)})
    assert plan.old_cluster_id == "c" * 32
    assert plan_recovery([candidate("n1", 2, 9), candidate("n2", 3, 9)], random_hex=SOME_HEX).had_quorum


def test_a_recovery_that_broke_off_is_gone_on_with_and_names_the_same_old_cluster() -> None:
    begun = candidate("n2", 3, 9, cluster_id="d" * 32, retired="not finished: the recovery of cluster " + "c" * 32)
    gone = candidate("n3", 3, 9, retired="its cluster was recovered from n2")
    plan = plan_recovery([gone, begun], random_hex=SOME_HEX)
    assert (plan.survivor, plan.old_cluster_id, plan.missing_voters) == ("n2", "c" * 32, ("n1",))


def test_the_new_cluster_id_is_a_digest_of_the_recovery_and_never_the_same_twice() -> None:
    first = plan_recovery([candidate("n2", 3, 9)], random_hex=SOME_HEX).new_cluster_id
    assert first == plan_recovery([candidate("n2", 3, 9)], random_hex=SOME_HEX).new_cluster_id
    assert first != plan_recovery([candidate("n2", 3, 9)], random_hex="cd" * 16).new_cluster_id
    assert len(first) == 32
    assert first != "c" * 32


def test_a_restored_copy_is_no_part_of_the_old_majority() -> None:
    """It may lack what its node had acknowledged, so with it nothing is known to be whole."""
    copy = msgspec.structs.replace(candidate("n2", 3, 5), store_id="e" * 32)
    plan = plan_recovery([candidate("n1", 3, 9), copy], random_hex=SOME_HEX)
    assert (plan.had_quorum, plan.missing_voters) == (False, ("n2", "n3"))


# --- the store ------------------------------------------------------------------------------------------------------


async def recover(stores: Any, log: Any) -> None:
    async with open_store(log, stores.snapshots(), stores.context()) as store:
        found = await look(store, await standing_of(store, KvStateMachine(), stores.context()))
        await apply_recovery(store, plan_recovery([found], random_hex=SOME_HEX))


async def test_a_recovery_that_dies_anywhere_is_the_old_store_or_none_to_start_on_and_goes_on(
    stores: Any, tmp_path: Path, mortal: Callable[..., Any], killed: type[Exception]
) -> None:
    """Never a moment in which the survivor, alone in the membership, still belongs to the old cluster."""
    machine, config = KvStateMachine(), Config(cluster="demo")
    finished = False
    for writes in range(8):
        folder = tmp_path / str(writes)
        folder.mkdir()
        here = type(stores)(folder)
        made = await here.make(committed=4)
        try:
            await recover(here, mortal(here.log("sqlite:raft.db"), writes))
            finished = True
        except killed:
            log = here.log("sqlite:raft.db")
            try:
                identity = await open_identity(log, here.context(), config, machine, Random(1))
                assert identity.cluster_id == "c" * 32
                assert (await log.read_state()).last_log_id == made[-1].log_id
            except NeedsRejoin:
                pass
            finally:
                await log.close()
            await recover(here, here.log("sqlite:raft.db"))
        log = here.log("sqlite:raft.db")
        identity = await open_identity(log, here.context(), config, machine, Random(1))
        state = await log.read_state()
        entries = await log.read(0, 99, 1 << 20)
        await log.close()
        assert identity.cluster_id not in (None, "c" * 32)
        assert state.committed == state.last_log_id
        memberships = [decode_membership(entry.payload) for entry in entries if entry.kind == 2]
        assert memberships[-1].voter_ids == ("n1",)
        if finished:
            break
    assert finished


async def test_a_store_that_went_on_since_it_was_looked_at_is_left_as_it_is(stores: Any) -> None:
    """A supervisor may have started the node while the backup was written."""
    made = await stores.make()
    async with open_store(stores.log("sqlite:raft.db"), stores.snapshots(), stores.context()) as store:
        found = await look(store, await standing_of(store, KvStateMachine(), stores.context()))
        plan = plan_recovery([found], random_hex=SOME_HEX)
        later = LogId(LeaderId(9, "n2"), made[-1].index + 1)
        await write_log(
            store.log, LogBatch(vote=Vote(later.leader_id, True), entries=[Entry(later, made[-1].time_ms, 0, b"")])
        )
        with pytest.raises(StorageError, match="went on") as raised:
            await apply_recovery(store, plan)
        assert "run raftkit recover again" in raised.value.hint
        assert (store.identity.cluster_id, store.identity.retired) == ("c" * 32, "")


async def test_a_snapshot_ahead_of_the_log_is_what_the_survivor_has(stores: Any) -> None:
    made = await stores.make(committed=3)
    ahead = LogId(LeaderId(5, "n3"), 40)
    await stores.publish(ahead)
    async with open_store(stores.log("sqlite:raft.db"), stores.snapshots(), stores.context()) as store:
        found = await look(store, await standing_of(store, KvStateMachine(), stores.context()))
        assert found.last_log_id == ahead != made[-1].log_id
        plan = plan_recovery([found], random_hex=SOME_HEX)
        assert plan.entry.log_id == LogId(LeaderId(6, "n1"), 41)
        await apply_recovery(store, plan)
        assert (await store.log.read_state()).last_log_id == plan.entry.log_id
        assert (await store.log.read_state()).last_purged == ahead


async def test_a_store_without_a_log_of_its_own_knows_the_members_from_its_machine(stores: Any) -> None:
    await stores.make(purged=6)
    async with open_store(stores.log("sqlite:raft.db"), stores.snapshots(), stores.context()) as store:
        found = await look(store, Standing(None, StoredMembership(LogId(LeaderId(0, ""), 0), THREE)))
        assert plan_recovery([found], random_hex=SOME_HEX).missing_voters == ("n2", "n3")


# --- the cluster ----------------------------------------------------------------------------------------------------


async def recover_disk(cluster: MemoryCluster, *node_ids: str) -> str:
    """Offline, on the memory disks of nodes that are down. Gives the survivor."""
    from raftkit_core.types.adapter import AdapterContext

    async def each(node_id: str, work: Callable[[Any, Any], Any]) -> Any:
        disk = cluster.disk(node_id)
        context = AdapterContext(node_id, clock=cluster._clock)
        async with open_store(MemoryLogStorage(disk), MemorySnapshotStorage(disk), context) as store:
            return await work(store, context)

    async def seen(store: Any, context: Any) -> Candidate:
        return await look(store, await standing_of(store, KvStateMachine(), context))

    plan = plan_recovery([await each(node_id, seen) for node_id in node_ids], random_hex=SOME_HEX)
    for node_id in node_ids:
        do = apply_recovery if node_id == plan.survivor else retire_for
        await each(node_id, lambda store, _, do=do: do(store, plan))
    return plan.survivor


@pytest.mark.virtual_time
async def test_the_survivor_leads_alone_the_dead_half_is_refused_and_wiped_nodes_rejoin() -> None:
    async with memory_cluster(3) as cluster:
        leader = await cluster.leader()
        index = (await leader.write(Put("kept", b"1"))).log_id.index
        await cluster.applied(index)
        old_cluster = leader.cluster_id
        for node_id in ("n1", "n2", "n3"):
            await cluster.kill(node_id)
        assert await recover_disk(cluster, "n1") == "n1"

        survivor = await cluster.start("n1")
        await cluster.leader("n1")
        assert survivor.cluster_id not in (None, old_cluster)
        assert (await survivor.read(Get("kept"))).value == b"1"
        await survivor.write(Put("new", b"2"))

        ghost = await cluster.start("n2")  # with what it had: alone it has no majority, and n1 is another cluster's
        with pytest.raises(IdentityError):
            await survivor.add_learner("n2", cluster.address("n2"))
        await asyncio.sleep(20)
        assert ghost.metrics().value.current_leader is None
        assert survivor.metrics().value.current_leader == "n1"
        await cluster.kill("n2")

        for node_id in ("n2", "n3"):
            cluster.wipe(node_id)
            await cluster.start(node_id)
            await survivor.add_learner(node_id, cluster.address(node_id))
        await survivor.change_membership({"n1", "n2", "n3"})
        index = (await survivor.write(Put("after", b"3"))).log_id.index
        await cluster.applied(index)
        assert {raft.cluster_id for raft in cluster.rafts.values()} == {survivor.cluster_id}


@pytest.mark.virtual_time
async def test_stores_that_are_handed_over_with_the_survivor_s_never_start_again() -> None:
    async with memory_cluster(3) as cluster:
        leader = await cluster.leader()
        await cluster.kill(next(node_id for node_id in ("n1", "n2", "n3") if node_id != leader.id))
        await leader.write(Put("k", b"v"))
        rest = sorted(cluster.rafts)
        for node_id in rest:
            await cluster.kill(node_id)
        survivor = await recover_disk(cluster, *rest)
        [other] = [node_id for node_id in rest if node_id != survivor]
        with pytest.raises(NeedsRejoin, match=f"recovered from {survivor}"):
            await cluster.start(other)
        await cluster.start(survivor)
        assert (await (await cluster.leader(survivor)).read(Get("k"))).value == b"v"
