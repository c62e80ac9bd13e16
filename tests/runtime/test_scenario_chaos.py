"""Seeded disorder: cuts, kills, wipe-free restarts, snapshots and hand-overs under load, over slow disks.

After every run: no acknowledged write is lost, no refused one is found, all logs and machines are equal, and a leader
serves. The simulator proves more; this keeps the runtime honest in the default tests.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from random import Random
from typing import Any

import pytest

from raftkit_core.config import Config, SnapshotPolicy
from raftkit_core.errors import Fatal, RaftError
from raftkit_core.storage.interface import LogBatch
from raftkit_core.storage.memory import MemoryDisk, MemoryLogStorage
from raftkit_core.testing.cluster import MemoryCluster, memory_cluster
from raftkit_core.types.kv import Get, Put

pytestmark = pytest.mark.virtual_time

NAMES = ("n1", "n2", "n3", "n4", "n5")


class SlowDisk(MemoryLogStorage):
    def __init__(self, disk: MemoryDisk) -> None:
        super().__init__(disk)
        self._random = Random(disk.name)

    def write(self, batch: LogBatch) -> Awaitable[None] | None:  # type: ignore[override]
        if self._random.random() < 0.3:
            return super().write(batch)
        return self._later(batch)

    async def _later(self, batch: LogBatch) -> None:
        await asyncio.sleep(self._random.uniform(0.0, 0.02))
        super().write(batch)


class Books:
    """What the clients were told."""

    def __init__(self) -> None:
        self.acknowledged: dict[str, bytes] = {}
        self.refused: set[str] = set()

    async def client(self, cluster: MemoryCluster, name: str, random: Random, until: float) -> None:
        loop = asyncio.get_running_loop()
        number = 0
        while loop.time() < until:
            key = f"{name}/{number}"
            number += 1
            running = sorted(cluster.rafts)
            if running:
                try:
                    await cluster.raft(random.choice(running)).write(Put(key, key.encode()), timeout=1.0)
                    self.acknowledged[key] = key.encode()
                except RaftError as error:
                    if error.outcome == "not_applied":
                        self.refused.add(key)
            await asyncio.sleep(random.uniform(0.0, 0.05))


async def disorder(cluster: MemoryCluster, random: Random, until: float) -> None:
    loop = asyncio.get_running_loop()
    while loop.time() < until:
        await asyncio.sleep(random.uniform(0.05, 0.8))
        running = sorted(cluster.rafts)
        match random.randrange(9):
            case 0 | 1 if len(running) > 2:
                await cluster.kill(random.choice(running))
            case 2 if running:
                await cluster.restart(random.choice(running))
            case 3:
                cut = random.sample(NAMES, random.randrange(1, 3))
                cluster.hub.partition(set(cut), set(NAMES) - set(cut), silent=random.random() < 0.5)
            case 4:
                src, dst = random.sample(NAMES, 2)
                cluster.hub.cut(src, dst)
            case 5 | 6:
                cluster.hub.heal()
                for node_id in NAMES:
                    if node_id not in cluster.rafts:
                        await cluster.start(node_id)
            case 7 if running:
                cluster.raft(random.choice(running)).trigger().snapshot()
            case 8 if running:
                cluster.raft(random.choice(running)).trigger().transfer_leader()
            case _:
                cluster.hub.latency = random.choice([0.0, 0.005, 0.05])


@pytest.mark.parametrize("seed", range(4))
async def test_nothing_acknowledged_is_lost_in_disorder(seed: int) -> None:
    await run(seed, seconds=5.0)


async def run(seed: int, seconds: float = 12.0) -> dict[str, Any]:
    random = Random(seed)
    config = Config(
        snapshot_policy=SnapshotPolicy.LogsSinceLast(40),
        max_in_snapshot_log_to_keep=5,
        purge_batch_size=1,
        max_payload_entries=7,
        single_term_leader=seed % 2 == 1,
    )
    async with memory_cluster(NAMES, config=config, storage=SlowDisk, seed=seed) as cluster:
        until = asyncio.get_running_loop().time() + seconds
        books = Books()
        await asyncio.gather(
            disorder(cluster, random, until),
            *(books.client(cluster, f"c{number}", Random(f"{seed}/{number}"), until) for number in range(3)),
        )
        for node in cluster.rafts.values():
            assert node.fatal is None or not isinstance(node.fatal, Fatal | AssertionError), node.fatal
        cluster.hub.heal()
        cluster.hub.latency = 0.0
        for node_id in NAMES:
            if node_id not in cluster.rafts:
                await cluster.start(node_id)
        leader = await cluster.leader(timeout=30)
        end = await leader.write(Put("end", b"v"), timeout=20)
        await cluster.applied(end.log_id.index, timeout=30)
        for key, value in books.acknowledged.items():
            found = await leader.read(Get(key))
            assert found is not None, f"seed {seed}: {key} was acknowledged and is lost"
            assert found.value == value
        for key in books.refused:
            assert await leader.read(Get(key)) is None, f"seed {seed}: {key} was refused and is there"
        await asyncio.sleep(1)
        assert len({cluster.raft(node_id).machine.digest() for node_id in NAMES}) == 1
        held = [{entry.index: entry for entry in cluster.log(node_id)} for node_id in NAMES]
        common = set.intersection(*(set(log) for log in held))
        assert all(len({str(log[index]) for log in held}) == 1 for index in common)
        return {"acknowledged": len(books.acknowledged), "refused": len(books.refused)}
