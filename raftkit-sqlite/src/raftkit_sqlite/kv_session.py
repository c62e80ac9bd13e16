"""The state of ``sqlite-kv`` as the thread of its writing connection sees it: every function here blocks there.

Rows are in the table ``data_G``; ``meta`` says which generation G counts, so a restore fills the next one beside it and
switches over in one small transaction. A generation that nobody points at is dropped, at the latest by the next open.
"""

from __future__ import annotations

import sqlite3
import struct
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any
from zlib import crc32

import msgspec

from raftkit_core.errors import IdentityError, StorageError
from raftkit_core.state_machine.interface import AppliedState, ApplyBatch
from raftkit_core.state_machine.kv_rules import Cell, apply_to_cells, check_revision, keys_of
from raftkit_core.state_machine.kv_stream import RowDecoder
from raftkit_core.types.adapter import AdapterContext
from raftkit_core.types.ids import NodeId
from raftkit_core.types.kv import KV_MACHINE
from raftkit_core.types.log_id import LogId, index_of
from raftkit_core.types.membership import StoredMembership
from raftkit_core.types.snapshot import SnapshotMeta
from raftkit_sqlite import schema
from raftkit_sqlite.file_session import FileSession
from raftkit_sqlite.records import meta_checksum
from raftkit_sqlite.translate import corrupt

BUSY_MS = 1000
"""How long a write waits for somebody else's lock on the file (a backup, a curious shell) before the node stops."""

_POSITION = "position"
_SUBJECT = "state machine"
_HEAD = struct.Struct(">QI")


class SqliteKvOptions(msgspec.Struct, frozen=True):
    """What may follow the question mark of a ``sqlite-kv:`` URL.

    ``wal_autocheckpoint``: pages (4 KiB) of the write-ahead log after which a write also checkpoints.
    ``quick_check``: read the whole file at open and check its structure (about 1 s per GiB).
    """

    wal_autocheckpoint: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] = 8000
    quick_check: bool = False


class KvStore(msgspec.Struct, frozen=True):
    """``meta`` row ``store``: whose state this is, and of which logical machine."""

    node_id: NodeId
    group: str
    cluster: str
    machine: str = KV_MACHINE


class Position(msgspec.Struct, frozen=True, array_like=True):
    """``meta`` row ``position``: written with every batch, in the transaction of its data."""

    applied: LogId | None = None
    membership: StoredMembership = StoredMembership()
    generation: int = 0


def table_of(generation: int) -> str:
    return f"data_{generation}"


def _create_table(generation: int) -> str:
    # Not WITHOUT ROWID: values may be large, and then a tree of whole rows has one branch per page.
    return f"""CREATE TABLE {table_of(generation)} (
        key BLOB NOT NULL PRIMARY KEY, value BLOB NOT NULL, revision INTEGER NOT NULL, crc INTEGER NOT NULL
    ) STRICT"""


FORM = schema.FileForm(
    0x72666B31,  # "rfk1"
    1,
    (
        schema.META_TABLE,
        "CREATE TABLE records (k BLOB PRIMARY KEY, v BLOB NOT NULL, crc INTEGER NOT NULL) STRICT, WITHOUT ROWID",
        _create_table(0),
    ),
    "sqlite-kv:kv.db",
)

_position_decoder = msgspec.msgpack.Decoder(Position)
_store_decoder = msgspec.msgpack.Decoder(KvStore)


def row_checksum(key: bytes, value: bytes, revision: int) -> int:
    return crc32(value, crc32(key, crc32(_HEAD.pack(revision, len(key)))))


