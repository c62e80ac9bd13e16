"""Real nodes on disks that fill up, fail, and forget what was not synced when the power goes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from fuse_disk import why_not
from nemeses import PowerCuts, fuse_disks
from nodes import RealCluster, others, said, trial

from raftkit_core.errors import RaftError

pytestmark = [pytest.mark.faults, pytest.mark.timeout(300)]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MiB."""
    if sys.platform != "linux" or os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("a disk that can be full is a tmpfs, mounted as root on Linux: run this suite as root")
    place = tmp_path / "small"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(place)], capture_output=True, text=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip(f"a tmpfs cannot be mounted here: {mounted.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def fill(disk: Path) -> Path:
    """Nothing more fits."""
    filler = disk / "filler"
    with filler.open("ab", buffering=0) as file:
        for size in (1 << 16, 1 << 12, 1):
            with contextlib.suppress(OSError):
                while file.write(b"x" * size) == size:
                    pass
    return filler


@pytest.mark.parametrize("is_leader", [False, True], ids=["a follower", "the leader"])
async def test_a_node_whose_disk_is_full_stops_with_words_and_comes_back(
    is_leader: bool, small_disk: Path, tmp_path: Path
) -> None:
    async def nemesis(cluster: RealCluster, chance: random.Random) -> None:
        node = cluster.nodes["n1"]
        await cluster.serving()
        async with cluster.client() as client:
            # The room it has decides who is meant, so leadership is moved, not awaited.
            with contextlib.suppress(RaftError):
                await client.transfer_leader("n1" if is_leader else chance.choice(others(cluster, "n1")))
        await asyncio.sleep(0.5)
        cluster.may_die.add("n1")
        filler = fill(small_disk)
        for _ in range(300):
            if node.exit_code is not None:
                break
            await asyncio.sleep(0.1)
        assert node.exit_code == 10, f"the node goes on with a full disk:\n{node.tail()}"
        assert "disk is full" in node.tail() or "database or disk is full" in node.tail() or "No space" in node.tail()
        await cluster.serving()  # the others do not need it
        filler.unlink()

    with RealCluster(tmp_path, folders={"n1": small_disk / "n1"}) as cluster:
        cluster.start()
        result = await trial(cluster, nemesis, seed=41 + is_leader, keep=tmp_path)
    print(said(result))
    assert result.acknowledged > 20


needs_fuse = pytest.mark.skipif(why_not() is not None, reason=why_not() or "")


@needs_fuse
@pytest.mark.parametrize(("machine", "seed"), [("kv", 51), ("sqlite-kv", 52)])
async def test_power_cuts_of_one_and_of_all_nodes_lose_nothing(machine: str, seed: int, tmp_path: Path) -> None:
    with (
        fuse_disks(tmp_path, 3) as disks,
        RealCluster(tmp_path, machine=machine, folders={n: d.mount / "data" for n, d in disks.items()}) as cluster,
    ):
        cluster.start()
        result = await trial(cluster, PowerCuts(disks, 6), seed=seed, keep=tmp_path)
    print(said(result))
    assert result.acknowledged > 50


@needs_fuse
async def test_the_same_power_cuts_with_relaxed_durability_are_found_out(tmp_path: Path) -> None:
    """The disks really forget: a node says so itself, or the judges do. Else the test above would show nothing."""
    with (
        fuse_disks(tmp_path, 3) as disks,
        RealCluster(
            tmp_path,
            storage="sqlite:raft.db?durability=relaxed",
            folders={name: disk.mount / "data" for name, disk in disks.items()},
        ) as cluster,
    ):
        cluster.start()
        with pytest.raises(AssertionError) as found:
            await trial(cluster, PowerCuts(disks, 3, always_all=True), seed=53, keep=tmp_path)
    assert any(word in str(found.value) for word in ("NEEDS_REJOIN", "STORE_LOST_WRITES", "violation:"))


@needs_fuse
async def test_a_disk_that_fails_to_sync_ends_its_node_and_nothing_else(tmp_path: Path) -> None:
    async def nemesis(cluster: RealCluster, chance: random.Random) -> None:
        await cluster.serving()
        for turn in range(3):
            await asyncio.sleep(chance.uniform(0.3, 1.0))
            victim = (await cluster.leader() if turn % 2 == 0 else None) or chance.choice(list(cluster.nodes))
            node = cluster.nodes[victim]
            cluster.may_die.add(victim)
            disks[victim].ask("fail fsync 1")
            for _ in range(200):
                if node.exit_code is not None:
                    break
                await asyncio.sleep(0.1)
            assert node.exit_code == 10, f"{victim} goes on after a failed sync:\n{node.tail()}"
            await cluster.serving()
            node.kill()
            cluster.may_die.discard(victim)
            cluster.start(victim)

    with (
        fuse_disks(tmp_path, 3) as disks,
        RealCluster(tmp_path, folders={name: disk.mount / "data" for name, disk in disks.items()}) as cluster,
    ):
        cluster.start()
        result = await trial(cluster, nemesis, seed=54, keep=tmp_path)
    print(said(result))
