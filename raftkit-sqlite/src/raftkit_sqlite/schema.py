"""The files: what they are called inside, their settings, and how they come to be; and the tables of a log.

A store is made under another name and renamed when it is complete, so a crash at any moment leaves none or a whole one.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from raftkit_core.errors import IdentityError, StorageError
from raftkit_core.types.identity import StoreIdentity
from raftkit_core.types.ids import NodeId
from raftkit_core.types.log_id import LogId
from raftkit_core.types.vote import Vote
from raftkit_sqlite.options import SqliteOptions
from raftkit_sqlite.records import meta_checksum, place
from raftkit_sqlite.translate import corrupt

SCRATCH_SUFFIX = ".new"

_MAGIC = b"SQLite format 3\0"
SYNCHRONOUS = {"full": 2, "relaxed": 1}

META_TABLE = """CREATE TABLE meta (
        k TEXT PRIMARY KEY, v BLOB NOT NULL, crc INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID"""

_LOG_TABLES = (
    META_TABLE,
    """CREATE TABLE log (
        idx INTEGER PRIMARY KEY, term INTEGER NOT NULL, leader TEXT NOT NULL, time_ms INTEGER NOT NULL,
        kind INTEGER NOT NULL, payload BLOB NOT NULL, crc INTEGER NOT NULL
    ) STRICT""",
)


class FileForm(msgspec.Struct, frozen=True):
    """One kind of file. ``application_id`` is what other programs see, ``format`` is PRAGMA user_version."""

    application_id: int
    format: int
    tables: tuple[str, ...]
    example: str
    """A URL that gives such a file a place of its own."""


LOG = FileForm(0x72667431, 1, _LOG_TABLES, "sqlite:n1.db")
"""Application id "rft1"."""

_OURS = {0x72667431: "a raftkit log", 0x72666B31: "the state of a raftkit sqlite-kv machine"}


class StoreRecord(msgspec.Struct, frozen=True):
    """``meta`` row ``store``: whose file this is. ``identity`` is None until the node has made one."""

    node_id: NodeId
    group: str
    identity: StoreIdentity | None = None


class Bounds(msgspec.Struct, frozen=True, array_like=True):
    """``meta`` row ``bounds``. The last log id is kept so that a lost tail is found, not taken for a short log."""

    committed: LogId | None = None
    purged: LogId | None = None
    last: LogId | None = None


STORE, VOTE, BOUNDS = "store", "vote", "bounds"
store_decoder = msgspec.msgpack.Decoder(StoreRecord)
vote_decoder = msgspec.msgpack.Decoder(Vote | None)
bounds_decoder = msgspec.msgpack.Decoder(Bounds)
encode = msgspec.msgpack.Encoder().encode


def check_header(path: Path, form: FileForm = LOG) -> bool:
    """Whether a store is there, told from its first bytes alone: nothing is opened by SQLite, nothing changes.

    Raises: IdentityError (another program's or a newer raftkit's), StorageCorrupt, StorageError.
    """
    try:
        with path.open("rb") as file:
            header = file.read(100)
    except FileNotFoundError:
        header = b""
    except OSError as error:
        raise StorageError(
            f"cannot read {path}: {error.strerror or error}", verb="open", hint=f"check what {path} is and who owns it"
        ) from error
    if not header:
        wal = path.with_name(path.name + "-wal")
        if wal.exists() and wal.stat().st_size:
            raise corrupt(path, subject="store", verb="open", what=f"{wal.name} is there, the database itself is not")
        return False
    if len(header) < 100 or not header.startswith(_MAGIC):
        raise corrupt(path, subject="store", verb="open", what="it is not a SQLite database, or its header is gone")
    application_id = int.from_bytes(header[68:72], "big")
    if application_id != form.application_id:
        other = f"is a SQLite database of another program (application id {application_id:#x})"
        if application_id in _OURS:
            other = f"holds {_OURS[application_id]}"
        raise IdentityError(f"{path} {other}", hint=f"give the node a file of its own, for example {form.example}")
    check_format(path, int.from_bytes(header[60:64], "big"), form)
    return True


def check_format(path: Path, found: int, form: FileForm = LOG) -> None:
    """Raises: IdentityError for a format this version does not know."""
    if found > form.format:
        raise IdentityError(
            f"{path} has format {found}, this raftkit-sqlite knows up to {form.format}: a newer version wrote it",
            hint="pip install --upgrade raftkit-sqlite",
        )
    if found < 1:
        raise corrupt(path, subject="store", verb="open", what=f"format {found} does not exist")


def meta_rows(node_id: NodeId, group: str) -> list[tuple[str, bytes, int]]:
    """The rows of ``meta`` in an empty store. All of them exist from the start: a missing one is damage."""
    rows = {STORE: encode(StoreRecord(node_id, group)), VOTE: encode(None), BOUNDS: encode(Bounds())}
    start = place(node_id, group)
    # Whose file this is must be readable before one knows whose file it is.
    return [(key, value, meta_checksum(key, value, 0 if key == STORE else start)) for key, value in rows.items()]


def create(path: Path, form: FileForm, meta: Sequence[tuple[str, bytes, int]]) -> None:
    """Make an empty store, whole or not at all. The caller holds the claim."""
    scratch = path.with_name(path.name + SCRATCH_SUFFIX)
    for leftover in (scratch, *(scratch.with_name(scratch.name + end) for end in ("-wal", "-journal"))):
        leftover.unlink(missing_ok=True)
    os.close(os.open(scratch, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))  # SQLite gives the -wal the same mode
    connection = sqlite3.connect(scratch, isolation_level=None)
    try:
        for pragma in ("locking_mode=EXCLUSIVE", "page_size=4096", "auto_vacuum=INCREMENTAL", "synchronous=EXTRA"):
            connection.execute(f"PRAGMA {pragma}").fetchall()
        connection.execute("BEGIN IMMEDIATE")
        connection.execute(f"PRAGMA application_id={form.application_id}")
        connection.execute(f"PRAGMA user_version={form.format}")
        for statement in form.tables:
            connection.execute(statement)
        connection.executemany("INSERT INTO meta VALUES (?, ?, ?)", meta)
        connection.execute("COMMIT")
        connection.execute("PRAGMA journal_mode=WAL").fetchall()
    finally:
        connection.close()
    scratch.replace(path)
    sync_folder(path.parent)


def log_settings(options: SqliteOptions) -> dict[str, str | int]:
    return {
        "locking_mode": "exclusive",  # then WAL needs no shared memory, and another opener is refused
        "synchronous": SYNCHRONOUS[options.durability],
        "wal_autocheckpoint": options.wal_autocheckpoint,
        "busy_timeout": 0,
    }


def configure(connection: sqlite3.Connection, path: Path, settings: Mapping[str, str | int]) -> None:
    """Apply ``settings`` and those of every file, and read them back: what is not in force is refused, never assumed.

    Raises: StorageError.
    """
    wanted: dict[str, str | int] = {
        **settings,  # first: an exclusive locking_mode must be there before WAL is
        "journal_mode": "wal",
        "fullfsync": 1,  # on macOS fsync alone leaves data in the drive's cache
        "checkpoint_fullfsync": 1,
        "temp_store": 2,
        "trusted_schema": 0,
        "cell_size_check": 1,
        "journal_size_limit": 64 * 1024 * 1024,
    }
    for name, value in wanted.items():
        connection.execute(f"PRAGMA {name}={value}").fetchall()
        (found,) = connection.execute(f"PRAGMA {name}").fetchone()
        if found != value:
            raise StorageError(
                f"{path}: SQLite keeps {name}={found} instead of {value}",
                verb="open",
                hint="a file system without locks or shared memory (NFS, SMB) cannot hold a log: use a local disk",
            )


def sync_folder(folder: Path) -> None:
    """Make a rename durable. Windows has no such call, and does it by itself."""
    if os.name == "nt":
        return
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
