"""The disks of a ring: the log lane of each node, written in order, late, and now and then in part."""

from __future__ import annotations

from typing import TYPE_CHECKING

from raftkit_core.engine.commands import (
    AppendInputEntries,
    DeleteConflictLog,
    LogCommand,
    PurgeLog,
    SaveLease,
    SaveVote,
)
from raftkit_core.testing.simulation.engine_node import RingNode
from raftkit_core.types.log_id import index_of

if TYPE_CHECKING:
    from raftkit_core.testing.simulation.engine_ring import EngineRing


class RingDisks:
    """Writes a little of a lane at a time, and tells the engine."""

    def __init__(self, ring: EngineRing) -> None:
        self.ring = ring

    def kick(self, each: RingNode) -> None:
        """Have the lane written soon, if something waits there."""
        if each.lane and not each.flushing:
            each.flushing = True
            life = each.life
            delay = 0.001 + self.ring.stream(f"disk {each.id}").random() ** 2 * self.ring.faults.disk_delay
            self.ring.after(delay, lambda: self._flush(each, life))

    def _flush(self, each: RingNode, life: int) -> None:
        """Some of the lane, in order, reaches the disk."""
        if each.life != life or each.engine is None:
            return
        if each.paused_until > self.ring.now:
            self.ring.after(each.paused_until - self.ring.now, lambda: self._flush(each, life))
            return
        each.flushing = False
        disk = self.ring.stream(f"disk {each.id}")
        for _ in range(disk.randint(1, len(each.lane))):
            written = each.lane.popleft()
            self.write(each, written)
            io_id = written.io_id
        each.engine.on_log_flushed(io_id, self.ring.clock(each))
        if disk.random() < self.ring.faults.late_flush and each.last_flush:
            self.ring.seen["flush reported late"] += 1
            each.engine.on_log_flushed(each.last_flush, self.ring.clock(each))
        each.last_flush = io_id
        released = [command for when, command in each.parked if when <= io_id]
        each.parked = [parked for parked in each.parked if parked[0] > io_id]
        for command in released:
            self.ring.orders.run(each, each.engine, command)
        self.ring.carry_out(each)

    def write(self, each: RingNode, command: LogCommand) -> None:
        disk = each.disk
        match command:
            case SaveVote(vote=vote):
                self.ring.invariants.saving_vote(each, vote)
                disk.vote = vote
            case SaveLease(lease_ms=lease_ms):
                disk.lease_ms = max(disk.lease_ms, lease_ms)
            case AppendInputEntries(entries=entries):
                self.ring.invariants.appended(each, entries)
            case DeleteConflictLog(since=since):
                self.ring.invariants.truncating(each, since)
                disk.entries = {index: entry for index, entry in disk.entries.items() if index < since}
            case PurgeLog(upto=upto):
                disk.purged = upto
                disk.entries = {index: entry for index, entry in disk.entries.items() if index > upto.index}
                self.ring.invariants.purged(each)
        saved = each.to_save
        rides = self.ring.stream(f"disk {each.id}").random() < 0.5
        if saved is not None and saved.index <= index_of(disk.last_log_id) and rides:
            disk.committed = saved  # it rides with a write, or is lost
