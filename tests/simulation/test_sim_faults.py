"""Simulated faults do what they say."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest

from raftkit_core.errors import LogReversion, RaftError, StorageCorrupt, StorageError, WaitTimeout
from raftkit_core.storage.interface import LogBatch
from raftkit_core.testing import InvariantBroken, Simulation
from raftkit_core.testing.conformance.log_case import context, entries, identity, vote
from raftkit_core.testing.simulation.sim_disk import SimDisk, SimLogStorage

pytestmark = pytest.mark.virtual_time


async def opened(disk: SimDisk) -> SimLogStorage:
    storage = SimLogStorage(disk)
    if await storage.open(context()) is None:
        await storage.save_identity(identity())
    return storage


async def crashed_in_a_write(*, atomic: bool) -> set[tuple[int, int]]:
    """Term of the vote and length of the log after crashes in the middle of a write, over many of them."""
    found = set()
    for number in range(60):
        disk = SimDisk("n1", Simulation(seed=number).stream("disk"))
        storage = await opened(disk)
        disk.at_once, disk.latency, disk.atomic = 0.0, (0.1, 0.1), atomic
        pending = asyncio.ensure_future(_awaited(storage, LogBatch(vote=vote(2), entries=entries(2, 0, 3))))
        await asyncio.sleep(0.05)
        disk.crash()
        with pytest.raises(StorageError):
            await pending
        with pytest.raises(StorageError):
            storage.write(LogBatch(vote=vote(9)))  # an earlier life changes nothing
        found.add((disk.held_vote.term, len(disk.entries)))
    return found


async def _awaited(storage: SimLogStorage, batch: LogBatch) -> None:
    pending = storage.write(batch)
    assert pending is not None
    await pending


async def test_a_crash_keeps_any_prefix_of_a_write_or_all_or_nothing() -> None:
    assert await crashed_in_a_write(atomic=False) == {(0, 0), (2, 0), (2, 1), (2, 2), (2, 3)}
    assert await crashed_in_a_write(atomic=True) == {(0, 0), (2, 3)}


async def test_a_hung_disk_finishes_nothing_and_its_leader_gives_way() -> None:
    async with Simulation(seed=1, nodes=3) as sim:
        first = await sim.settle()
        sim.disk(first).hung = True
        write = asyncio.ensure_future(sim.client().put("a", "1", node=first, timeout=1.0))
        await sim.run_for(5)
        assert (await asyncio.gather(write, return_exceptions=True))[0] is not None
        assert await sim.leader() != first, "storage_stall_timeout_ms"
        sim.disk(first).hung = False
        await sim.settle()
        sim.check()


@pytest.mark.parametrize("fault", ["full", "failing"])
async def test_a_failed_write_ends_the_node_and_nobody_else(fault: str) -> None:
    async with Simulation(seed=2, nodes=3) as sim:
        leader = await sim.settle()
        if fault == "full":
            sim.disk(leader).full = True
        else:
            sim.disk(leader).failing = 1.0
        with pytest.raises(RaftError):
            await sim.client().put("a", "1", node=leader)
        assert leader not in sim.running
        other = await sim.leader()
        await sim.client().put("a", "2", node=other)
        await sim.settle()
        assert await sim.client().get("a", node=leader) == b"2"
        sim.check()


async def test_rot_is_found_when_read_and_never_applied() -> None:
    async with Simulation(seed=3, nodes=3) as sim:
        leader = await sim.settle()
        await sim.client().put("a", "1", node=leader)
        victim = next(node for node in sim.ids if node != leader)
        await sim.settle()
        sim.crash(victim)
        sim.disk(victim).rotten[2] = None
        with pytest.raises(StorageCorrupt, match=r"entry T1-n\d\.2"):
            await sim.restart(victim)
        sim.disk(victim).rotten.clear()
        sim.disk(victim).rotten_vote = True
        with pytest.raises(StorageCorrupt, match="the vote"):
            await sim.restart(victim)
        sim.check()


async def test_a_stale_copy_of_a_disk_is_told_and_retired() -> None:
    async with Simulation(seed=4, nodes=3) as sim:
        leader = await sim.settle()
        victim = next(node for node in sim.ids if node != leader)
        image = sim.disk(victim).image()
        for number in range(5):
            await sim.client().put("a", str(number), node=leader)
        await sim.settle()
        sim.crash(victim)
        sim.disk(victim).put_back(image)
        raft = await sim.restart(victim)
        await sim.eventually(lambda: raft.fatal, "the leader to tell it")
        assert isinstance(raft.fatal, LogReversion)
        assert sim.disk(victim).identity is not None
        assert sim.disk(victim).identity.retired  # type: ignore[union-attr]


async def test_held_answers_arrive_late_and_change_nothing() -> None:
    async with Simulation(seed=5, nodes=3) as sim:
        first = await sim.settle()
        for node in sim.ids:
            if node != first:
                sim.hold(node, first)
        with pytest.raises(RaftError):
            await sim.client().put("a", "1", node=first, timeout=1.0)
        await sim.run_for(6)
        await sim.leader()
        sim.heal()
        await sim.settle()
        sim.check()


async def test_damaged_frames_end_connections_and_change_nothing() -> None:
    async with Simulation(seed=6, nodes=3) as sim:
        await sim.settle()
        sim.hub.weather.corrupt = 0.1
        sim.hub.weather.duplicate = sim.hub.weather.reorder = 0.2
        for number in range(60):
            try:
                await sim.client().put("a", str(number), timeout=1.0)
            except RaftError:
                continue
        await sim.settle()
        sim.check()
        assert sim.trace.coverage["net.corrupt_found_by_codec"] > 0
        assert sim.trace.coverage["net.duplicate"] > 0


async def test_a_paused_node_keeps_its_timers_and_its_clock_goes_on() -> None:
    async with Simulation(seed=7, nodes=3) as sim:
        leader = await sim.settle()
        follower = next(node for node in sim.ids if node != leader)
        sim.pause(follower)
        before = sim.hub.counts.copy()
        await sim.run_for(3)
        sim.resume(follower)
        await sim.run_for(1)
        assert await sim.leader() == leader
        assert sim.raft(leader).metrics().value.current_term == 1, "its timers fired once, and it had heard the leader"
        assert sim.hub.counts["vote"] == before["vote"]


async def test_a_session_writes_once_though_answers_are_lost_and_requests_doubled() -> None:
    async with Simulation(seed=10, nodes=3) as sim:
        await sim.settle()
        sim.hub.weather.answer_loss, sim.hub.weather.duplicate = 0.2, 0.2
        client = sim.client("c1")
        for number in range(20):
            with suppress(RaftError):
                await client.put_once("a", str(number), timeout=0.5)
        await sim.settle()
        assert sim.trace.coverage["session.retried"] > 0
        assert sim.trace.coverage["session.ok"] > 10
        sim.check()


class FlushesLater(SimLogStorage):
    """Says that a write is durable before it is."""

    def write(self, batch: LogBatch) -> None:  # type: ignore[override]
        pending = super().write(batch)
        if pending is not None:
            asyncio.ensure_future(pending).add_done_callback(lambda done: done.cancelled() or done.exception())


async def test_a_store_that_answers_too_early_is_found_out() -> None:
    def slow(sim: Simulation) -> None:
        for disk in sim.disks.values():
            disk.at_once, disk.latency = 0.0, (0.01, 0.02)

    async with Simulation(seed=8, nodes=3, storage=FlushesLater, faults=slow) as sim:
        with pytest.raises(InvariantBroken, match=r"S15|S16"):
            await sim.run_for(3)
        with pytest.raises(InvariantBroken):
            sim.check()


async def test_waiting_for_what_never_comes_says_what_there_is() -> None:
    async with Simulation(seed=9, nodes=3) as sim:
        await sim.leader()
        for node in sim.ids[:2]:
            sim.crash(node)
        await sim.run_for(2)
        with pytest.raises(WaitTimeout, match="n1 is down; n2 is down; n3"):
            await sim.leader(timeout=1)


async def test_frames_that_come_together_are_dealt_with_in_order() -> None:
    async with Simulation(seed=8, nodes=3) as sim:
        leader = await sim.settle()
        other = next(node for node in sim.ids if node != leader)  # each write is a frame of its own to the leader
        sim.hub.weather.bursts = 0.5
        await asyncio.gather(*(sim.client(f"c{n}").put(f"k{n}", "v", node=other) for n in range(40)))
        for n in range(40):
            assert await sim.client().get(f"k{n}") == b"v"
        assert sim.trace.coverage["net.burst"]
        sim.check()


async def test_a_start_that_is_called_off_leaves_the_node_down() -> None:
    async with Simulation(seed=9, nodes=3) as sim:
        leader = await sim.settle()
        node = next(node for node in sim.ids if node != leader)
        await sim.client().put("a", "1", node=leader)
        sim.crash(node)
        sim.disk(node).at_once, sim.disk(node).latency = 0.0, (1.0, 1.0)
        sim.disk(node).identity = None  # so that it has something to write before it is up
        start = asyncio.ensure_future(sim.restart(node))
        await asyncio.sleep(0.5)
        start.cancel()
        with pytest.raises(asyncio.CancelledError):
            await start
        assert node not in sim.lives
        assert node not in sim.running
