"""What keeps going, and how soon it goes on again: elections, one-way links, hung parts (rows V1-V12, N4-N6).

Everything runs in virtual time with several seeds: a seed moves every election timeout and every delay. For more of
them: ``RAFTKIT_LIVENESS_SEEDS=50``; for longer ones: ``RAFTKIT_LIVENESS_SECONDS=60``.
"""

from __future__ import annotations

import asyncio
import os
from random import Random
from typing import Any, ClassVar

import pytest

from raftkit_core.config import Config
from raftkit_core.errors import QuorumNotEnough, RaftError
from raftkit_core.network.disturbances import DROP
from raftkit_core.raft import Raft
from raftkit_core.storage.interface import LogBatch
from raftkit_core.storage.memory import MemoryDisk, MemoryLogStorage
from raftkit_core.testing.cluster import MemoryCluster, memory_cluster, outcome
from raftkit_core.types.ids import NodeId
from raftkit_core.types.kv import Get, Put
from raftkit_core.types.metrics import ServerState

pytestmark = pytest.mark.virtual_time

CONFIG = Config(heartbeat_interval_ms=200)
"""The defaults, but for fewer heartbeats: half the steps to simulate, and a harder case."""
TIMEOUT = CONFIG.election_timeout_max_ms / 1000
"""T of the rows: the longest election timeout, in seconds."""
LEASE = CONFIG.leader_lease_ms / 1000
VOTERS = ("n1", "n2", "n3")
SEEDS = range(int(os.environ.get("RAFTKIT_LIVENESS_SEEDS", "2")))
LASTS = float(os.environ.get("RAFTKIT_LIVENESS_SECONDS", "5"))
"""For how many seconds a cluster with broken links is watched."""


def others(node_id: NodeId, among: tuple[NodeId, ...] = VOTERS) -> list[NodeId]:
    return [other for other in among if other != node_id]


def now() -> float:
    return asyncio.get_running_loop().time()


def terms(cluster: MemoryCluster) -> dict[NodeId, int]:
    return {node_id: raft.metrics().value.current_term for node_id, raft in cluster.rafts.items()}


async def keeps_serving(cluster: MemoryCluster, via: list[NodeId], seconds: float) -> int:
    """Write through ``via`` for ``seconds``; gives the longest pause between two acknowledged writes, in ms."""
    random = Random(7)
    until, last, longest = now() + seconds, now(), 0.0
    number = 0
    while now() < until:
        number += 1
        told = await outcome(cluster.raft(random.choice(via)).write(Put(f"k{number}", b"v"), timeout=1.0))
        if not isinstance(told, RaftError):
            longest = max(longest, now() - last)
            last = now()
        await asyncio.sleep(0.1)
    return int(max(longest, now() - last) * 1000)


# --- healthy links ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("single_term_leader", [False, True])
async def test_v11_with_healthy_links_nobody_is_elected_after_the_first(seed: int, single_term_leader: bool) -> None:
    config = Config(heartbeat_interval_ms=200, single_term_leader=single_term_leader)
    async with memory_cluster(3, ["n4"], seed=seed, config=config) as cluster:
        leader = await cluster.leader()
        random = Random(seed)
        cluster.hub.pre_hook = lambda *_: random.uniform(0.0, 0.03)
        votes = {node_id: raft.metrics().value.vote for node_id, raft in cluster.rafts.items()}
        cluster.hub.counts.clear()
        await asyncio.sleep(4 * LASTS)
        assert {node_id: raft.metrics().value.vote for node_id, raft in cluster.rafts.items()} == votes
        assert cluster.hub.counts["vote"] == cluster.hub.counts["pre_vote"] == 0
        assert (await cluster.leader()) is leader


@pytest.mark.parametrize("seed", SEEDS)
async def test_v5_after_the_leader_died_the_next_write_is_there_within_three_timeouts(seed: int) -> None:
    async with memory_cluster(3, config=CONFIG, seed=seed) as cluster:
        leader = await cluster.leader()
        await asyncio.sleep(Random(seed).uniform(0.0, 0.5))
        await cluster.kill(leader.id)
        started = now()
        await cluster.raft(others(leader.id)[0]).write(Put("a", b"1"), timeout=30)
        assert now() - started <= 3 * (LEASE + TIMEOUT)