class KvSession(FileSession):
    """One opened state. ``position`` is replaced whole, after its transaction is durable."""

    form = FORM

    def __init__(self, path: Path, options: SqliteKvOptions, context: AdapterContext) -> None:
        super().__init__(path, context)
        self.position = Position()
        self._options = options
        self._store = KvStore(context.node_id, context.group, context.cluster)
        self._loading: int | None = None
        """The generation a restore is filling. Its transactions are not synced one by one."""

    # --- Opening ----------------------------------------------------------------------------------------------------

    def _first_rows(self) -> Sequence[tuple[str, bytes, int]]:
        store, position = schema.encode(self._store), schema.encode(Position())
        return [
            (schema.STORE, store, meta_checksum(schema.STORE, store, 0)),
            (_POSITION, position, meta_checksum(_POSITION, position, self._place)),
        ]

    def _settings(self) -> Mapping[str, str | int]:
        return {
            "locking_mode": "normal",  # snapshots and queries read over connections of their own
            # The log is purged up to what this file has applied, so what apply returned from must not get lost. NORMAL
            # would lose the last transactions with the power, and some entries to repeat them with may be gone.
            "synchronous": schema.SYNCHRONOUS["full"],
            "wal_autocheckpoint": self._options.wal_autocheckpoint,
            "busy_timeout": BUSY_MS,
        }

    def _load(self, connection: sqlite3.Connection) -> None:
        store = self._meta(connection, schema.STORE, _store_decoder, subject="identity", start=0)
        if store != self._store:
            self._adopt(connection, store)
        if self._options.quick_check:
            answer = [str(row[0]) for row in connection.execute("PRAGMA quick_check(3)")]
            if answer != ["ok"]:
                raise corrupt(self._path, subject=_SUBJECT, verb="open", what="; ".join(answer))
        self.position = self._meta(connection, _POSITION, _position_decoder, subject=_SUBJECT, start=self._place)
        connection.execute(f"SELECT 1 FROM {table_of(self.position.generation)} LIMIT 1").fetchall()
        self.drop_unused(connection)

    def _adopt(self, connection: sqlite3.Connection, store: KvStore) -> None:
        """Refuse another node's state. One that was made and never used is anybody's."""
        if store.machine != self._store.machine:
            raise IdentityError(f"{self._path} holds the machine {store.machine}, not {self._store.machine}")
        first = {key for (key,) in connection.execute("SELECT v FROM meta WHERE k = ?", (_POSITION,))}
        if first != {schema.encode(Position())} or connection.execute("SELECT 1 FROM records").fetchone():
            raise IdentityError(
                f"{self._path} belongs to node {store.node_id}, group {store.group}, cluster {store.cluster}; this is "
                f"node {self.node_id}, group {self.group}, cluster {self._store.cluster}",
                hint=f"start it as node {store.node_id}, or give node {self.node_id} a file of its own",
            )
        connection.execute("BEGIN IMMEDIATE")
        connection.executemany("REPLACE INTO meta VALUES (?, ?, ?)", self._first_rows())
        connection.execute("COMMIT")

    # --- Reading ----------------------------------------------------------------------------------------------------

    def applied_state(self, connection: sqlite3.Connection) -> AppliedState:
        """Raises: StorageCorrupt, sqlite3.Error."""
        records: dict[bytes, bytes] = {}
        for key, value, crc in connection.execute("SELECT k, v, crc FROM records"):
            if crc32(value, crc32(key, self._place)) != crc:
                raise corrupt(self._path, subject=_SUBJECT, verb="read", what=f"record {key!r} has another checksum")
            records[key] = value
        return AppliedState(self.position.applied, self.position.membership, records)

    def _cell(self, connection: sqlite3.Connection, key: str, whole: bool) -> Cell | None:
        table = table_of(self.position.generation)
        encoded = key.encode()
        if not whole:
            row = connection.execute(f"SELECT revision FROM {table} WHERE key = ?", (encoded,)).fetchone()
            return None if row is None else (b"", row[0])
        row = connection.execute(f"SELECT value, revision, crc FROM {table} WHERE key = ?", (encoded,)).fetchone()
        if row is None:
            return None
        check_row(self._path, encoded, *row)
        return row[0], row[1]

    # --- Applying ---------------------------------------------------------------------------------------------------

    def apply(self, connection: sqlite3.Connection, batch: ApplyBatch) -> list[Any]:
        """One transaction for data, position, membership and records; on return it is durable.

        Raises: StorageError.
        """
        self._require_alive()
        if index_of(batch.last_log_id) <= index_of(self.position.applied):
            raise StorageError(f"{self._path} has applied {self.position.applied}, not to be followed by {batch}")
        self.settle(connection)
        after = Position(
            batch.last_log_id,
            self.position.membership if batch.membership is None else batch.membership,
            self.position.generation,
        )
        results: list[Any] = []

        def body() -> None:
            cells = {key: self._cell(connection, key, whole) for key, whole in keys_of(batch.entries).items()}
            made, changed = apply_to_cells(batch.entries, cells)
            results.extend(made)
            self._store_cells(connection, changed)
            self._store_records(connection, batch.seal(results))
            self._save_meta(connection, _POSITION, schema.encode(after), start=self._place)

        self._transaction(connection, body, subject=_SUBJECT)
        self.position = after
        return results

    def _store_cells(self, connection: sqlite3.Connection, changed: Mapping[str, Cell | None]) -> None:
        table = table_of(self.position.generation)
        removed = [(key.encode(),) for key, cell in changed.items() if cell is None]
        if removed:
            connection.executemany(f"DELETE FROM {table} WHERE key = ?", removed)
        rows = [_row(key, *cell) for key, cell in changed.items() if cell is not None]
        if rows:
            connection.executemany(
                f"INSERT INTO {table} VALUES (?, ?, ?, ?) ON CONFLICT (key) DO UPDATE "
                "SET value = excluded.value, revision = excluded.revision, crc = excluded.crc",
                rows,
            )

    def _store_records(self, connection: sqlite3.Connection, records: Iterable[tuple[bytes, bytes | None]]) -> None:
        for key, value in records:
            if value is None:
                connection.execute("DELETE FROM records WHERE k = ?", (key,))
            else:
                crc = crc32(value, crc32(key, self._place))
                connection.execute("REPLACE INTO records VALUES (?, ?, ?)", (key, value, crc))

    # --- Restoring --------------------------------------------------------------------------------------------------

    def begin_load(self, connection: sqlite3.Connection) -> None:
        """Make an empty generation beside the one that counts. Raises: StorageError."""
        self._require_alive()
        self.settle(connection)
        generation = self.position.generation + 1
        self._transaction(connection, lambda: connection.execute(_create_table(generation)), subject=_SUBJECT)
        # A load that a power loss cuts off is thrown away anyhow; the switch syncs all of it.
        connection.execute(f"PRAGMA synchronous={schema.SYNCHRONOUS['relaxed']}").fetchall()
        self._loading = generation

    def load(self, connection: sqlite3.Connection, decoder: RowDecoder, chunk: bytes, last_index: int) -> None:
        """Add the rows that ``chunk`` completes. Raises: StorageCorrupt (the stream's fault), StorageError."""
        self._require_alive()
        if self._loading is None:
            raise StorageError(f"{self._path}: another change came between the parts of a restore")
        rows = []
        for key, value, revision in decoder.feed(chunk):
            check_revision(revision, last_index)
            rows.append(_row(key, value, revision))
        insert = f"INSERT INTO {table_of(self._loading)} VALUES (?, ?, ?, ?)"
        self._transaction(connection, lambda: connection.executemany(insert, rows), subject=_SUBJECT)

    def switch(self, connection: sqlite3.Connection, meta: SnapshotMeta, records: Mapping[bytes, bytes]) -> None:
        """Let the loaded generation count, with position, membership and records: all or nothing, and durable."""
        self._require_alive()
        if self._loading is None:
            raise StorageError(f"{self._path}: another change came between the parts of a restore")
        after = Position(meta.last_log_id, meta.membership, self._loading)
        connection.execute(f"PRAGMA synchronous={schema.SYNCHRONOUS['full']}").fetchall()

        def body() -> None:
            connection.execute("DELETE FROM records")
            self._store_records(connection, records.items())
            self._save_meta(connection, _POSITION, schema.encode(after), start=self._place)

        self._transaction(connection, body, subject=_SUBJECT)
        self.position, self._loading = after, None

    def settle(self, connection: sqlite3.Connection) -> None:
        """Throw an unfinished load away and sync every transaction again. Nothing to do is the rule."""
        if self._loading is not None and self.failure is None:
            connection.execute(f"PRAGMA synchronous={schema.SYNCHRONOUS['full']}").fetchall()
            self._loading = None
            self.drop_unused(connection)

    def drop_unused(self, connection: sqlite3.Connection) -> None:
        """Remove every generation but the one that counts; whoever still reads an older one keeps its view."""
        names = [name for (name,) in connection.execute("SELECT name FROM sqlite_schema WHERE name GLOB 'data_[0-9]*'")]
        unused = [name for name in names if name != table_of(self.position.generation)]
        if unused and self.failure is None:
            drops = [f"DROP TABLE {name}" for name in unused]
            self._transaction(connection, lambda: [connection.execute(drop) for drop in drops], subject=_SUBJECT)


def check_row(path: Path, key: bytes, value: bytes, revision: int, crc: int) -> None:
    """Raises: StorageCorrupt."""
    if row_checksum(key, value, revision) != crc:
        raise corrupt(path, subject=_SUBJECT, verb="read", what=f"the row of key {key!r} has another checksum")


def _row(key: str, value: bytes, revision: int) -> tuple[bytes, bytes, int, int]:
    encoded = key.encode()
    return encoded, value, revision, row_checksum(encoded, value, revision)
