"""Real nodes under kill -9 and SIGSTOP, with recorded clients; the history must stand, nothing acknowledged be lost."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest
from nodes import RealCluster, pick_leader_first, said, trial

pytestmark = [pytest.mark.faults, pytest.mark.timeout(300)]


async def kills(cluster: RealCluster, chance: random.Random) -> None:
    """One after another, the leader half of the time; every fourth time all at once."""
    await cluster.serving()
    for turn in range(8):
        await asyncio.sleep(chance.uniform(0.2, 1.0))
        cluster.check_alive()
        victims = list(cluster.nodes) if turn % 4 == 3 else [await pick_leader_first(cluster, chance, cluster.nodes)]
        for victim in victims:
            cluster.nodes[victim].kill()
        await asyncio.sleep(chance.uniform(0.0, 1.5))
        cluster.start(*victims)


async def pauses(cluster: RealCluster, chance: random.Random) -> None:
    """Shorter and longer than a lease and an election; a resumed leader must not answer from the past."""
    await cluster.serving()
    for _ in range(6):
        await asyncio.sleep(chance.uniform(0.2, 0.8))
        victim = await pick_leader_first(cluster, chance, cluster.nodes)
        cluster.nodes[victim].pause()
        await asyncio.sleep(chance.choice([0.3, 0.8, 2.5]))
        cluster.nodes[victim].resume()


@pytest.mark.parametrize(("count", "machine", "seed"), [(3, "kv", 11), (5, "kv", 12), (3, "sqlite-kv", 13)])
async def test_killed_nodes_lose_nothing(count: int, machine: str, seed: int, tmp_path: Path) -> None:
    with RealCluster(tmp_path, count, machine=machine) as cluster:
        cluster.start()
        result = await trial(cluster, kills, seed=seed, keep=tmp_path)
    print(said(result))
    assert result.acknowledged > 20


@pytest.mark.parametrize("seed", [21, 22])
async def test_paused_nodes_answer_nothing_from_the_past(seed: int, tmp_path: Path) -> None:
    with RealCluster(tmp_path) as cluster:
        cluster.start()
        result = await trial(cluster, pauses, seed=seed, keep=tmp_path)
    print(said(result))
    assert result.acknowledged > 20
