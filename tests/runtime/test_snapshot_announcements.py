"""What a member may announce: a snapshot whose size is known and finds room, one at a time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from raftkit_core.clock import SystemClock
from raftkit_core.errors import PeerBusy, StorageCorrupt, StorageFull
from raftkit_core.raft import Raft
from raftkit_core.runtime.service import SPACE_KEPT
from raftkit_core.storage.file_snapshots import FileSnapshotStorage
from raftkit_core.testing.cluster import MemoryCluster, memory_cluster, outcome
from raftkit_core.types.adapter import AdapterContext
from raftkit_core.types.identity import PeerIdentity
from raftkit_core.types.kv import Put
from raftkit_core.types.membership import StoredMembership
from raftkit_core.types.messages import InstallSnapshotRequest
from raftkit_core.types.snapshot import SnapshotMeta
from raftkit_core.types.vote import LeaderId, Vote

pytestmark = pytest.mark.virtual_time


def _announced(vote: Vote, size: int, snapshot_id: str = "ab-1") -> InstallSnapshotRequest:
    return InstallSnapshotRequest(vote, SnapshotMeta(None, StoredMembership(), snapshot_id, 0, size, ""))


async def test_a_snapshot_of_unknown_size_is_not_taken() -> None:
    async with memory_cluster(2) as cluster:
        leader, follower, peer = await _leader_and_follower(cluster)
        request = _announced(leader.metrics().value.vote, 0)
        with pytest.raises(StorageCorrupt, match="unknown size"):
            await follower._service.snapshot_offset(request, peer)
        with pytest.raises(StorageCorrupt, match="unknown size"):
            await follower._service.install_snapshot(request, 0, _no_bytes(), peer)
        await leader.client_write(Put("k", b"v"))
        await cluster.applied(leader.metrics().value.last_log_index or 0)  # the sender's mistake stops no node


@pytest.mark.parametrize(("size", "fits"), [(2**60, False), (10_000_001, False), (10_000_000, True)])
async def test_a_snapshot_that_finds_no_room_is_refused_before_a_byte_of_it_and_stops_no_node(
    size: int, fits: bool
) -> None:
    async with memory_cluster(2) as cluster:
        leader, follower, peer = await _leader_and_follower(cluster)

        async def free_bytes() -> int:
            return 10_000_000 + SPACE_KEPT

        follower._service._snapshots.free_bytes = free_bytes  # type: ignore[method-assign]
        asking = follower._service.snapshot_offset(_announced(leader.metrics().value.vote, size), peer)
        if fits:
            assert await asking == 0
        else:
            with pytest.raises(StorageFull, match=f"{size} bytes finds no room"):
                await asking
        await leader.client_write(Put("k", b"v"))
        await cluster.applied(leader.metrics().value.last_log_index or 0)


async def test_no_more_of_a_snapshot_is_taken_than_was_announced() -> None:
    """What finds room is what was announced; transports of plugins need not count."""
    async with memory_cluster(2) as cluster:
        leader, follower, peer = await _leader_and_follower(cluster)
        request = _announced(leader.metrics().value.vote, 100)
        taken: list[int] = []

        async def endless() -> AsyncIterator[bytes]:
            while True:
                taken.append(40)
                yield bytes(40)

        with pytest.raises(StorageCorrupt, match="more than the 100 bytes"):
            await follower._service.install_snapshot(request, 0, endless(), peer)
        assert len(taken) == 3
        assert await follower._service.snapshot_offset(request, peer) == 80, "what came before is kept for a resume"
        assert follower.fatal is None


async def test_an_announcement_that_is_repeated_at_once_stops_no_node(tmp_path: Path) -> None:
    """The network may double it, and files are opened in a thread: the second must not find the first one's file."""
    async with memory_cluster(2) as cluster:
        leader, follower, peer = await _leader_and_follower(cluster)
        files = FileSnapshotStorage(tmp_path)
        await files.open(AdapterContext("n2", clock=SystemClock()))
        follower._service._snapshots = files
        request = _announced(leader.metrics().value.vote, 100)
        first, second = await asyncio.gather(
            outcome(follower._service.snapshot_offset(request, peer)),
            outcome(follower._service.snapshot_offset(request, peer)),
        )
        assert first == 0
        assert isinstance(second, PeerBusy)
        assert await follower._service.snapshot_offset(request, peer) == 0
        assert follower.fatal is None
        await files.close()


async def test_a_newer_leader_takes_the_place_of_one_whose_snapshot_does_not_come_on() -> None:
    """The former leader's machine lost power: its connection stands still and nothing says that it ended."""
    async with memory_cluster(2) as cluster:
        leader, follower, peer = await _leader_and_follower(cluster)
        vote = leader.metrics().value.vote
        gate = asyncio.Event()
        stalled = asyncio.ensure_future(
            follower._service.install_snapshot(_announced(vote, 100), 0, _held_bytes(gate), peer)
        )
        await asyncio.sleep(0.01)
        with pytest.raises(PeerBusy, match="received already"):
            await follower._service.snapshot_offset(_announced(vote, 100, "ab-2"), peer)
        await asyncio.sleep(0.01)
        assert not stalled.done(), "the same leadership does not displace itself"
        newer = _announced(Vote(LeaderId(vote.term + 1, peer.node_id), True), 100, "ab-2")
        with pytest.raises(PeerBusy, match="received already"):
            await follower._service.snapshot_offset(newer, peer)
        with pytest.raises(PeerBusy, match="newer leader"):
            await stalled
        assert await follower._service.snapshot_offset(newer, peer) == 0


async def test_who_cancels_a_reception_that_was_displaced_too_cancels_it() -> None:
    async with memory_cluster(2) as cluster:
        leader, follower, peer = await _leader_and_follower(cluster)
        vote = leader.metrics().value.vote
        stalled = asyncio.ensure_future(
            follower._service.install_snapshot(_announced(vote, 100), 0, _held_bytes(asyncio.Event()), peer)
        )
        await asyncio.sleep(0.01)
        newer = _announced(Vote(LeaderId(vote.term + 1, peer.node_id), True), 100, "ab-2")
        with pytest.raises(PeerBusy):
            await follower._service.snapshot_offset(newer, peer)
        stalled.cancel()
        await asyncio.wait([stalled])
        assert stalled.cancelled()


async def _leader_and_follower(cluster: MemoryCluster) -> tuple[Raft, Raft, PeerIdentity]:
    leader = await cluster.leader()
    follower = next(raft for raft in cluster.rafts.values() if raft is not leader)
    await follower.wait(5).current_leader(leader.id)
    return leader, follower, PeerIdentity(leader.id, leader.store_id, 1)


async def _no_bytes() -> AsyncIterator[bytes]:
    none: tuple[bytes, ...] = ()
    for chunk in none:
        yield chunk


async def _held_bytes(gate: asyncio.Event) -> AsyncIterator[bytes]:
    yield b"first"
    await gate.wait()
