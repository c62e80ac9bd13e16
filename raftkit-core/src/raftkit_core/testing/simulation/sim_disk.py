"""A disk that can fail: what is not synced is lost with the power, writes come late, tear, fail and rot.

A log write is a list of parts in the order of :class:`~raftkit_core.storage.interface.LogBatch`. It is durable when its
time has come; a crash before that keeps nothing of it, all of it, or (unless the disk is ``atomic``) any prefix of its
parts. Whatever becomes durable is told to an observer, which compares it with what was promised.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from contextlib import suppress
from random import Random
from typing import Any, Protocol

import msgspec

from raftkit_core.errors import StorageCorrupt, StorageError, StorageFull
from raftkit_core.storage.interface import LogBatch, LogState, SnapshotSink
from raftkit_core.storage.memory import (
    MemoryDisk,
    MemoryLogStorage,
    MemorySnapshotStorage,
    _check_container,
    _MemorySink,
)
from raftkit_core.types.adapter import AdapterContext
from raftkit_core.types.entry import MEMBERSHIP, Entry, decode_membership
from raftkit_core.types.identity import StoreIdentity
from raftkit_core.types.ids import NodeId
from raftkit_core.types.log_id import LogId, index_of, log_id_lt, next_index
from raftkit_core.types.membership import Membership
from raftkit_core.types.snapshot import SnapshotMeta
from raftkit_core.types.vote import ZERO_VOTE, Vote

Part = tuple[str, Any]


class DiskObserver(Protocol):
    """Is told of every change that became durable, just before it is made."""

    def disk_vote(self, disk: SimDisk, vote: Vote) -> None: ...
    def disk_truncate(self, disk: SimDisk, since: int) -> None: ...
    def disk_purge(self, disk: SimDisk, upto: LogId) -> None: ...
    def disk_append(self, disk: SimDisk, entry: Entry) -> None: ...
    def disk_committed(self, disk: SimDisk, committed: LogId) -> None: ...
    def disk_identity(self, disk: SimDisk, identity: StoreIdentity) -> None: ...
    def disk_snapshot(self, disk: SimDisk, meta: SnapshotMeta) -> None: ...
    def disk_overlap(self, disk: SimDisk) -> None: ...


class Unobserved:
    """Nobody looks."""

    def disk_vote(self, disk: SimDisk, vote: Vote) -> None: ...
    def disk_truncate(self, disk: SimDisk, since: int) -> None: ...
    def disk_purge(self, disk: SimDisk, upto: LogId) -> None: ...
    def disk_append(self, disk: SimDisk, entry: Entry) -> None: ...
    def disk_committed(self, disk: SimDisk, committed: LogId) -> None: ...
    def disk_identity(self, disk: SimDisk, identity: StoreIdentity) -> None: ...
    def disk_snapshot(self, disk: SimDisk, meta: SnapshotMeta) -> None: ...
    def disk_overlap(self, disk: SimDisk) -> None: ...


class Pending:
    """One write under way."""

    __slots__ = ("atomic", "error", "future", "parts")

    def __init__(self, parts: list[Part], future: asyncio.Future[None], *, atomic: bool) -> None:
        self.parts = parts
        self.future = future
        self.atomic = atomic
        self.error: StorageError | None = None


class SimDisk(MemoryDisk):
    """What one node keeps. Faults are attributes, to be set at any time; ``random`` decides everything else."""

    def __init__(
        self, node_id: NodeId = "", random: Random | None = None, observer: DiskObserver | None = None
    ) -> None:
        super().__init__(node_id)
        self.entries = []  # looked at entry by entry
        self.node_id = node_id
        self.random = Random(0) if random is None else random
        self.observer: DiskObserver = Unobserved() if observer is None else observer
        self.at_once = 1.0
        """Share of writes that are finished when they return."""
        self.latency = (0.0, 0.0)
        """The others take a time between these, in seconds."""
        self.atomic = False
        """A crash keeps all or nothing of a write, as a store with transactions does."""
        self.hung = False
        """No write finishes until this is over."""
        self.full = False
        """Every write fails with ``StorageFull``."""
        self.failing = 0.0
        """Share of writes that fail with an I/O error; what of them is durable then, nobody knows."""
        self.rotten: dict[int, None] = {}
        """Indexes of entries whose checksum is wrong."""
        self.rotten_vote = False
        self.failed: StorageError | None = None
        """The first error a write of the open handle ended with."""
        self.failed_at = 0.0
        """When: in that very moment the node has not heard of it yet."""
        self.memberships: list[tuple[LogId | None, Membership]] = []
        """Membership entries in the log, in order; the snapshot's stands before them."""
        self.machine: Any = None
        """What a durable state machine keeps here."""
        self.machine_opened_by: object | None = None
        self.in_flight: list[Pending] = []
        self.sinks: list[SimSink] = []
        self.life = 0
        """Grows with every crash: what was opened in an earlier life can change nothing any more."""
        self.lost_parts = 0
        """Parts of writes that crashes took, so far."""

    @property
    def held_vote(self) -> Vote:
        return ZERO_VOTE if self.vote is None else self.vote

    @property
    def snapshot_last(self) -> LogId | None:
        return None if self.snapshot is None else self.snapshot[0].last_log_id

    def entry_at(self, index: int) -> Entry | None:
        place = index - next_index(self.last_purged)
        return self.entries[place] if 0 <= place < len(self.entries) else None

    def holds(self, log_id: LogId) -> bool:
        """Whether the entry itself is durable here, or a published snapshot or a purge stands for it."""
        if self.snapshot_last == log_id:
            return True  # whatever the log has there: a restart goes by the snapshot
        entry = self.entry_at(log_id.index)
        if entry is not None:
            return entry.log_id == log_id
        return log_id.index <= max(index_of(self.last_purged), index_of(self.snapshot_last))

    # --- writing ----------------------------------------------------------------------------------------------------

    def begin(self, parts: list[Part], life: int) -> asyncio.Future[None] | None:
        """Start a write. None: it is durable already. Raises: StorageError for a failure seen at once."""
        if life != self.life:
            raise StorageError(f"the power of {self.node_id} is gone")
        if self.fail_writes is not None:
            refused, self.fail_writes = self.fail_writes, None
            self._fails(refused)
            raise refused
        error = self._draw_error()
        if not self.hung and self.random.random() < self.at_once:
            if error is None:
                self._apply(parts)
                return None
            self._tear(Pending(parts, asyncio.get_running_loop().create_future(), atomic=self.atomic), error)
            raise error
        loop = asyncio.get_running_loop()
        pending = Pending(parts, loop.create_future(), atomic=self.atomic)
        pending.error = error
        self.in_flight.append(pending)
        loop.call_later(self.random.uniform(*self.latency), self._due, pending)
        return pending.future

    def _draw_error(self) -> StorageError | None:
        if self.full:
            return StorageFull(f"the disk of {self.node_id} is full", subject="log", verb="write")
        if self.failing and self.random.random() < self.failing:
            return StorageError(f"I/O error on the disk of {self.node_id}", subject="log", verb="write")
        return None

    def _due(self, pending: Pending) -> None:
        if pending not in self.in_flight:
            return  # the power went first
        if self.hung:
            asyncio.get_running_loop().call_later(0.05, self._due, pending)
            return
        self.in_flight.remove(pending)
        if pending.error is not None:
            self._tear(pending, pending.error)
        else:
            self._apply(pending.parts)
        if pending.future.done():
            return
        if pending.error is not None:
            pending.future.set_exception(pending.error)
            pending.future.exception()  # retrieved: whoever waited may have been cancelled
        else:
            pending.future.set_result(None)

    def _tear(self, pending: Pending, error: StorageError | None) -> None:
        """A write ends in the middle: some of it is there, or none, or all."""
        if error is not None:
            self._fails(error)
        count = len(pending.parts)
        kept = self.random.choice((0, count)) if pending.atomic else self.random.randint(0, count)
        self.lost_parts += count - kept
        self._apply(pending.parts[:kept])

    def _fails(self, error: StorageError) -> None:
        if self.failed is None:
            self.failed = error
            self.failed_at = asyncio.get_running_loop().time()

    def _apply(self, parts: Sequence[Part]) -> None:
        """Make ``parts`` durable, one after the other."""
        for kind, value in parts:
            match kind:
                case "entry":
                    self.observer.disk_append(self, value)
                    self.entries.append(value)
                    self.log_bytes += len(value.payload)
                    if value.kind == MEMBERSHIP:
                        with suppress(msgspec.DecodeError):  # the kit writes any bytes
                            self.memberships.append((value.log_id, decode_membership(value.payload)))
                case "vote":
                    self.observer.disk_vote(self, value)
                    self.vote = value
                case "truncate":
                    self._truncate(value)
                case "purge":
                    self._purge(value)
                case "committed":
                    self.observer.disk_committed(self, value)
                    self.committed = value
                case "identity":
                    self.observer.disk_identity(self, value)
                    self.identity = value
                case "snapshot":
                    meta, _ = value
                    if self.snapshot is None or not log_id_lt(meta.last_log_id, self.snapshot_last):
                        self.observer.disk_snapshot(self, meta)
                        self.snapshot = value
                        self.kept = None
                case "machine":
                    self.machine = value

    def _truncate(self, since: int) -> None:
        self.observer.disk_truncate(self, since)
        keep = max(since - next_index(self.last_purged), 0)
        self.log_bytes -= sum(len(entry.payload) for entry in self.entries[keep:])
        del self.entries[keep:]
        self.rotten = {index: None for index in self.rotten if index < since}
        while self.memberships and index_of(self.memberships[-1][0]) >= since:
            self.memberships.pop()
        if index_of(self.committed) > index_of(self.last_log_id):
            self.committed = self.last_log_id

    def _purge(self, upto: LogId) -> None:
        if upto.index <= index_of(self.last_purged):
            return
        self.observer.disk_purge(self, upto)
        count = upto.index - next_index(self.last_purged) + 1
        self.log_bytes -= sum(len(entry.payload) for entry in self.entries[:count])
        del self.entries[:count]
        self.rotten = {index: None for index in self.rotten if index > upto.index}
        self.last_purged = upto

    # --- the power --------------------------------------------------------------------------------------------------

    def crash(self) -> None:
        """Power loss, or kill -9: of what was not finished any prefix may be there."""
        super().crash()
        self.machine_opened_by = None
        self.life += 1
        pending, self.in_flight = self.in_flight, []
        for write in pending:
            self._tear(write, None)
        for sink in self.sinks:
            sink.crash()
        self.sinks.clear()
        self.failed = None
        for write in pending:
            if not write.future.done():
                write.future.set_exception(StorageError(f"the power of {self.node_id} is gone"))
                write.future.exception()

    def cut(self) -> None:
        """For the conformance kit: nothing that is done after this survives."""
        self._image = self.image()

    def restore(self) -> None:
        """For the conformance kit: what was durable at :meth:`cut` is here, and nobody has it open."""
        self.crash()
        self.put_back(self._image)

    def image(self) -> dict[str, Any]:
        """A copy of what is durable: for stale images."""
        return {
            "identity": self.identity,
            "vote": self.vote,
            "committed": self.committed,
            "last_purged": self.last_purged,
            "entries": list(self.entries),
            "log_bytes": self.log_bytes,
            "snapshot": self.snapshot,
            "kept": self.kept,
            "memberships": list(self.memberships),
            "machine": self.machine,
            "rotten": dict(self.rotten),
            "rotten_vote": self.rotten_vote,
        }

    def put_back(self, image: dict[str, Any]) -> None:
        """Replace the contents by an :meth:`image`: a backup restored over a disk."""
        for name, value in image.items():
            setattr(self, name, list(value) if isinstance(value, list) else value)


