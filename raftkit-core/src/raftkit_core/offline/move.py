"""Backup, restore, and the move to another adapter.

A store that is being filled carries an identity that says so (``retired``): no node starts on it before it is whole,
and the same command goes on where it stopped.

- A *restored* store is a copy of something older: it may have forgotten votes and entries it acknowledged (reliability
  row D12). So it gets a store id of its own; the membership names the old one, and a node started on it is parked
  (``NeedsRejoin``) until it rejoins as a learner.
- A *moved* store is the same store in another place: it keeps its store id. The source is durably retired before the
  target may be opened as a node, so there is never a moment with two of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import msgspec

from raftkit_core.errors import IdentityError, StorageCorrupt, StorageError
from raftkit_core.offline.archive import BackupFile, BackupHeader, BackupWriter, NewFile
from raftkit_core.offline.store import (
    OfflineStore,
    Progress,
    ProgressListener,
    no_progress,
    open_store,
    open_target,
    walk_log,
    write_log,
)
from raftkit_core.storage.interface import LogBatch, LogState, RaftLogStorage, RaftSnapshotStorage
from raftkit_core.types.adapter import AdapterContext
from raftkit_core.types.entry import Entry
from raftkit_core.types.identity import StoreIdentity
from raftkit_core.types.log_id import index_of, next_index
from raftkit_core.types.snapshot import SnapshotMeta

UNFINISHED = "not finished: "
MOVED = "migrated to "


class Copied(msgspec.Struct, kw_only=True):
    """What a backup, a restore or a move did. ``sha256`` is the backup file's."""

    identity: StoreIdentity
    state: LogState
    entries: int
    snapshot: SnapshotMeta | None
    location: str
    file_bytes: int = 0
    sha256: str = ""


# --- backup ---------------------------------------------------------------------------------------------------------


async def back_up(
    store: OfflineStore, path: Path, *, created_ms: int, version: str, progress: ProgressListener = no_progress
) -> Copied:
    """Write ``store`` to a new file at ``path``, and read that back.

    Raises: IdentityError for a store that is not finished; StorageCorrupt for what is damaged in it; StorageError.
    """
    if store.identity.retired.startswith(UNFINISHED):
        raise IdentityError(f"{store.location} is {store.identity.retired}", hint="finish that first")
    state = await store.log.read_state()
    source = await store.snapshots.source()
    try:
        header = BackupHeader(
            identity=store.identity,
            state=state,
            snapshot=None if source is None else source.meta,
            source=store.location,
            version=version,
            created_ms=created_ms,
        )
        with NewFile(path) as file:
            writer = BackupWriter(file, header)
            done = 0
            first, last = next_index(state.last_purged), index_of(state.last_log_id)
            async for entries in walk_log(store.log, first, last):
                writer.entries(entries)
                done += len(entries)
                progress(Progress("entries", done, header.entries))
            if source is not None:
                done = 0
                async for chunk in source.open(0):
                    writer.snapshot(chunk)
                    done += len(chunk)
                    progress(Progress("snapshot bytes", done, source.meta.size_bytes))
            writer.end()
            file.finish()
    finally:
        if source is not None:
            await source.close()
    written = BackupFile(path)
    written.check()
    return copied_of(written, store.location)


def copied_of(backup: BackupFile, location: str) -> Copied:
    """Of a checked backup."""
    header = backup.header
    return Copied(
        identity=header.identity,
        state=header.state,
        entries=header.entries,
        snapshot=header.snapshot,
        location=location,
        file_bytes=backup.size_bytes,
        sha256=backup.sha256,
    )


# --- restore --------------------------------------------------------------------------------------------------------


async def restore(
    backup: BackupFile,
    log: RaftLogStorage,
    snapshots: RaftSnapshotStorage,
    context: AdapterContext,
    *,
    new_store_id: str,
    progress: ProgressListener = no_progress,
) -> Copied:
    """Fill an empty place from a checked backup, under a store id of its own.

    Raises: IdentityError if a store is there already; StorageError.
    """
    assert backup.sha256, "a backup is checked before it is restored"
    header = backup.header
    identity = msgspec.structs.replace(
        header.identity,
        store_id=new_store_id,
        retired=f"{UNFINISHED}the restore of {backup.sha256[:16]}; run raftkit storage restore again",
    )
    async with open_target(log, snapshots, context, identity) as target:

        async def entries() -> AsyncIterator[list[Entry]]:
            for batch in backup.entries():
                yield batch

        async def snapshot() -> AsyncIterator[bytes]:
            for chunk in backup.snapshot():
                yield chunk

        await fill(target, header.state, entries, header.snapshot, snapshot, progress)
        await finish(target)
        found = copied_of(backup, target.location)
        found.identity = target.identity
        return found


