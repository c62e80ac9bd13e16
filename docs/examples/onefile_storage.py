"""A log storage in one file: the whole store is written anew at every write, then put in place of the old one.

Small on purpose, and slow once the log has grown; but it keeps every clause of ``RaftLogStorage``, which the
conformance kit proves. POSIX only, for its lock.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from pathlib import Path

import msgspec

from raftkit_core import hookimpl
from raftkit_core.errors import StorageCorrupt, StorageError, StorageLocked
from raftkit_core.storage.identity import check_store_identity
from raftkit_core.storage.interface import LogBatch, LogState, RaftLogStorage, StorageInfo
from raftkit_core.types.adapter import AdapterContext
from raftkit_core.types.entry import Entry
from raftkit_core.types.identity import StoreIdentity
from raftkit_core.types.log_id import LogId
from raftkit_core.types.vote import Vote


class Store(msgspec.Struct):
    """Everything the file holds."""

    identity: StoreIdentity | None = None
    vote: Vote | None = None
    committed: LogId | None = None
    purged: LogId | None = None
    entries: list[Entry] = []


class OneFileStorage(RaftLogStorage):
    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: int | None = None
        self._store = Store()
        self._dead = False

    async def open(self, context: AdapterContext) -> StoreIdentity | None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = self._claim(context.node_id)  # L1: the claim is the operating system's, so it ends with us
        try:
            if self.path.exists():
                self._store = self._load()
            check_store_identity(self._store.identity, context, str(self.path))
        except BaseException:
            await self.close()
            raise
        return self._store.identity

    def _claim(self, node_id: str) -> int:
        lock = os.open(self.path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = os.pread(lock, 200, 0).decode(errors="replace")
            os.close(lock)
            raise StorageLocked(f"{self.path} is held by {holder}", verb="open", hint="stop that process") from None
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"node {node_id}, process {os.getpid()}".encode(), 0)
        return lock

    def _load(self) -> Store:
        data = self.path.read_bytes()
        if hashlib.sha256(data[32:]).digest() != data[:32]:  # L9: damage is found, never read as an empty store
            raise StorageCorrupt(
                f"{self.path} is not what was written", verb="open", hint="rejoin with an empty folder"
            )
        return msgspec.msgpack.decode(data[32:], type=Store)

    async def save_identity(self, identity: StoreIdentity) -> None:
        self._commit(msgspec.structs.replace(self._store, identity=identity))

    def write(self, batch: LogBatch) -> None:
        """Durable when it returns, so nothing is left to await: L2, and L6 by the way."""
        store = self._store
        entries, purged = store.entries, store.purged
        first = entries[0].index if entries else 0
        if batch.truncate_since is not None:
            entries = entries[: max(0, batch.truncate_since - first)]
        if batch.purge_upto is not None and (purged is None or batch.purge_upto.index > purged.index):
            entries = [entry for entry in entries if entry.index > batch.purge_upto.index]  # L5
            purged = batch.purge_upto
        last = entries[-1].log_id if entries else purged
        expected = 0 if last is None else last.index + 1
        for position, entry in enumerate(batch.entries):
            if entry.index != expected + position:  # L4: refused before anything is written
                raise StorageError(f"entry {entry.log_id} would leave a hole: {expected + position} is next")
        entries = [*entries, *batch.entries]
        end = entries[-1].index if entries else expected - 1
        known = [at for at in (batch.committed, store.committed) if at is not None and at.index <= end]
        self._commit(
            Store(
                identity=store.identity,
                vote=batch.vote or store.vote,
                committed=known[0] if known else None,  # L10: may lag, never ahead
                purged=purged,
                entries=entries,
            )
        )

    def _commit(self, store: Store) -> None:
        """The one place that writes. L3: the rename is the moment."""
        if self._dead or self._lock is None:
            raise StorageError(f"{self.path} is closed, or failed before")  # L7
        data = msgspec.msgpack.encode(store)
        scratch = self.path.with_suffix(".new")
        try:
            with scratch.open("wb") as file:
                file.write(hashlib.sha256(data).digest() + data)
                file.flush()
                os.fsync(file.fileno())
            scratch.replace(self.path)
            folder = os.open(self.path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)  # the name is durable only with its folder
            finally:
                os.close(folder)
        except OSError as error:
            self._dead = True
            raise StorageError(f"{self.path} cannot be written: {error}", subject="log") from error
        self._store = store

    def _check_open(self) -> None:
        if self._lock is None:
            raise StorageError(f"{self.path} is not open", verb="read")

    async def read_state(self) -> LogState:
        self._check_open()
        store = self._store
        last = store.entries[-1].log_id if store.entries else store.purged
        return LogState(store.vote, store.committed, store.purged, last)

    async def read(self, start: int, stop: int, max_bytes: int) -> list[Entry]:
        self._check_open()
        entries = self._store.entries
        offset = start - entries[0].index if entries else -1
        if not 0 <= offset < len(entries):
            raise StorageError(f"there is no entry {start}", subject="log", verb="read")
        found: list[Entry] = []
        size_bytes = 0
        for entry in entries[offset : offset + stop - start]:
            size_bytes += len(entry.payload)
            if found and size_bytes > max_bytes:
                break
            found.append(entry)
        return found

    async def info(self) -> StorageInfo:
        size_bytes = self.path.stat().st_size if self.path.exists() else 0
        return StorageInfo("onefile", str(self.path), size_bytes, "every write is synced before it returns")

    async def close(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


@hookimpl
def raftkit_register_storage(registry):  # type: ignore[no-untyped-def]
    """``onefile:n1.log`` is a file in the node's folder."""
    registry.add("onefile", lambda url, context: OneFileStorage(url.file_path(context.data_dir)))
