"""The log as aiosqlite's thread sees it: every function here runs there and blocks there.

Nothing in this file knows asyncio. :class:`Session` owns the connection's state, so a caller that stopped waiting
cannot leave it half changed.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from pathlib import Path

from raftkit_core.errors import IdentityError, StorageError
from raftkit_core.storage.identity import check_store_identity
from raftkit_core.storage.interface import LogBatch, LogState
from raftkit_core.types.adapter import AdapterContext
from raftkit_core.types.entry import Entry, indexes_of, payload_bytes
from raftkit_core.types.identity import StoreIdentity
from raftkit_core.types.log_id import LogId, index_of, next_index
from raftkit_sqlite import schema
from raftkit_sqlite.file_session import FileSession
from raftkit_sqlite.options import SqliteOptions
from raftkit_sqlite.records import Damaged, EntryRow, entry_of, rows_of
from raftkit_sqlite.translate import corrupt, translate

_COLUMNS = "idx, term, leader, time_ms, kind, payload, crc"
_INSERT_ONE = "INSERT INTO log VALUES (?,?,?,?,?,?,?)"
_ROWS_PER_INSERT = 64  # measured: more rows in one statement gain nothing
_INSERT_MANY = "INSERT INTO log VALUES " + ",".join(["(?,?,?,?,?,?,?)"] * _ROWS_PER_INSERT)

_ROW_OVERHEAD_BYTES = 48


class Session(FileSession):
    """One opened store. ``state`` is replaced whole, after its transaction is durable."""

    form = schema.LOG

    def __init__(self, path: Path, options: SqliteOptions, context: AdapterContext) -> None:
        super().__init__(path, context)
        self.state = LogState()
        self.identity: StoreIdentity | None = None
        self._options = options
        self._keeps_what_it_confirms = options.durability == "full"

    def _first_rows(self) -> Sequence[tuple[str, bytes, int]]:
        return schema.meta_rows(self.node_id, self.group)

    def _settings(self) -> Mapping[str, str | int]:
        return schema.log_settings(self._options)

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
        self._written_bytes += payload_bytes(batch.entries) + len(batch.entries) * _ROW_OVERHEAD_BYTES + 4096

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
        entries = batch.entries
        for expected, index in enumerate(indexes_of(entries), next_index(last)):
            if index != expected:
                raise StorageError(
                    f"{self._path}: entry {index} cannot follow {expected - 1}: a log has no holes", subject="log"
                )
        if entries:
            last = entries[-1].log_id
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