@pytest.mark.parametrize("seed", SEEDS)
async def test_v12_a_restart_of_any_node_costs_one_election_at_most(seed: int) -> None:
    async with memory_cluster(3, config=CONFIG, seed=seed) as cluster:
        leader = await cluster.leader()
        before = max(terms(cluster).values())
        await cluster.restart(others(leader.id)[seed % 2])
        await asyncio.sleep(3)
        assert max(terms(cluster).values()) == before, "a follower's restart costs none"
        await cluster.restart(leader.id)
        await cluster.leader()
        await asyncio.sleep(3)
        assert max(terms(cluster).values()) <= before + 1


# --- one-way links, for ever ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("way", ["receives only", "sends only"])
async def test_n5_a_follower_with_one_way_links_deposes_nobody(seed: int, way: str) -> None:
    async with memory_cluster(3, config=CONFIG, seed=seed) as cluster:
        leader = await cluster.leader()
        broken = others(leader.id)[seed % 2]
        for other in others(broken):
            cluster.hub.cut(*((broken, other) if way == "receives only" else (other, broken)))
        before = terms(cluster)
        longest = await keeps_serving(cluster, others(broken), LASTS)
        assert longest < 500, "no write waited for an election"
        assert cluster.raft(leader.id).metrics().value.state is ServerState.LEADER
        assert terms(cluster) == before, "no term was used up"
        cluster.hub.heal()
        assert (await cluster.leader(timeout=10 * TIMEOUT)) is leader
        assert terms(cluster) == before, "it comes back without an election"


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("way", ["receives only", "sends only"])
async def test_n5_a_leader_with_one_way_links_is_replaced_once(seed: int, way: str) -> None:
    async with memory_cluster(3, config=CONFIG, seed=seed) as cluster:
        leader = await cluster.leader()
        rest = others(leader.id)
        for other in rest:
            cluster.hub.cut(*((leader.id, other) if way == "receives only" else (other, leader.id)))
        await leader.wait(10).metrics(lambda m: m.state is not ServerState.LEADER, "stepping down")
        new_leader = await cluster.leader(*rest, timeout=10 * TIMEOUT)
        term = new_leader.metrics().value.current_term
        assert await keeps_serving(cluster, rest, LASTS) < 500
        assert new_leader.metrics().value.state is ServerState.LEADER
        assert new_leader.metrics().value.current_term == term, "the broken node deposes nobody"
        cluster.hub.heal()
        assert (await cluster.leader(timeout=10 * TIMEOUT)) is new_leader


@pytest.mark.parametrize("pair", [(a, b) for a in VOTERS for b in VOTERS if a != b], ids="-".join)
@pytest.mark.parametrize("seed", SEEDS[:1])
async def test_n5_one_broken_direction_between_two_nodes_stops_nothing(seed: int, pair: tuple[NodeId, NodeId]) -> None:
    async with memory_cluster(3, config=CONFIG, seed=seed) as cluster:
        await cluster.leader()
        cluster.hub.cut(*pair)
        await asyncio.sleep(5 * TIMEOUT)  # whoever has to go has gone
        whole = next(node_id for node_id in VOTERS if node_id not in pair)
        settled = max(terms(cluster).values())
        assert await keeps_serving(cluster, [whole], LASTS) < 500
        assert max(terms(cluster).values()) == settled, "elections have come to rest"


@pytest.mark.parametrize("seed", range(2 * len(SEEDS)))
async def test_v3_a_linked_quorum_serves_whatever_links_the_rest_has(seed: int) -> None:
    """A random core of three is whole; the two others are dead, or have one-way links to everybody, for ever."""
    random = Random(seed)
    names = ("n1", "n2", "n3", "n4", "n5")
    async with memory_cluster(names, config=CONFIG, seed=seed) as cluster:
        await cluster.leader()
        core = sorted(random.sample(names, 3))
        for broken in [name for name in names if name not in core]:
            match random.choice(["dead", "sends only", "receives only", "random"]):
                case "dead":
                    await cluster.kill(broken)
                case "sends only":
                    for other in others(broken, names):
                        cluster.hub.cut(other, broken)
                case "receives only":
                    for other in others(broken, names):
                        cluster.hub.cut(broken, other)
                case _:
                    for other in others(broken, names):
                        cluster.hub.cut(*random.choice([(other, broken), (broken, other)]))
        await asyncio.sleep(5 * TIMEOUT)
        settled = max(terms(cluster)[node_id] for node_id in core)
        assert await keeps_serving(cluster, core, LASTS) < 1000
        assert max(terms(cluster)[node_id] for node_id in core) <= settled + 1


