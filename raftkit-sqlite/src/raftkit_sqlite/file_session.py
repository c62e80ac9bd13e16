"""What every file of ours has in common, as the thread of its connection sees it: everything here blocks.

:class:`FileSession` claims, makes, opens and configures a file, keeps checksummed rows in ``meta``, and latches the
first failure of a write. What else is in the file is the subclass's.
"""

from __future__ import annotations

import os
import sqlite3
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import ClassVar, TypeVar

import msgspec

from raftkit_core.errors import StorageCorrupt, StorageError
from raftkit_core.types.adapter import AdapterContext
from raftkit_core.types.decoding import strictly
from raftkit_sqlite import schema
from raftkit_sqlite.database import JobConnection
from raftkit_sqlite.lock import FileLock
from raftkit_sqlite.records import meta_checksum, place
from raftkit_sqlite.translate import corrupt, translate

Result = TypeVar("Result")

_CHECKPOINT_BYTES = 1024 * 1024
"""When idle, checkpoint once this much was written: recovery reads the whole write-ahead log."""
_VACUUM_STEP_PAGES = 256
_FREE_PAGES_KEPT = 1024
"""Free pages (4 MiB) that stay in the file for the next entries; the rest goes back to the disk, a step at a time."""


class FileSession(ABC):
    """One opened file. ``failure`` is the first failed write: nothing is written after it."""

    form: ClassVar[schema.FileForm]

    def __init__(self, path: Path, context: AdapterContext) -> None:
        self.failure: StorageError | None = None
        self._path = path
        self.node_id = context.node_id
        self.group = context.group
        self._context = context
        self._place = place(context.node_id, context.group)
        self._written_bytes = 0
        self._keeps_what_it_confirms = True
        self.lock = FileLock(path)

    @abstractmethod
    def _first_rows(self) -> Sequence[tuple[str, bytes, int]]:
        """The rows of ``meta`` in a new file."""

    @abstractmethod
    def _settings(self) -> Mapping[str, str | int]:
        """Pragmas beside those of every file."""

    @abstractmethod
    def _load(self, connection: sqlite3.Connection) -> None:
        """Read and check what is there. Raises: IdentityError, StorageCorrupt, StorageError, sqlite3.Error."""

    def connect(self) -> JobConnection:
        """Claim, make or open, configure and read the store.

        Raises: StorageLocked, IdentityError, StorageCorrupt, StorageError.
        """
        if not (self._context.creates or self._path.exists()):
            raise StorageError(
                f"there is no store of {self.node_id} at {self._path}",
                subject="store",
                verb="open",
                hint="check --storage, --data-dir and --id: they are those of raftkit node run",
            )
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise StorageError(
                f"cannot make the folder {self._path.parent}: {error.strerror or error}",
                verb="open",
                hint="name a folder this user may write: an absolute path has three slashes, as in sqlite:///var/lib/…",
            ) from error
        # Before the claim, so that a foreign file gets no lock file beside it.
        schema.check_header(self._path, self.form)
        self.lock.acquire(self.node_id)
        try:
            return self._connect_claimed()
        except BaseException:
            self.lock.release()
            raise

    def _connect_claimed(self) -> JobConnection:
        try:
            if not schema.check_header(self._path, self.form):
                schema.create(self._path, self.form, self._first_rows())
                self.lock.expect_wal(False)
            self._check_wal()
            connection = sqlite3.connect(self._path, isolation_level=None, timeout=0, factory=JobConnection)
        except (OSError, sqlite3.Error) as error:
            raise translate(error, self._path, subject="store", verb="open") from error
        try:
            # SQLite's own close empties and removes the write-ahead log; whoever dies before it leaves both.
            connection.before_close = lambda: self.lock.expect_wal(False)
            schema.configure(connection, self._path, self._settings())
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            schema.check_format(self._path, version, self.form)
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

    def _check_wal(self) -> None:
        """What the last holder confirmed is in its write-ahead log, unless it closed: SQLite does not miss the file."""
        if self.lock.expects_wal and not self._path.with_name(self._path.name + "-wal").exists():
            name = self._path.name
            raise StorageCorrupt(
                f"{self._path}: {name}-wal is gone, and what was confirmed last with it, unless another program has"
                " opened the store since the node ended",
                subject="store",
                verb="open",
                hint=f"put {name}-wal back. If the sqlite3 shell or a backup program has opened {name} since, it has"
                f" moved the content over and nothing is missing: then delete {name}.lock. Otherwise start"
                f" {self.node_id} with an empty folder, then: raftkit member rejoin {self.node_id}",
            )

    # --- The table meta ---------------------------------------------------------------------------------------------

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
            return strictly(decoder.decode)(row[0])
        except msgspec.DecodeError as error:
            raise corrupt(self._path, subject=subject, verb="read", what=str(error)) from error

    def _save_meta(self, connection: sqlite3.Connection, key: str, value: bytes, *, start: int) -> None:
        crc = meta_checksum(key, value, start)
        cursor = connection.execute("UPDATE meta SET v = ?, crc = ? WHERE k = ?", (value, crc, key))
        if cursor.rowcount != 1:
            raise corrupt(self._path, subject=key, verb="write", what="its row is missing")

    # --- Writing ----------------------------------------------------------------------------------------------------

    def _require_alive(self) -> None:
        if self.failure is not None:
            raise StorageError(
                f"{self._path}: an earlier write failed, nothing more is written: {self.failure}",
                subject=self.failure.subject,
                hint=self.failure.hint,
            ) from self.failure

    def _transaction(self, connection: sqlite3.Connection, body: Callable[[], object], *, subject: str) -> None:
        try:
            connection.execute("BEGIN IMMEDIATE")
            body()
            connection.execute("COMMIT")
            if self._keeps_what_it_confirms:
                self.lock.expect_wal(True)
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


def size_of(path: Path) -> int:
    """Bytes of the database and its write-ahead log; 0 for what is not there."""
    total = 0
    for name in (path.name, path.name + "-wal"):
        try:
            total += os.stat(path.with_name(name)).st_size
        except FileNotFoundError:
            continue
    return total
