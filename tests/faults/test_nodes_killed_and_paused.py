"""Real nodes under kill -9 and SIGSTOP, with recorded clients; the history must stand, nothing acknowledged be lost."""

from __future__ import annotations

from pathlib import Path

import pytest
from nemeses import kills, pauses, transfers
from nodes import RealCluster, said, trial

from raftkit_core.network.client import Consistency

pytestmark = [pytest.mark.faults, pytest.mark.timeout(300)]


@pytest.mark.parametrize(("count", "machine", "seed"), [(3, "kv", 11), (5, "kv", 12), (3, "sqlite-kv", 13)])
async def test_killed_nodes_lose_nothing(count: int, machine: str, seed: int, tmp_path: Path) -> None:
    with RealCluster(tmp_path, count, machine=machine) as cluster:
        cluster.start()
        result = await trial(cluster, kills, seed=seed, keep=tmp_path)
    print(said(result))
    assert result.acknowledged > 20


@pytest.mark.parametrize(("seed", "consistency"), [(21, "linearizable"), (22, "lease")])
async def test_paused_nodes_answer_nothing_from_the_past(seed: int, consistency: Consistency, tmp_path: Path) -> None:
    """Reads by lease too: a leader that was stopped for longer than its lease must not count on it."""
    with RealCluster(tmp_path) as cluster:
        cluster.start()
        result = await trial(cluster, pauses, seed=seed, keep=tmp_path, consistency=consistency)
    print(said(result))
    assert result.acknowledged > 20


async def test_leadership_is_handed_over_and_lost_on_the_way(tmp_path: Path) -> None:
    with RealCluster(tmp_path) as cluster:
        cluster.start()
        result = await trial(cluster, transfers, seed=23, keep=tmp_path)
    print(said(result))
    assert result.acknowledged > 20
