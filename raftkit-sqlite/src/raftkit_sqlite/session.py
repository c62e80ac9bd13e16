"""The store as aiosqlite's thread sees it: every function here runs there and blocks there.

Nothing in this file knows asyncio. :class:`Session` owns the connection's state, so a caller that stopped waiting
cannot leave it half changed.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import msgspec

from raftkit_core.errors import IdentityError, StorageError
from raftkit_core.storage.identity import check_store_identity
from raftkit_core.storage.interface import LogBatch, LogState
from raftkit_core.types.adapter import AdapterContext
from raftkit_core.types.entry import Entry
from raftkit_core.types.identity import StoreIdentity
from raftkit_core.types.log_id import LogId, index_of, next_index
from raftkit_sqlite import schema
from raftkit_sqlite.database import JobConnection
from raftkit_sqlite.lock import FileLock
from raftkit_sqlite.options import SqliteOptions
from raftkit_sqlite.records import Damaged, EntryRow, entry_of, meta_checksum, place, rows_of
from raftkit_sqlite.translate import corrupt, translate

Result = TypeVar("Result")

_COLUMNS = "idx, term, leader, time_ms, kind, payload, crc"
_INSERT_ONE = "INSERT INTO log VALUES (?,?,?,?,?,?,?)"
_ROWS_PER_INSERT = 64  # measured: more rows in one statement gain nothing
_INSERT_MANY = "INSERT INTO log VALUES " + ",".join(["(?,?,?,?,?,?,?)"] * _ROWS_PER_INSERT)

_ROW_OVERHEAD_BYTES = 48
_CHECKPOINT_BYTES = 1024 * 1024
"""When idle, checkpoint once this much was written: recovery reads the whole write-ahead log."""
_VACUUM_STEP_PAGES = 256
_FREE_PAGES_KEPT = 1024
"""Free pages (4 MiB) that stay in the file for the next entries; the rest goes back to the disk, a step at a time."""


class Session:
    """One opened store. ``state`` is replaced whole, after its transaction is durable."""

    def __init__(self, path: Path, options: SqliteOptions, context: AdapterContext) -> None:
        self.state = LogState()
        self.identity: StoreIdentity | None = None
        self.failure: StorageError | None = None
        self._path = path
        self._options = options
        self.node_id = context.node_id
        self.group = context.group
        self._context = context
        self._place = place(context.node_id, context.group)
        self._written_bytes = 0
        self.lock = FileLock(path)

    def connect(self) -> JobConnection:
        """Claim, make or open, configure and read the store.

        Raises: StorageLocked, IdentityError, StorageCorrupt, StorageError.
        """
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise StorageError(
                f"cannot make the folder {self._path.parent}: {error.strerror or error}",
                verb="open",
                hint="name a folder this user may write, for example sqlite:///var/lib/raftkit/n1/log.db",
            ) from error
        schema.check_header(self._path)  # before the claim, so that a foreign file gets no lock file beside it
        self.lock.acquire(self.node_id)
        try:
            return self._connect_claimed()
        except BaseException:
            self.lock.release()
            raise

    def _connect_claimed(self) -> JobConnection:
        try:
            if not schema.check_header(self._path):
                schema.create(self._path, self.node_id, self.group)
            connection = sqlite3.connect(self._path, isolation_level=None, timeout=0, factory=JobConnection)
        except (OSError, sqlite3.Error) as error:
            raise translate(error, self._path, subject="store", verb="open") from error
        try:
            connection.on_close = _nothing  # until it is handed over
            schema.configure(connection, self._path, self._options)
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            schema.check_format(self._path, version)
            self._load(connection)
        except sqlite3.OperationalError as error:
            connection.close()
            if "no such table" in str(error):  # it says it is ours, and is not
                raise corrupt(self._path, subject="store", verb="open", what=str(error)) from error
            raise translate(error, self._path, subject="store", verb="open") from error
        except sqlite3.Error as error:
            connection.close()
            raise translate(error, self._path, subject="store", verb="open") from error
        except BaseException:
            connection.close()
            raise
        return connection

    # --- Reading ----------------------------------------------------------------------------------------------------

    def _load(self, connection: sqlite3.Connection) -> None:
        store = self._meta(connection, schema.STORE, schema.store_decoder, subject="identity", start=0)
        self._check_owner(connection, store)
        if self._options.quick_check:
            answer = [str(row[0]) for row in connection.execute("PRAGMA quick_check(3)")]
            if answer != ["ok"]:
                raise corrupt(self._path, subject="store", verb="open", what="; ".join(answer))
        vote = self._meta(connection, schema.VOTE, schema.vote_decoder, subject="vote", start=self._place)
        bounds = self._meta(connection, schema.BOUNDS, schema.bounds_decoder, subject="log", start=self._place)
        state = LogState(vote=vote, committed=bounds.committed, last_purged=bounds.purged, last_log_id=bounds.last)
        self._check_ends(connection, state)
        self.identity, self.state = store.identity, state

    def _check_owner(self, connection: sqlite3.Connection, store: schema.StoreRecord) -> None:
        """Refuse another node's or a newer store (L1). One that was made and never used is anybody's."""
        check_store_identity(store.identity, self._context, str(self._path))
        owner = (store.node_id, store.group)
        if owner == (self.node_id, self.group):
            return
        rows = connection.execute("SELECT k, v, crc FROM meta").fetchall()
        if sorted(rows) != sorted(schema.meta_rows(*owner)) or connection.execute("SELECT 1 FROM log").fetchone():
            raise IdentityError(
                f"{self._path} belongs to node {store.node_id}, group {store.group}; "
                f"this is node {self.node_id}, group {self.group}",
                hint=f"start it as node {store.node_id}, or give node {self.node_id} a file of its own",
            )
        connection.execute("BEGIN IMMEDIATE")
        connection.executemany("REPLACE INTO meta VALUES (?, ?, ?)", schema.meta_rows(self.node_id, self.group))
        connection.execute("COMMIT")

    def _check_ends(self, connection: sqlite3.Connection, state: LogState) -> None:
        """The first and the last row are where the bounds say: a lost tail is damage, not a shorter log."""
        (lowest,) = connection.execute("SELECT min(idx) FROM log").fetchone()
        (highest,) = connection.execute("SELECT max(idx) FROM log").fetchone()
        first, last = next_index(state.last_purged), index_of(state.last_log_id)
        expected = (first, last) if first <= last else (None, None)
        if (lowest, highest) != expected:
            raise corrupt(
                self._path,
                subject="log",
                verb="open",
                what=f"entries {lowest} to {highest} are there, {expected[0]} to {expected[1]} were written",
            )
        if expected[0] is not None and self._log_id_at(connection, last) != state.last_log_id:
            raise corrupt(self._path, subject="log", verb="open", what=f"entry {last} is not {state.last_log_id}")

    def _meta(
        self,
        connection: sqlite3.Connection,
        key: str,
        decoder: msgspec.msgpack.Decoder[Result],
        *,
        subject: str,
        start: int,
    ) -> Result:
        row = connection.execute("SELECT v, crc FROM meta WHERE k = ?", (key,)).fetchone()
        if row is None:
            raise corrupt(self._path, subject=subject, verb="read", what="its row is missing")
        if meta_checksum(key, row[0], start) != row[1]:
            raise corrupt(self._path, subject=subject, verb="read", what="its checksum does not fit")
        try:
            return decoder.decode(row[0])
        except msgspec.DecodeError as error:
            raise corrupt(self._path, subject=subject, verb="read", what=str(error)) from error

    def _log_id_at(self, connection: sqlite3.Connection, index: int) -> LogId:
        row = connection.execute(f"SELECT {_COLUMNS} FROM log WHERE idx = ?", (index,)).fetchone()
        try:
            if row is None:
                raise Damaged(f"entry {index} is missing")
            return entry_of(row, self._place, index).log_id
        except Damaged as error:
            raise corrupt(self._path, subject="log", verb="read", what=str(error)) from error

    def read(self, connection: sqlite3.Connection, start: int, stop: int, max_bytes: int) -> list[Entry]:
        """See ``RaftLogStorage.read``."""
        if start >= stop:
            return []
        first, last = next_index(self.state.last_purged), index_of(self.state.last_log_id)
        if not first <= start <= last:
            held = f"entries {first} to {last} are there" if first <= last else "the log is empty"
            why = "is purged" if start < first else "does not exist"
            raise StorageError(f"{self._path}: entry {start} {why}: {held}", subject="log", verb="read")
        entries: list[Entry] = []
        size = 0
        expected = start
        try:
            cursor = connection.execute(
                f"SELECT {_COLUMNS} FROM log WHERE idx >= ? AND idx < ? ORDER BY idx", (start, min(stop, last + 1))
            )
            try:
                for row in cursor:
                    entry = entry_of(row, self._place, expected)
                    size += len(entry.payload)
                    if entries and size > max_bytes:
                        return entries
                    entries.append(entry)
                    expected += 1
            finally:
                cursor.close()  # an open cursor would hold back checkpoints
            if expected < min(stop, last + 1):
                raise Damaged(f"entry {expected} is missing")
        except Damaged as error:
            raise corrupt(self._path, subject="log", verb="read", what=str(error)) from error
        except sqlite3.Error as error:
            raise translate(error, self._path, subject="log", verb="read") from error
        return entries

    # --- Writing ----------------------------------------------------------------------------------------------------

    def write(self, connection: sqlite3.Connection, batch: LogBatch) -> None:
        """One transaction for the whole batch; on return it is durable.

        Raises: StorageError.
        """
        self._require_alive()
        state = self._state_after(connection, batch)
        self._transaction(connection, lambda: self._write_parts(connection, batch, state), subject=_subject(batch))
        self.state = state
        self._written_bytes += sum(len(entry.payload) + _ROW_OVERHEAD_BYTES for entry in batch.entries) + 4096

    def save_identity(self, connection: sqlite3.Connection, identity: StoreIdentity) -> None:
        """Make ``identity`` durable.

        Raises: StorageError.
        """
        self._require_alive()
        record = schema.encode(schema.StoreRecord(self.node_id, self.group, identity))
        self._transaction(
            connection, lambda: self._save_meta(connection, schema.STORE, record, start=0), subject="identity"
        )
        self.identity = identity

    def _require_alive(self) -> None:
        if self.failure is not None:
            raise StorageError(
                f"{self._path}: an earlier write failed, nothing more is written: {self.failure}",
                subject=self.failure.subject,
                hint=self.failure.hint,
            ) from self.failure

    def _state_after(self, connection: sqlite3.Connection, batch: LogBatch) -> LogState:
        """What the log will be; raises before anything is written if the entries would leave a hole."""
        purged, last = self.state.last_purged, self.state.last_log_id
        since, upto = batch.truncate_since, batch.purge_upto
        if since is not None and since <= index_of(last):
            last = purged if since - 1 <= index_of(purged) else self._log_id_at(connection, since - 1)
        if upto is not None and upto.index > index_of(purged):
            purged = upto
            if upto.index >= index_of(last):
                last = upto
        for expected, entry in enumerate(batch.entries, next_index(last)):
            if entry.log_id.index != expected:
                raise StorageError(
                    f"{self._path}: entry {entry.log_id.index} cannot follow {expected - 1}: a log has no holes",
                    subject="log",
                )
        if batch.entries:
            last = batch.entries[-1].log_id
        committed = batch.committed
        if committed is None or index_of(committed) > index_of(last):
            committed = self.state.committed  # it may lag, and may never be ahead of what is durable (L10)
        if index_of(committed) > index_of(last):
            committed = last
        vote = self.state.vote if batch.vote is None else batch.vote
        return LogState(vote=vote, committed=committed, last_purged=purged, last_log_id=last)

    def _write_parts(self, connection: sqlite3.Connection, batch: LogBatch, after: LogState) -> None:
        before = self.state
        if batch.vote is not None:
            self._save_meta(connection, schema.VOTE, schema.encode(batch.vote), start=self._place)
        if batch.truncate_since is not None and batch.truncate_since <= index_of(before.last_log_id):
            connection.execute("DELETE FROM log WHERE idx >= ?", (batch.truncate_since,))
        if after.last_purged != before.last_purged:
            connection.execute("DELETE FROM log WHERE idx <= ?", (index_of(after.last_purged),))
        if batch.entries:
            _insert(connection, rows_of(batch.entries, self._place))
        bounds = schema.Bounds(after.committed, after.last_purged, after.last_log_id)
        if bounds != schema.Bounds(before.committed, before.last_purged, before.last_log_id):
            self._save_meta(connection, schema.BOUNDS, schema.encode(bounds), start=self._place)

    def _save_meta(self, connection: sqlite3.Connection, key: str, value: bytes, *, start: int) -> None:
        crc = meta_checksum(key, value, start)
        cursor = connection.execute("UPDATE meta SET v = ?, crc = ? WHERE k = ?", (value, crc, key))
        if cursor.rowcount != 1:
            raise corrupt(self._path, subject=key, verb="write", what="its row is missing")

    def _transaction(self, connection: sqlite3.Connection, body: Callable[[], None], *, subject: str) -> None:
        try:
            connection.execute("BEGIN IMMEDIATE")
            body()
            connection.execute("COMMIT")
        except BaseException as error:
            # SQLite forgets a failed sync and accepts the next write as if nothing had been lost. We must not.
            self._latch(connection, error, subject=subject, verb="write")

    def _latch(self, connection: sqlite3.Connection, error: BaseException, *, subject: str, verb: str) -> None:
        cause = error if isinstance(error, Exception) else RuntimeError(repr(error))
        self.failure = translate(cause, self._path, subject=subject, verb=verb)
        try:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
        except sqlite3.Error:
            pass  # the handle is dead already, and the next open decides by what is on the disk
        raise self.failure from error

    # --- Housekeeping -----------------------------------------------------------------------------------------------

    def tidy(self, connection: sqlite3.Connection) -> bool:
        """One small step of work for an idle moment. Whether more is left.

        Raises: StorageError; the handle is dead then, because a checkpoint syncs like a write.
        """
        if self.failure is not None:
            return False
        try:
            if self._written_bytes >= _CHECKPOINT_BYTES:
                connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
                self._written_bytes = 0
                return True
            (free,) = connection.execute("PRAGMA freelist_count").fetchone()
            if free <= _FREE_PAGES_KEPT:
                return False
            # It gives a row without columns per page, after the first of which `execute` would stop.
            connection.executescript(f"PRAGMA incremental_vacuum({_VACUUM_STEP_PAGES})")
            self._written_bytes += _CHECKPOINT_BYTES  # the file gets shorter when that is checkpointed
        except sqlite3.Error as error:
            self._latch(connection, error, subject="store", verb="write")
        return True

    def finish(self, connection: sqlite3.Connection) -> None:
        """Leave no write-ahead log behind, unless a write failed: then nothing on the disk is touched again."""
        if self.failure is None:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()


def _nothing() -> None:
    return


def _insert(connection: sqlite3.Connection, rows: Sequence[EntryRow]) -> None:
    whole = len(rows) - len(rows) % _ROWS_PER_INSERT
    for start in range(0, whole, _ROWS_PER_INSERT):
        part = rows[start : start + _ROWS_PER_INSERT]
        connection.execute(_INSERT_MANY, [value for row in part for value in row])
    if whole < len(rows):
        connection.executemany(_INSERT_ONE, rows[whole:])


def _subject(batch: LogBatch) -> str:
    only_vote = batch.vote is not None and not batch.entries and batch.truncate_since is None
    return "vote" if only_vote and batch.purge_upto is None else "log"


def size_of(path: Path) -> int:
    """Bytes of the database and its write-ahead log; 0 for what is not there."""
    total = 0
    for name in (path.name, path.name + "-wal"):
        try:
            total += os.stat(path.with_name(name)).st_size
        except FileNotFoundError:
            continue
    return total