# --- partial partitions -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("leads", ["the middle", "an end"])
async def test_n6_where_one_node_sees_all_a_leader_with_a_quorum_keeps_going(seed: int, leads: str) -> None:
    async with memory_cluster(3, config=CONFIG, seed=seed) as cluster:
        leader = await cluster.leader()
        middle = leader.id if leads == "the middle" else others(leader.id)[seed % 2]
        left, right = others(middle)
        cluster.hub.partition({left}, {right})
        before = max(terms(cluster).values())
        assert await keeps_serving(cluster, [middle], LASTS) < 500
        assert max(terms(cluster).values()) == before
        assert leader.metrics().value.state is ServerState.LEADER


@pytest.mark.parametrize("seed", SEEDS)
async def test_n6_in_a_ring_of_five_one_leader_is_found_and_kept(seed: int) -> None:
    names = ("n1", "n2", "n3", "n4", "n5")
    async with memory_cluster(names, config=CONFIG, seed=seed) as cluster:
        await cluster.leader()
        for number, name in enumerate(names):
            for other in names:
                if other not in (name, names[number - 1], names[(number + 1) % 5]):
                    cluster.hub.cut(name, other)
        await asyncio.sleep(5 * TIMEOUT)
        leaders = [name for name in names if cluster.raft(name).metrics().value.state is ServerState.LEADER]
        assert len(leaders) == 1, "each node sees a quorum: itself and its neighbours"
        settled = max(terms(cluster).values())
        assert await keeps_serving(cluster, leaders, LASTS) < 500
        assert max(terms(cluster).values()) <= settled + 1


@pytest.mark.parametrize("seed", SEEDS)
async def test_n4_a_leader_in_the_minority_neither_reads_nor_writes_and_steps_down(seed: int) -> None:
    async with memory_cluster(3, config=CONFIG, seed=seed) as cluster:
        leader = await cluster.leader()
        cluster.hub.partition({leader.id}, set(others(leader.id)))
        started = now()
        read, write = await asyncio.gather(
            outcome(leader.read(Get("a"), timeout=1.0)), outcome(leader.client_write(Put("a", b"old"), timeout=1.0))
        )
        assert isinstance(read, QuorumNotEnough)
        assert write.outcome == "unknown"
        await leader.wait(10).metrics(lambda m: m.state is not ServerState.LEADER, "stepping down")
        assert now() - started <= LEASE + 2 * TIMEOUT
        new_leader = await cluster.leader(*others(leader.id))
        await new_leader.client_write(Put("a", b"new"))
        cluster.hub.heal()
        assert (await cluster.leader(timeout=10 * TIMEOUT)) is new_leader
        assert (await leader.read(Get("a"))).value == b"new"


# --- after the healing ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
async def test_v4_after_a_heal_all_nodes_become_equal_without_any_new_write(seed: int) -> None:
    random = Random(seed)
    names = ("n1", "n2", "n3", "n4", "n5")
    async with memory_cluster(names, config=CONFIG, seed=seed) as cluster:
        for number in range(4):
            cut = set(random.sample(names, random.randrange(1, 3)))
            cluster.hub.partition(cut, set(names) - cut)
            for name in names:
                if cluster.raft(name).metrics().value.state is ServerState.LEADER:
                    await outcome(cluster.raft(name).client_write(Put(f"{number}/{name}", b"v"), timeout=0.3))
            await asyncio.sleep(random.uniform(0.2, 3.0))
            cluster.hub.heal()
            await asyncio.sleep(random.uniform(0.0, 0.5))
        started = now()
        writes = cluster.hub.counts["forward"]

        def are_equal() -> bool:
            all_metrics = [raft.metrics().value for raft in cluster.rafts.values()]
            return (
                len({m.current_leader for m in all_metrics}) == 1
                and all_metrics[0].current_leader is not None
                and len({(m.last_log_id, m.last_applied, m.committed) for m in all_metrics}) == 1
                and all(m.last_applied == m.last_log_id for m in all_metrics)
                and len({raft.machine.digest() for raft in cluster.rafts.values()}) == 1
            )

        await cluster.eventually(are_equal, "equal nodes", 30 * TIMEOUT)
        assert now() - started <= 10 * TIMEOUT
        assert cluster.hub.counts["forward"] == writes
        started = now()
        for number in range(10):
            await cluster.raft(names[number % 5]).write(Put(f"end/{number}", b"v"))
            assert (await cluster.raft(names[(number + 1) % 5]).read(Get(f"end/{number}"))).value == b"v"
        assert now() - started <= 10 * TIMEOUT


# --- hung parts -------------------------------------------------------------------------------------------------------