async def fill(
    target: OfflineStore,
    state: LogState,
    entries: Callable[[], AsyncIterator[list[Entry]]],
    snapshot: SnapshotMeta | None,
    chunks: Callable[[], AsyncIterator[bytes]],
    progress: ProgressListener,
) -> None:
    """The snapshot first: a log without what lies before it is worth nothing. Then vote, purge position and entries,
    after those an earlier try has written (as far as they are still what is copied); ``committed`` last."""
    if snapshot is not None and await target.snapshots.current() != snapshot:
        sink = await target.snapshots.sink(snapshot.snapshot_id)
        try:
            done = 0
            async for chunk in chunks():
                await sink.write(chunk)
                done += len(chunk)
                progress(Progress("snapshot bytes", done, snapshot.size_bytes))
            await sink.publish(snapshot)
        except BaseException:
            await sink.abort()
            raise
    held = await target.log.read_state()
    if (held.vote, held.last_purged) != (state.vote, state.last_purged):
        truncate = None
        if held.last_purged != state.last_purged and index_of(held.last_log_id) > index_of(held.committed):
            truncate = max(next_index(held.last_purged), next_index(held.committed))
        await write_log(target.log, LogBatch(vote=state.vote, truncate_since=truncate, purge_upto=state.last_purged))
    first = next_index(state.last_purged)
    total = index_of(state.last_log_id) + 1 - first
    have = index_of((await target.log.read_state()).last_log_id)
    if have > index_of(state.last_log_id):
        have = index_of(state.last_log_id)
        await write_log(target.log, LogBatch(truncate_since=have + 1))
    async for batch in entries():
        same = await _count_same(target.log, batch, have)
        if same < len(batch) and batch[same].index <= have:
            have = batch[same].index - 1
            await write_log(target.log, LogBatch(truncate_since=have + 1))
        new = [entry for entry in batch if entry.index > have]
        if new:
            await write_log(target.log, LogBatch(entries=new))
            have = new[-1].index
        progress(Progress("entries", have + 1 - first, total))
    if state.committed is not None:
        await write_log(target.log, LogBatch(committed=state.committed))
    written = await target.log.read_state()
    if written != state:
        raise StorageError(f"{target.location} holds {written} after the copy, not {state}", subject="log")


async def _count_same(log: RaftLogStorage, batch: list[Entry], have: int) -> int:
    """How many entries at the beginning of ``batch`` are in ``log`` already, which ends at ``have``: its source may
    have run since they were written."""
    count = 0
    first, last = batch[0].index, min(batch[-1].index, have)
    async for held in walk_log(log, first, last):
        for entry in held:
            if entry != batch[count]:
                return count
            count += 1
    return count


async def finish(target: OfflineStore) -> None:
    """From now on a node may start on it."""
    await target.save_identity(msgspec.structs.replace(target.identity, retired=""))


# --- migrate --------------------------------------------------------------------------------------------------------


class Place(msgspec.Struct, frozen=True):
    """Where a store is or shall be. ``url`` stands in messages: without passwords."""

    log: RaftLogStorage
    snapshots: RaftSnapshotStorage
    context: AdapterContext
    url: str


async def migrate(
    source: Place, target: Place, *, copy_snapshots: bool, progress: ProgressListener = no_progress
) -> Copied:
    """Move a store. ``copy_snapshots`` is False where both sides keep them in the same place.

    A crash before the source is retired leaves it as it was; after that the same call finishes the target. In between
    the target says of itself that it is not finished.

    Raises: IdentityError if the source is retired for another reason, or the target holds another store; StorageError.
    """
    async with open_store(source.log, source.snapshots, source.context) as old:
        was_moved = bool(old.identity.retired)
        if was_moved and not old.identity.retired.startswith(f"{MOVED}{target.url} at "):
            raise _not_again(old)
        identity = msgspec.structs.replace(
            old.identity, retired=f"{UNFINISHED}the migration from {source.url}; run raftkit storage migrate again"
        )
        async with open_target(
            target.log,
            target.snapshots,
            target.context,
            identity,
            shares_snapshots=not copy_snapshots,
            is_begun=was_moved,
        ) as new:
            moved = f"{MOVED}{target.url} at {new.location}"
            if old.identity.retired not in ("", moved):
                raise _not_again(old)
            if new.identity.store_id != old.identity.store_id:
                raise IdentityError(
                    f"{new.location} was begun as a copy of store {new.identity.store_id}, this is"
                    f" {old.identity.store_id}",
                    hint="name a place where no store is yet",
                )
            state = await old.log.read_state()
            first, last = next_index(state.last_purged), index_of(state.last_log_id)
            held = await old.snapshots.source() if copy_snapshots else None
            try:
                meta = None if held is None else held.meta

                async def chunks() -> AsyncIterator[bytes]:
                    assert held is not None, "asked for only where there is a snapshot"
                    async for chunk in held.open(0):
                        yield chunk

                await fill(new, state, lambda: walk_log(old.log, first, last), meta, chunks, progress)
            finally:
                if held is not None:
                    await held.close()
            digests = [await log_sha256(side.log, first, last) for side in (old, new)]
            if digests[0] != digests[1]:
                raise StorageCorrupt(
                    f"{new.location} gives back other entries than {old.location}", subject="log", verb="read"
                )
            if not old.identity.retired:
                await old.save_identity(msgspec.structs.replace(old.identity, retired=moved))
            await finish(new)
            snapshot = await new.snapshots.current()
            return Copied(
                identity=new.identity, state=state, entries=last + 1 - first, snapshot=snapshot, location=new.location
            )


def _not_again(old: OfflineStore) -> IdentityError:
    return IdentityError(f"{old.location} is retired: {old.identity.retired}", hint="take the store that is in use")


async def log_sha256(log: RaftLogStorage, first: int, last: int) -> str:
    """Over every entry in order, as :class:`~raftkit_core.offline.verify.StoreReport` has it."""
    digest = hashlib.sha256()
    async for entries in walk_log(log, first, last):
        for entry in entries:
            digest.update(msgspec.msgpack.encode(entry))
    return digest.hexdigest()
