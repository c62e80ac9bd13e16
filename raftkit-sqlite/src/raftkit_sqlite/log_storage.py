"""``sqlite:``: the log, vote and identity of one node in one SQLite file.

The contract is ``raftkit_core.storage.interface``. This side lives in the event loop and holds no data: ``Session``
does, on aiosqlite's thread. A batch is one transaction and one hop.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from pathlib import Path

from raftkit_core.errors import IdentityError, StorageError
from raftkit_core.storage.interface import LogBatch, LogState, RaftLogStorage, StorageInfo
from raftkit_core.types.adapter import AdapterContext
from raftkit_core.types.entry import Entry
from raftkit_core.types.identity import StoreIdentity
from raftkit_sqlite.database import Database
from raftkit_sqlite.file_session import size_of
from raftkit_sqlite.options import SqliteOptions
from raftkit_sqlite.session import Session

IDLE_S = 0.25
"""Without a write for so long, the log counts as idle and is tidied."""

_logger = logging.getLogger(__name__)

_DURABILITY_TEXT = {
    "full": "every write is synced to the disk before it returns (WAL, synchronous=FULL)",
    "relaxed": "RELAXED: survives a killed process; a power loss may take the last writes and votes "
    "(WAL, synchronous=NORMAL)",
}


class SqliteLogStorage(RaftLogStorage):
    """A log in the file ``path``; a relative one is looked for in the node's ``data_dir``, if it has one."""

    takes_columns = True

    def __init__(self, path: str | Path, options: SqliteOptions | None = None) -> None:
        self.options = SqliteOptions() if options is None else options
        self._path = Path(path)
        self._session: Session | None = None
        self._database: Database | None = None
        self._opening: asyncio.Task[StoreIdentity | None] | None = None
        self._closing: asyncio.Task[None] | None = None
        self._idle_timer: asyncio.TimerHandle | None = None
        self._tidying: asyncio.Task[None] | None = None
        self._last_write_s = 0.0

    @property
    def path(self) -> Path:
        """Where the file is; absolute once opened in a ``data_dir``."""
        return self._path

    async def open(self, context: AdapterContext) -> StoreIdentity | None:
        if self._opening is not None:
            raise StorageError(f"{self._path} is already open through this handle", verb="open")
        if context.data_dir is not None:
            self._path = context.data_dir / self._path
        self._opening = asyncio.create_task(self._open(context), name=f"open {self._path}")
        self._closing = None
        try:
            return await asyncio.shield(self._opening)
        except BaseException:
            # A cancelled caller must not leave a claim and a thread behind: let it open, then close it.
            await asyncio.wait([self._opening])
            await self.close()
            raise

    async def _open(self, context: AdapterContext) -> StoreIdentity | None:
        session = Session(self._path, self.options, context)
        self._database = await Database.open(session.connect, session.lock.release)
        self._session = session
        return session.identity

    async def save_identity(self, identity: StoreIdentity) -> None:
        session, database = self._opened()
        if identity.node_id != session.node_id or identity.group != session.group:
            raise IdentityError(
                f"{self._path} was opened for node {session.node_id}, group {session.group}; the identity to save is "
                f"of node {identity.node_id}, group {identity.group}"
            )
        await database.run(lambda connection: session.save_identity(connection, identity))

    async def close(self) -> None:
        if self._opening is None:
            return
        if self._closing is None:
            self._closing = asyncio.create_task(self._close(), name=f"close {self._path}")
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        session, database = self._session, self._database
        self._session = self._database = None
        if self._idle_timer is not None:
            self._idle_timer.cancel()
            self._idle_timer = None
        if self._tidying is not None:
            await asyncio.wait([self._tidying])  # at most one small step: it stops when the handle is gone
        try:
            if session is not None and database is not None:
                try:
                    await database.run(session.finish)
                except sqlite3.Error as error:
                    _logger.warning("%s: the last checkpoint failed, the next open repeats it: %s", self._path, error)
                finally:
                    await database.close()
        finally:
            self._opening = None

    async def info(self) -> StorageInfo:
        state = LogState() if self._session is None else self._session.state
        return StorageInfo(
            adapter="sqlite",
            location=str(self._path),
            size_bytes=size_of(self._path),
            durability=_DURABILITY_TEXT[self.options.durability],
            details={
                "sqlite": sqlite3.sqlite_version,
                "wal_autocheckpoint_pages": str(self.options.wal_autocheckpoint),
                "purged": str(state.last_purged or "-"),
                "last": str(state.last_log_id or "-"),
            },
        )

    async def read_state(self) -> LogState:
        session, database = self._opened()
        return await database.run(lambda connection: session.state)  # after every write that was begun

    async def read(self, start: int, stop: int, max_bytes: int) -> list[Entry]:
        session, database = self._opened()
        return await database.run(lambda connection: session.read(connection, start, stop, max_bytes))

    def write(self, batch: LogBatch) -> asyncio.Future[None]:
        session, database = self._opened()
        if batch.is_empty:
            nothing: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            nothing.set_result(None)
            return nothing
        written: asyncio.Future[None] = database.begin(lambda connection: session.write(connection, batch))
        written.add_done_callback(self._written)
        return written

    def _written(self, written: asyncio.Future[None]) -> None:
        self._note_write()

    def _opened(self) -> tuple[Session, Database]:
        if self._session is None or self._database is None:
            raise StorageError(f"{self._path} is not open", verb="open")
        return self._session, self._database

    # --- Idle moments -----------------------------------------------------------------------------------------------

    def _note_write(self) -> None:
        self._last_write_s = asyncio.get_running_loop().time()
        self._start_idle_timer()

    def _start_idle_timer(self) -> None:
        if self._idle_timer is None and self._tidying is None and self._session is not None:
            loop = asyncio.get_running_loop()
            self._idle_timer = loop.call_at(self._last_write_s + IDLE_S, self._when_idle)

    def _when_idle(self) -> None:
        self._idle_timer = None
        if self._is_busy():
            self._start_idle_timer()
        elif self._session is not None:
            self._tidying = asyncio.get_running_loop().create_task(self._tidy(), name=f"tidy {self._path}")

    def _is_busy(self) -> bool:
        return asyncio.get_running_loop().time() < self._last_write_s + IDLE_S

    async def _tidy(self) -> None:
        try:
            while not self._is_busy() and self._session is not None and self._database is not None:
                if not await self._database.run(self._session.tidy):
                    return
        except StorageError as error:
            _logger.error("%s: %s; every later write is refused", self._path, error)
        finally:
            self._tidying = None
            if self._is_busy():
                self._start_idle_timer()
