"""Storage that lives as long as the process: for tests, simulations and demonstrations.

A :class:`MemoryDisk` outlives the storages opened on it, so a node can be stopped and started again within a process.
A node whose disk is gone has forgotten its vote and must not come back under its old name.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Callable, MutableSequence, Sequence

import msgspec

from raftkit_core.errors import StorageCorrupt, StorageError, StorageLocked
from raftkit_core.storage.file_snapshots import in_thread
from raftkit_core.storage.identity import check_store_identity
from raftkit_core.storage.interface import (
    LogBatch,
    LogState,
    RaftLogStorage,
    RaftSnapshotStorage,
    SnapshotSink,
    StorageInfo,
)
from raftkit_core.storage.snapshot_format import SnapshotDecoder, check_fits, check_snapshot_id
from raftkit_core.types.adapter import AdapterContext
from raftkit_core.types.entry import Entries, Entry, indexes_of, payload_bytes
from raftkit_core.types.entry_log import EntryLog
from raftkit_core.types.identity import StoreIdentity
from raftkit_core.types.log_id import LogId, index_of, log_id_lt, next_index
from raftkit_core.types.snapshot import SnapshotMeta, SnapshotSource
from raftkit_core.types.vote import Vote

PIECE_BYTES = 1024 * 1024
PIECE_ENTRIES = 1024
LARGE_BYTES = 4 * PIECE_BYTES
"""Of a snapshot: what is larger is checked in a thread, a few milliseconds are not worth one."""


class MemoryDisk:
    """What one node keeps: the contents of a log store and of a snapshot store, and who has them open."""

    def __init__(self, name: str = "") -> None:
        self.name = name
        self.holder: str | None = None
        """Who has the log open, in words; None: nobody."""
        self.opened_by: MemoryLogStorage | None = None
        self.fail_writes: StorageError | None = None
        """Raised by the next write, which then writes nothing: for tests of what a node does when its disk fails."""
        self.identity: StoreIdentity | None = None
        self.vote: Vote | None = None
        self.committed: LogId | None = None
        self.last_purged: LogId | None = None
        self.entries: MutableSequence[Entry] = EntryLog()
        self.log_bytes = 0
        self.snapshot: tuple[SnapshotMeta, bytes | bytearray] | None = None
        self.kept: tuple[str, bytes] | None = None
        """A receive that broke off: snapshot id, and the bytes so far. At most one."""

    def crash(self) -> None:
        """What a killed process leaves: the contents stay, the claim is gone, and the old handle is closed."""
        self.holder = None
        self.opened_by = None

    @property
    def location(self) -> str:
        return f"memory:{self.name}"

    @property
    def last_log_id(self) -> LogId | None:
        return self.entries[-1].log_id if self.entries else self.last_purged


class MemoryLogStorage(RaftLogStorage):
    """A log on a :class:`MemoryDisk`. ``write`` is finished when it returns."""

    takes_columns = True

    def __init__(self, disk: MemoryDisk | None = None) -> None:
        self.disk = MemoryDisk() if disk is None else disk
        self._failure: StorageError | None = None

    async def open(self, context: AdapterContext) -> StoreIdentity | None:
        if self.disk.holder is not None:
            raise StorageLocked(
                f"{self.disk.location} is held by {self.disk.holder}",
                subject="store",
                verb="open",
                hint="stop that node first, or give this one a disk of its own",
            )
        check_store_identity(self.disk.identity, context, self.disk.location)
        self.disk.holder = f"node {context.node_id} in this process"
        self.disk.opened_by = self
        return self.disk.identity

    async def save_identity(self, identity: StoreIdentity) -> None:
        self._check_writable("identity")
        self.disk.identity = identity

    async def close(self) -> None:
        if self.disk.opened_by is self:
            self.disk.holder = None
            self.disk.opened_by = None

    async def info(self) -> StorageInfo:
        return StorageInfo(
            adapter="memory",
            location=self.disk.location,
            size_bytes=self.disk.log_bytes,
            durability="none: everything is lost with the process",
            details={"entries": str(len(self.disk.entries))},
        )

    async def read_state(self) -> LogState:
        self._check_open("read")
        disk = self.disk
        return LogState(disk.vote, disk.committed, disk.last_purged, disk.last_log_id)

    async def read(self, start: int, stop: int, max_bytes: int) -> list[Entry]:
        self._check_open("read")
        entries = self.disk.entries
        first = next_index(self.disk.last_purged)
        if not first <= start < first + len(entries) or stop <= start:
            raise StorageError(
                f"read of log [{start}, {stop}), there is [{first}, {first + len(entries)})", subject="log", verb="read"
            )
        found: list[Entry] = []
        size = 0
        for at in range(start - first, min(stop - first, len(entries)), PIECE_ENTRIES):
            for entry in entries[at : min(at + PIECE_ENTRIES, stop - first)]:
                size += len(entry.payload)
                if found and size > max_bytes:
                    return found
                found.append(entry)
        return found

    def write(self, batch: LogBatch) -> None:
        """See :meth:`RaftLogStorage.write`. Checked whole before anything changes, so it is atomic."""
        disk = self.disk
        if disk.opened_by is not self or self._failure is not None or disk.fail_writes is not None:
            self._check_writable("log")
        self._check_batch(batch)
        if batch.vote is not None:
            disk.vote = batch.vote
        if batch.truncate_since is not None:
            self._truncate(batch.truncate_since)
        if batch.purge_upto is not None:
            self._purge(batch.purge_upto)
        if batch.entries:
            disk.entries.extend(batch.entries)
            disk.log_bytes += payload_bytes(batch.entries)
        if batch.committed is not None:
            disk.committed = batch.committed

    def _check_batch(self, batch: LogBatch) -> None:
        """Clauses L4 and L10: no hole, and ``committed`` within the log as it will be."""
        disk = self.disk
        held, entries, committed = disk.entries, batch.entries, batch.committed
        last = held.last_index() if type(held) is EntryLog else held[-1].index if held else -1
        if last < 0:
            last = index_of(disk.last_purged)
        if batch.truncate_since is not None:
            last = max(min(last, batch.truncate_since - 1), index_of(disk.last_purged))
        if batch.purge_upto is not None and batch.purge_upto.index > last:
            last = batch.purge_upto.index
        if type(entries) is Entries and entries.first.index == last + 1:
            last += len(entries.payloads)  # made consecutive
        elif len(entries) == 1 and entries[0].log_id.index == last + 1:
            last += 1
        elif entries:
            last = _end_of(entries, last + 1)
        if committed is not None and committed.index > last:
            raise StorageError(f"committed {committed} is ahead of the log, which ends at {last}", subject="log")

    def _truncate(self, since: int) -> None:
        disk = self.disk
        keep = max(since - next_index(disk.last_purged), 0)
        disk.log_bytes -= payload_bytes(disk.entries[keep:])
        del disk.entries[keep:]
        if index_of(disk.committed) > index_of(disk.last_log_id):
            disk.committed = disk.last_log_id

    def _purge(self, upto: LogId) -> None:
        disk = self.disk
        if upto.index <= index_of(disk.last_purged):
            return
        count = upto.index - next_index(disk.last_purged) + 1
        disk.log_bytes -= payload_bytes(disk.entries[:count])
        del disk.entries[:count]
        disk.last_purged = upto

    def _check_open(self, verb: str) -> None:
        if self.disk.opened_by is not self:
            raise StorageError(f"{self.disk.location} is not open", verb=verb)

    def _check_writable(self, subject: str) -> None:
        self._check_open("write")
        if self._failure is not None:
            raise StorageError(f"an earlier write failed: {self._failure}", subject=subject) from self._failure
        if self.disk.fail_writes is not None:
            self._failure, self.disk.fail_writes = self.disk.fail_writes, None
            raise self._failure


def available_memory() -> int | None:
    """Bytes that programs may still take on this machine; None where it does not say (Linux does)."""
    try:
        with open("/proc/meminfo", "rb") as lines:
            return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(b"MemAvailable:"))
    except (OSError, ValueError, IndexError, StopIteration):
        return None


class MemorySnapshotStorage(RaftSnapshotStorage):
    """The published snapshot of a node, as bytes on a :class:`MemoryDisk`. ``free`` says how many more find room: in a
    test whatever the test says, else :func:`available_memory`."""

    def __init__(self, disk: MemoryDisk | None = None, free: Callable[[], int | None] = lambda: None) -> None:
        self.disk = MemoryDisk() if disk is None else disk
        self._free = free

    async def open(self, context: AdapterContext) -> None:
        if self.disk.snapshot is not None:
            await _check(*self.disk.snapshot)

    async def close(self) -> None:
        return

    async def current(self) -> SnapshotMeta | None:
        return None if self.disk.snapshot is None else self.disk.snapshot[0]

    async def source(self) -> SnapshotSource | None:
        published = self.disk.snapshot
        if published is None:
            return None
        await _check(*published)
        return _MemorySource(*published)

    async def sink(self, snapshot_id: str, *, resume: bool = False) -> SnapshotSink:
        check_snapshot_id(snapshot_id)
        data = b""
        if resume and self.disk.kept is not None and self.disk.kept[0] == snapshot_id:
            data = self.disk.kept[1]
            self.disk.kept = None
        return _MemorySink(self.disk, snapshot_id, data)

    async def size_bytes(self) -> int:
        published = 0 if self.disk.snapshot is None else len(self.disk.snapshot[1])
        return published + (0 if self.disk.kept is None else len(self.disk.kept[1]))

    async def free_bytes(self) -> int | None:
        return self._free()


class _MemorySource(SnapshotSource):
    def __init__(self, meta: SnapshotMeta, data: bytes | bytearray) -> None:
        self.meta = meta
        self._data = data

    async def open(self, offset: int = 0, chunk_bytes: int = 1024 * 1024) -> AsyncIterator[bytes]:
        for start in range(offset, len(self._data), chunk_bytes):
            yield bytes(memoryview(self._data)[start : start + chunk_bytes])

    async def close(self) -> None:
        self._data = b""


class _MemorySink(SnapshotSink):
    def __init__(self, disk: MemoryDisk, snapshot_id: str, data: bytes) -> None:
        self._disk = disk
        self._snapshot_id = snapshot_id
        self._data = bytearray(data)
        self._is_done = False

    @property
    def offset(self) -> int:  # type: ignore[override]
        return len(self._data)

    async def write(self, chunk: bytes) -> None:
        self._check_not_done("write")
        self._data += chunk

    async def publish(self, meta: SnapshotMeta) -> SnapshotMeta:
        self._check_not_done("publish")
        self._is_done = True
        data = self._data  # not copied: a gigabyte takes half a second, in which nothing else runs
        if meta.snapshot_id != self._snapshot_id:
            raise StorageCorrupt(
                f"snapshot {self._snapshot_id} was published as {meta.snapshot_id}", subject="snapshot", verb="publish"
            )
        published = await _check(meta, data)
        current = self._disk.snapshot
        if current is not None and log_id_lt(published.last_log_id, current[0].last_log_id):
            return current[0]
        self._disk.snapshot = (published, data)
        self._disk.kept = None
        return published

    async def abort(self, *, keep: bool = False) -> None:
        if not self._is_done and keep:
            self._disk.kept = (self._snapshot_id, bytes(self._data))
        self._is_done = True

    def _check_not_done(self, verb: str) -> None:
        if self._is_done:
            raise StorageError(f"snapshot {self._snapshot_id} is already finished", subject="snapshot", verb=verb)


def _end_of(entries: Sequence[Entry], first: int) -> int:
    """The last index of ``entries``. Raises: StorageError unless they are consecutive from ``first`` on (L4)."""
    last = first + len(entries) - 1
    indexes = list(indexes_of(entries))
    if indexes != list(range(first, last + 1)):
        raise StorageError(
            f"append of entries {indexes[0]}..{indexes[-1]} after index {first - 1} would make a hole", subject="log"
        )
    return last


async def _check(meta: SnapshotMeta, data: bytes | bytearray) -> SnapshotMeta:
    """As :func:`_check_container`; what takes long, in a thread."""
    if len(data) <= LARGE_BYTES:
        return _check_container(meta, data)
    return await in_thread(_check_container, meta, data)


def _check_container(meta: SnapshotMeta, data: bytes | bytearray) -> SnapshotMeta:
    """``meta`` with the size and digest of ``data``. Raises: StorageCorrupt if they do not fit."""
    decoder, digest = SnapshotDecoder(), hashlib.sha256()
    with memoryview(data) as view:
        for start in range(0, len(data), PIECE_BYTES):
            piece = view[start : start + PIECE_BYTES]
            digest.update(piece)
            decoder.feed(piece)
    header = decoder.finish()
    found = header.meta(size_bytes=len(data), sha256=digest.hexdigest())
    check_fits(meta, found)
    return msgspec.structs.replace(meta, size_bytes=found.size_bytes, sha256=found.sha256)
