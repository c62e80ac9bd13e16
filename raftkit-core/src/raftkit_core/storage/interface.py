"""Contracts of log and snapshot storage, as numbered clauses. The conformance kit proves each on every adapter."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Sequence
from typing import ClassVar

import msgspec

from raftkit_core.types.adapter import AdapterContext
from raftkit_core.types.entry import Entry
from raftkit_core.types.identity import StoreIdentity
from raftkit_core.types.log_id import LogId
from raftkit_core.types.snapshot import SnapshotMeta, SnapshotSource
from raftkit_core.types.vote import Vote


class LogBatch(msgspec.Struct, frozen=True, gc=False):
    """One durable write, each part optional. Atomic, or in exactly this order, each durable before the next:
    ``vote``, ``truncate_since`` (remove that index and all after), ``purge_upto`` (remove up to it, remember it),
    ``entries``, ``committed``.
    """

    vote: Vote | None = None
    truncate_since: int | None = None
    purge_upto: LogId | None = None
    entries: Sequence[Entry] = ()
    committed: LogId | None = None

    @property
    def is_empty(self) -> bool:
        return (
            self.vote is None
            and self.truncate_since is None
            and self.purge_upto is None
            and not self.entries
            and self.committed is None
        )


class LogState(msgspec.Struct, frozen=True):
    """What a log store holds. ``last_log_id`` is ``last_purged`` when no entry is left."""

    vote: Vote | None = None
    committed: LogId | None = None
    last_purged: LogId | None = None
    last_log_id: LogId | None = None


class StorageInfo(msgspec.Struct, frozen=True):
    """For people: which adapter, where, how large, and what "durable" means there."""

    adapter: str
    location: str
    size_bytes: int
    durability: str
    details: dict[str, str] = {}


class RaftLogStorage(ABC):
    """The log, the vote and the identity of one node.

    The runtime calls one method at a time, except ``read`` and ``info``, which may overlap anything.

    - **L1** ``open`` takes an exclusive claim; a second opener is refused at once with ``StorageLocked``, whose message
      names the holder. A store of another node, group or format is refused with ``IdentityError`` and left untouched.
    - **L2** Returning means durable: the value read back after a kill or power loss equals the last one returned.
    - **L3** ``write`` is atomic, or works in the order of :class:`LogBatch`, each part durable before the next.
    - **L4** ``entries[0].index`` is the last index plus one, after truncate and purge; no holes, ever. A batch that
      would make a hole is refused with ``StorageError`` before anything is written.
    - **L5** A purge beyond the last entry leaves an empty log whose last log id is the purged one.
    - **L6** A cancelled caller leaves no half write: the write is done whole or not at all.
    - **L7** A failed write leaves the handle dead: every later write raises ``StorageError``. Never retried.
    - **L8** ``read`` gives a non-empty prefix of what is there in ``[start, stop)``, in order, at least one whole entry
      however small ``max_bytes``; purged or absent indexes at ``start`` are a ``StorageError``.
    - **L9** Damage is found when read (a checksum per entry) and is a ``StorageCorrupt``, never an absent entry,
      never a default vote.
    - **L10** ``committed`` may lag and may be lost; it is never ahead of the durable log.
    - **L11** ``close`` is idempotent, releases the claim, and ends every thread and connection.
    """

    takes_columns: ClassVar[bool] = False
    """Whether ``write`` takes an :class:`Entries`, which is quicker, and leaves what it gets as it is: others
    hold it, too. Else ``LogBatch.entries`` is a list of the storage's own."""

    @abstractmethod
    async def open(self, context: AdapterContext) -> StoreIdentity | None:
        """Claim the store and give its identity: None for a new one, which is then saved by the caller.

        Raises: StorageLocked, IdentityError, StorageCorrupt, StorageError.
        """

    @abstractmethod
    async def save_identity(self, identity: StoreIdentity) -> None:
        """Make ``identity`` durable."""

    @abstractmethod
    async def close(self) -> None:
        """Release everything. Idempotent."""

    @abstractmethod
    async def info(self) -> StorageInfo:
        """Sizes and settings, cheaply."""

    @abstractmethod
    async def read_state(self) -> LogState:
        """Vote and log bounds, as last made durable."""

    @abstractmethod
    async def read(self, start: int, stop: int, max_bytes: int) -> list[Entry]:
        """Entries from index ``start`` up to ``stop`` (exclusive), cut after about ``max_bytes`` of payload."""

    @abstractmethod
    def write(self, batch: LogBatch) -> Awaitable[None] | None:
        """Make ``batch`` durable. Returns None if that is done already, else an awaitable to wait for."""


class SmallMethodsLogStorage(RaftLogStorage):
    """``write`` in terms of small methods, in the order of :class:`LogBatch`, for authors who prefer that.

    Each must be durable when it returns.
    """

    async def write(self, batch: LogBatch) -> None:
        if batch.vote is not None:
            await self.save_vote(batch.vote)
        if batch.truncate_since is not None:
            await self.truncate(batch.truncate_since)
        if batch.purge_upto is not None:
            await self.purge(batch.purge_upto)
        if batch.entries:
            await self.append(batch.entries)
        if batch.committed is not None:
            await self.save_committed(batch.committed)

    @abstractmethod
    async def save_vote(self, vote: Vote) -> None: ...

    @abstractmethod
    async def truncate(self, since: int) -> None:
        """Remove ``since`` and everything after."""

    @abstractmethod
    async def purge(self, upto: LogId) -> None:
        """Remember ``upto`` as purged, then remove everything up to it."""

    @abstractmethod
    async def append(self, entries: Sequence[Entry]) -> None: ...

    @abstractmethod
    async def save_committed(self, committed: LogId) -> None: ...


class SnapshotSink(ABC):
    """A snapshot being written: bytes go in at ``offset``, then it is published or aborted."""

    offset: int
    """How many bytes are there already: where a resumed transfer continues."""

    @abstractmethod
    async def write(self, chunk: bytes) -> None: ...

    @abstractmethod
    async def publish(self, meta: SnapshotMeta) -> SnapshotMeta:
        """Check the bytes, make them durable and current in one step. Returns the meta with size and digest.

        Raises: StorageCorrupt if size, digest or structure do not fit ``meta``.
        """

    @abstractmethod
    async def abort(self, *, keep: bool = False) -> None:
        """Stop; ``keep`` leaves the bytes for a later resume of the same snapshot id."""


class RaftSnapshotStorage(ABC):
    """Published snapshots of one node.

    - **N1** Publishing is atomic: after a crash the old or the new snapshot is current, never none or half of one.
    - **N2** Publishing is monotonic: a snapshot older than the current one is dropped, and the current one returned.
    - **N3** A receive resumes by snapshot id and offset; bytes are checked as a whole before they are published.
    - **N4** A damaged snapshot is found when opened and is a ``StorageCorrupt``.
    """

    @abstractmethod
    async def open(self, context: AdapterContext) -> None: ...

    @abstractmethod
    async def close(self) -> None: ...

    @abstractmethod
    async def current(self) -> SnapshotMeta | None:
        """The published snapshot, or None."""

    @abstractmethod
    async def source(self) -> SnapshotSource | None:
        """A reader of the published snapshot, or None. It stays readable until closed."""

    @abstractmethod
    async def sink(self, snapshot_id: str, *, resume: bool = False) -> SnapshotSink:
        """Start writing, or with ``resume`` continue what an earlier sink of this id kept."""

    @abstractmethod
    async def size_bytes(self) -> int: ...

    async def free_bytes(self) -> int | None:
        """How much more can be stored; None where nobody knows."""
        return None