class SimLogStorage(MemoryLogStorage):
    """A log on a :class:`SimDisk`. A handle of an earlier life can change nothing any more."""

    disk: SimDisk

    def __init__(self, disk: SimDisk | None = None) -> None:
        super().__init__(SimDisk() if disk is None else disk)
        self._life = self.disk.life
        self._under_way: asyncio.Future[None] | None = None

    async def open(self, context: AdapterContext) -> StoreIdentity | None:
        identity = await super().open(context)
        self._life = self.disk.life
        self.disk.failed = None
        return identity

    async def save_identity(self, identity: StoreIdentity) -> None:
        self._check_writable("identity")
        pending = self._begin([("identity", identity)])
        if pending is not None:
            await pending

    async def read_state(self) -> LogState:
        if self.disk.rotten_vote:
            raise _rotten(self.disk, "the vote")
        return await super().read_state()

    async def read(self, start: int, stop: int, max_bytes: int) -> list[Entry]:
        found = await super().read(start, stop, max_bytes)
        for entry in found if self.disk.rotten else ():
            if entry.index in self.disk.rotten:
                raise _rotten(self.disk, f"entry {entry.log_id}")
        return found

    def write(self, batch: LogBatch) -> Awaitable[None] | None:  # type: ignore[override]
        self._check_writable("log")
        self._check_batch(batch)
        parts: list[Part] = []
        if batch.vote is not None:
            parts.append(("vote", batch.vote))
        if batch.truncate_since is not None:
            parts.append(("truncate", batch.truncate_since))
        if batch.purge_upto is not None:
            parts.append(("purge", batch.purge_upto))
        parts += [("entry", entry) for entry in batch.entries]
        if batch.committed is not None:
            parts.append(("committed", batch.committed))
        return self._begin(parts)

    def _begin(self, parts: list[Part]) -> Awaitable[None] | None:
        if self._under_way is not None and not self._under_way.done():
            self.disk.observer.disk_overlap(self.disk)
        try:
            pending = self._under_way = self.disk.begin(parts, self._life)
        except StorageError as error:
            self._failure = error
            raise
        return None if pending is None else self._finish(pending)

    async def _finish(self, pending: asyncio.Future[None]) -> None:
        try:
            await asyncio.shield(pending)
        except StorageError as error:
            self._failure = error
            raise

    def _check_writable(self, subject: str) -> None:
        self._check_open("write")
        if self._failure is not None:
            raise StorageError(f"an earlier write failed: {self._failure}", subject=subject) from self._failure


