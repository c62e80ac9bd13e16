"""One node of the engine ring: a disk that stays, and what a crash takes away."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

from raftkit_core.engine.commands import Command, LogCommand
from raftkit_core.engine.engine import Engine
from raftkit_core.engine.log_id_list import LogIdList
from raftkit_core.engine.membership_state import MembershipState
from raftkit_core.engine.raft_state import RaftState
from raftkit_core.testing.simulation.invariants import Disk
from raftkit_core.types.entry import MEMBERSHIP, Entry, decode_membership
from raftkit_core.types.ids import NodeId, RequestId
from raftkit_core.types.log_id import LogId, index_of, max_log_id
from raftkit_core.types.membership import StoredMembership
from raftkit_core.types.vote import Vote


class Asked(NamedTuple):
    """A request that waits for this node's answer, and when it came, on the node's own clock."""

    request: Any
    reply: Callable[[Any], None]
    arrived_at: float
    at: float
    """The same instant on no node's clock."""
    held: LogId | None
    """The end of the node's log, or of its snapshot, when the request came."""
    vote: Vote
    """The node's vote then."""
    is_pre_vote: bool = False


class AskedRead(NamedTuple):
    """A client's read: it must see everything up to ``floor``."""

    floor: int
    by_lease: bool
    at: float


class RingNode:
    """A disk, and an engine with its lane, log and machine."""

    def __init__(self, node_id: NodeId) -> None:
        self.id = node_id
        self.disk = Disk()
        self.life = 0
        self.rate = 1.0
        self.offset = 0.0
        self.paused_until = 0.0
        self.engine: Engine | None = None
        self.forget()

    @property
    def held(self) -> LogId | None:
        """The end of the log as it is to be written, or of the published snapshot."""
        last = self.log[max(self.log)].log_id if self.log else self.disk.purged
        return max_log_id(last, None if self.disk.snapshot is None else self.disk.snapshot.last_log_id)

    def forget(self) -> None:
        """What a crash takes: everything but the disk."""
        self.life += 1
        self.engine = None
        self.lane: deque[LogCommand] = deque()
        self.log: dict[int, Entry] = {}
        self.parked: list[tuple[int, Command]] = []
        self.requests: dict[RequestId, Asked] = {}
        self.reads: dict[RequestId, AskedRead] = {}
        self.applied: LogId | None = None
        self.digest = 0
        self.committed: LogId | None = None
        self.to_save: LogId | None = None
        """What is committed and durable here: saved with a later write."""
        self.flushing = False
        self.last_flush = 0


def load_state(each: RingNode) -> RaftState:
    """What recovery makes of the disk, as the runtime does it; sets the node's log, machine and positions."""
    disk = each.disk
    snapshot = disk.snapshot
    if snapshot is not None and snapshot.last_log_id is not None and not _log_holds(disk, snapshot.last_log_id):
        disk.entries = {}
        disk.purged = snapshot.last_log_id
    each.log = dict(disk.entries)
    each.applied = None if snapshot is None else snapshot.last_log_id
    each.digest = 0 if snapshot is None else int(snapshot.sha256 or "0", 16)
    committed = max_log_id(disk.committed, each.applied)
    base = StoredMembership() if snapshot is None else snapshot.membership
    found = [
        StoredMembership(entry.log_id, decode_membership(entry.payload))
        for index, entry in sorted(disk.entries.items())
        if entry.kind == MEMBERSHIP and index > index_of(each.applied)
    ]
    effective = [base, *found][-1]
    settled = effective if index_of(effective.log_id) <= index_of(committed) else [base, *found][-2]
    log = LogIdList(disk.purged)
    for _, entry in sorted(disk.entries.items()):
        log.extend(entry.log_id, entry.log_id)
    each.committed = committed
    return RaftState(
        vote=disk.vote,
        log=log,
        committed=committed,
        applied=each.applied,
        membership=MembershipState(settled, effective),
        snapshot=snapshot,
        largest_lease_ms=disk.lease_ms,
    )


def _log_holds(disk: Disk, log_id: LogId) -> bool:
    entry = disk.entries.get(log_id.index)
    return log_id.index <= index_of(disk.purged) or (entry is not None and entry.log_id == log_id)
