"""One node's store, held exclusively while nobody runs on it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import msgspec

from raftkit_core.errors import IdentityError, StorageError
from raftkit_core.storage.interface import LogBatch, RaftLogStorage, RaftSnapshotStorage
from raftkit_core.types.adapter import AdapterContext
from raftkit_core.types.entry import MEMBERSHIP, Entry, decode_membership
from raftkit_core.types.identity import StoreIdentity
from raftkit_core.types.log_id import LogId, index_of
from raftkit_core.types.membership import StoredMembership

READ_BYTES = 1024 * 1024


class Progress(msgspec.Struct, frozen=True):
    """How far a long walk is: ``done`` of ``total`` in units of ``what`` (``entries``, ``snapshot bytes``)."""

    what: str
    done: int
    total: int


ProgressListener = Callable[[Progress], None]


def no_progress(_: Progress) -> None:
    """For those who do not want to know."""


class OfflineStore:
    """An open store: whose it is, its log and its snapshots."""

    def __init__(
        self, identity: StoreIdentity, log: RaftLogStorage, snapshots: RaftSnapshotStorage, location: str
    ) -> None:
        self.identity = identity
        self.log = log
        self.snapshots = snapshots
        self.location = location

    async def save_identity(self, identity: StoreIdentity) -> None:
        await self.log.save_identity(identity)
        self.identity = identity


def no_store(context: AdapterContext, location: str) -> StorageError:
    return StorageError(
        f"there is no store of {context.node_id} at {location}",
        subject="store",
        verb="open",
        hint="check --storage, --data-dir and --id: they are those of raftkit node run",
    )


@asynccontextmanager
async def open_store(
    log: RaftLogStorage, snapshots: RaftSnapshotStorage, context: AdapterContext
) -> AsyncIterator[OfflineStore]:
    """The store that is there.

    Raises: StorageLocked while a node runs on it; StorageError if there is none; IdentityError, StorageCorrupt.
    """
    async with AsyncExitStack() as stack:
        stack.push_async_callback(log.close)
        identity = await log.open(context)
        location = (await log.info()).location
        if identity is None:
            raise no_store(context, location)
        stack.push_async_callback(snapshots.close)
        await snapshots.open(context)
        yield OfflineStore(identity, log, snapshots, location)


@asynccontextmanager
async def open_target(
    log: RaftLogStorage,
    snapshots: RaftSnapshotStorage,
    context: AdapterContext,
    identity: StoreIdentity,
    *,
    shares_snapshots: bool = False,
    is_begun: bool = False,
) -> AsyncIterator[OfflineStore]:
    """A store to fill under ``identity``, whose ``retired`` says that it is not finished: no node starts on it before
    :meth:`finish`. A store that says the same was left behind by an earlier try and is gone on with.

    Raises: IdentityError if there is any other store, or a snapshot that was left behind by one (unless it is meant to
    be there: ``shares_snapshots``): nothing is ever overwritten, or taken for what it is not. With ``is_begun`` also if
    there is none: an earlier try has filled it, and it was perhaps used since.
    """
    assert identity.retired, "a store that is being filled must not be one to start a node on"
    async with AsyncExitStack() as stack:
        stack.push_async_callback(log.close)
        found = await log.open(context)
        location = (await log.info()).location
        if found is not None and is_begun and (found.store_id, found.retired) == (identity.store_id, ""):
            raise IdentityError(
                f"the move to {location} is finished: nothing is left to do",
                hint=f"start {context.node_id} on it: see --storage and --data-dir",
            )
        if found is not None and found.retired != identity.retired:
            raise IdentityError(
                f"{location} holds the store {found.store_id} of node {found.node_id} already: nothing is overwritten",
                hint="name a place where no store is yet, or move that one away",
            )
        if found is None and is_begun:
            raise IdentityError(
                f"there is no store at {location} to be finished; what was moved there is older than what may have been"
                " promised with it since, and is not used again",
                hint=f"start {context.node_id} with an empty folder, then: raftkit member rejoin {context.node_id}",
            )
        stack.push_async_callback(snapshots.close)
        await snapshots.open(context)
        if found is None:
            left = await snapshots.current()
            if left is not None and not shares_snapshots:
                raise IdentityError(
                    f"no store is at {location}, but a snapshot of an earlier one, up to {left.last_log_id}, is beside"
                    " it and would be taken for this one's",
                    hint=f"name a folder that is empty, or move the snapshots of {context.node_id} away",
                )
            await log.save_identity(identity)
        yield OfflineStore(identity if found is None else found, log, snapshots, location)


async def walk_log(log: RaftLogStorage, first: int, last: int) -> AsyncIterator[list[Entry]]:
    """The entries ``first`` to ``last``, a batch at a time. Raises: StorageError, StorageCorrupt."""
    while first <= last:
        entries = await log.read(first, last + 1, READ_BYTES)
        if not entries or entries[0].index != first:
            raise StorageError(f"entry {first} is missing from the log", subject="log", verb="read")
        yield entries
        first = entries[-1].index + 1


async def write_log(log: RaftLogStorage, batch: LogBatch) -> None:
    """One durable write."""
    result = log.write(batch)
    if result is not None:
        await result


class LogEnd(msgspec.Struct, frozen=True):
    """What the newest part of a log says: the last two memberships in it, and the cluster time of its last entry."""

    memberships: tuple[StoredMembership, ...]
    time_ms: int


async def read_log_end(log: RaftLogStorage, first: int, last: LogId | None) -> LogEnd:
    """Walks the whole log: memberships may stand anywhere."""
    found: tuple[StoredMembership, ...] = ()
    time_ms = 0
    async for entries in walk_log(log, first, index_of(last)):
        time_ms = entries[-1].time_ms
        for entry in entries:
            if entry.kind == MEMBERSHIP:
                found = (*found[-1:], StoredMembership(entry.log_id, decode_membership(entry.payload)))
    return LogEnd(found, time_ms)