class SimSnapshotStorage(MemorySnapshotStorage):
    """Snapshots on a :class:`SimDisk`: published whole or not at all; what was being received may be damaged."""

    disk: SimDisk

    def __init__(self, disk: SimDisk | None = None) -> None:
        super().__init__(SimDisk() if disk is None else disk)
        self._life = self.disk.life

    async def sink(self, snapshot_id: str, *, resume: bool = False) -> SnapshotSink:
        plain = await super().sink(snapshot_id, resume=resume)
        assert isinstance(plain, _MemorySink), "made by the memory storage"
        sink = SimSink(self.disk, snapshot_id, bytes(plain._data), self._life)
        self.disk.sinks.append(sink)
        return sink


class SimSink(_MemorySink):
    _disk: SimDisk

    def __init__(self, disk: SimDisk, snapshot_id: str, data: bytes, life: int) -> None:
        super().__init__(disk, snapshot_id, data)
        self._life = life

    async def publish(self, meta: SnapshotMeta) -> SnapshotMeta:
        self._check_not_done("publish")
        self._is_done = True
        data = bytes(self._data)
        if meta.snapshot_id != self._snapshot_id:
            raise StorageCorrupt(
                f"snapshot {self._snapshot_id} was published as {meta.snapshot_id}", subject="snapshot", verb="publish"
            )
        published = _check_container(meta, data)
        pending = self._disk.begin([("snapshot", (published, data))], self._life)
        if pending is not None:
            await asyncio.shield(pending)
        current = self._disk.snapshot
        return published if current is None else current[0]

    def crash(self) -> None:
        """What was received so far is not synced: a prefix of it, its end perhaps garbage, or nothing is left."""
        if self._is_done or not self._data:
            return
        self._is_done = True
        random = self._disk.random
        kept = bytearray(self._data[: random.randint(0, len(self._data))])
        if kept and random.random() < 0.3:
            kept[-1] ^= 0xFF
        if kept:
            self._disk.kept = (self._snapshot_id, bytes(kept))

    async def abort(self, *, keep: bool = False) -> None:
        await super().abort(keep=keep)
        if self in self._disk.sinks:
            self._disk.sinks.remove(self)


def _rotten(disk: SimDisk, what: str) -> StorageCorrupt:
    return StorageCorrupt(f"the checksum of {what} on the disk of {disk.node_id} is wrong", subject="log", verb="read")