class HangingDisk(MemoryLogStorage):
    """Never finishes a write while its disk is in ``hung``."""

    hung: ClassVar[set[str]] = set()

    def write(self, batch: LogBatch) -> Any:
        return self._hang(batch) if self.disk.name in self.hung else super().write(batch)

    async def _hang(self, batch: LogBatch) -> None:
        while self.disk.name in self.hung:  # noqa: ASYNC110 - the test says when
            await asyncio.sleep(0.05)
        super().write(batch)


@pytest.mark.parametrize("seed", SEEDS)
async def test_a_leader_with_a_hung_disk_steps_down_and_another_leads(seed: int) -> None:
    class Disk(HangingDisk):
        hung: ClassVar[set[str]] = set()

    def storage(disk: MemoryDisk) -> MemoryLogStorage:
        return Disk(disk)

    async with memory_cluster(3, config=CONFIG, seed=seed, storage=storage) as cluster:
        leader = await cluster.leader()
        Disk.hung.add(leader.id)
        started = now()
        pending = asyncio.ensure_future(outcome(leader.client_write(Put("a", b"1"), timeout=20)))
        await leader.wait(20).metrics(lambda m: m.state is not ServerState.LEADER, "stepping down")
        assert now() - started <= CONFIG.storage_stall_timeout_ms / 1000 + TIMEOUT
        new_leader = await cluster.leader(*others(leader.id), timeout=10 * TIMEOUT)
        assert await keeps_serving(cluster, others(leader.id), LASTS) < 500
        assert new_leader.metrics().value.state is ServerState.LEADER
        Disk.hung.clear()
        assert (await cluster.leader(timeout=10 * TIMEOUT)) is new_leader, "back again, it deposes nobody"
        await pending
        assert (await leader.read(Get("a"))).value == b"1"


@pytest.mark.parametrize("hangs", ["its network", "its disk"])
@pytest.mark.parametrize("seed", SEEDS)
async def test_v8_a_hung_follower_delays_neither_commits_nor_membership_calls(seed: int, hangs: str) -> None:
    class Disk(HangingDisk):
        hung: ClassVar[set[str]] = set()

    def storage(disk: MemoryDisk) -> MemoryLogStorage:
        return Disk(disk)

    async with memory_cluster(3, ["n4"], config=CONFIG, seed=seed, storage=storage) as cluster:
        leader = await cluster.leader()
        cluster.hub.latency = 0.001
        hung = others(leader.id)[seed % 2]
        if hangs == "its disk":
            Disk.hung.add(hung)
        else:
            cluster.hub.pre_hook = lambda _src, dst, _kind, _message: DROP if dst == hung else None
        heartbeat = CONFIG.heartbeat_interval_ms / 1000
        for number in range(20):
            started = now()
            await leader.client_write(Put(f"k{number}", b"v"))
            assert now() - started < heartbeat
        await cluster.start("n5")
        for change in (
            lambda: leader.add_learner("n5", cluster.address("n5")),
            lambda: leader.change_membership([*VOTERS, "n4"]),
            lambda: leader.change_membership([*others(hung), "n4"]),
        ):
            started = now()
            await change()
            assert now() - started < heartbeat
        Disk.hung.clear()


@pytest.mark.parametrize("seed", SEEDS)
async def test_v9_a_removed_node_that_knows_nothing_of_it_stops_no_writes(seed: int) -> None:
    async with memory_cluster(3, config=CONFIG, seed=seed) as cluster:
        leader = await cluster.leader()
        removed = others(leader.id)[seed % 2]
        cluster.hub.isolate(removed)
        await leader.change_membership(others(removed))
        await asyncio.sleep(3 * TIMEOUT)
        cluster.hub.heal()
        cluster.raft(removed).trigger().elect()
        before = leader.metrics().value.current_term
        assert await keeps_serving(cluster, others(removed), LASTS) < 500
        assert leader.metrics().value.current_term == before


async def test_v6_a_lagging_node_catches_up_while_writes_go_on() -> None:
    async with memory_cluster(3) as cluster:
        leader = await cluster.leader()
        lagging = others(leader.id)[0]
        await cluster.kill(lagging)
        for first in range(0, 2000, 100):
            await leader.client_write_many([Put(f"k{number}", b"v") for number in range(first, first + 100)])
        cluster.hub.latency = 0.005
        raft: Raft = await cluster.start(lagging)
        target = leader.metrics().value.last_log_index
        assert target is not None
        started = now()
        busy = asyncio.ensure_future(keeps_serving(cluster, [leader.id], 5))
        await raft.wait(20).applied_index_at_least(target)
        assert now() - started <= 3 * TIMEOUT
        await busy
