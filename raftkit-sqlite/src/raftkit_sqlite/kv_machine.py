"""``sqlite-kv:``: the logical machine ``kv/1``, durable in a SQLite file of its own.

The contract is ``raftkit_core.state_machine.interface``. This side lives in the event loop and holds no data. A batch
is one transaction and one hop to the thread of the writing connection; queries and snapshots read over others.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from raftkit_core.errors import StorageError
from raftkit_core.state_machine.interface import AppliedState, ApplyBatch, RaftStateMachine
from raftkit_core.state_machine.kv_codec import KvCodec
from raftkit_core.state_machine.kv_rules import check_query, digest_of
from raftkit_core.state_machine.kv_stream import RowDecoder
from raftkit_core.types.adapter import AdapterContext
from raftkit_core.types.kv import KV_MACHINE, Get, KeyValue, ListKeys
from raftkit_core.types.log_id import index_of
from raftkit_core.types.snapshot import SnapshotMeta
from raftkit_sqlite.database import Database
from raftkit_sqlite.kv_session import KvSession, SqliteKvOptions, check_row, table_of
from raftkit_sqlite.kv_views import Readers, View
from raftkit_sqlite.translate import translate

_SUBJECT = "state machine"


class SqliteKvStateMachine(RaftStateMachine):
    """Keys and values in the file ``path``; a relative one is looked for in the node's ``data_dir``, if it has one."""

    name = KV_MACHINE
    durable = True

    def __init__(self, path: str | Path, options: SqliteKvOptions | None = None) -> None:
        self.codec = KvCodec()
        self.options = SqliteKvOptions() if options is None else options
        self._path = Path(path)
        self._session: KvSession | None = None
        self._database: Database | None = None
        self._readers: Readers | None = None
        self._asked: sqlite3.Connection | None = None
        """The connection for single keys, used in the event loop: a get takes some 10 µs, a hop 100."""
        self._opening: asyncio.Task[None] | None = None
        self._closing: asyncio.Task[None] | None = None

    @property
    def path(self) -> Path:
        """Where the file is; absolute once opened in a ``data_dir``."""
        return self._path

    # --- Opening and closing ----------------------------------------------------------------------------------------

    async def open(self, context: AdapterContext) -> None:
        """Raises: StorageLocked, IdentityError, StorageCorrupt, StorageError."""
        if self._opening is not None:
            raise StorageError(f"{self._path} is already open through this handle", subject=_SUBJECT, verb="open")
        if context.data_dir is not None:
            self._path = context.data_dir / self._path
        self._opening = asyncio.create_task(self._open(context), name=f"open {self._path}")
        self._closing = None
        try:
            await asyncio.shield(self._opening)
        except BaseException:
            # A cancelled caller must not leave a claim and a thread behind: let it open, then close it.
            await asyncio.wait([self._opening])
            await self.close()
            raise

    async def _open(self, context: AdapterContext) -> None:
        session = KvSession(self._path, self.options, context)
        self._database = await Database.open(session.connect, session.lock.release)
        self._session = session
        self._readers = Readers(self._path)
        try:
            self._asked = self._readers.take()
        except sqlite3.Error as error:
            raise translate(error, self._path, subject=_SUBJECT, verb="open") from error

    async def close(self) -> None:
        if self._opening is None:
            return
        if self._closing is None:
            self._closing = asyncio.create_task(self._close(), name=f"close {self._path}")
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        readers, session, database = self._readers, self._session, self._database
        self._readers = self._session = self._database = self._asked = None
        try:
            if readers is not None:
                await readers.close()  # first: the last connection to close tidies the file up
            if database is not None:
                try:
                    if session is not None:
                        await database.run(session.finish)
                except sqlite3.Error:
                    pass  # the next open reads the write-ahead log
                finally:
                    await database.close()
        finally:
            self._opening = None

    async def applied_state(self) -> AppliedState:
        """Raises: StorageError."""
        session, database = self._opened()
        try:
            return await database.run(session.applied_state)
        except sqlite3.Error as error:
            raise translate(error, self._path, subject=_SUBJECT, verb="read") from error

    # --- Applying ---------------------------------------------------------------------------------------------------

    def apply(self, batch: ApplyBatch) -> Awaitable[Sequence[Any]]:
        """Raises: StorageError, and from then on for every batch."""
        session, database = self._opened()
        return database.run(lambda connection: session.apply(connection, batch))

    # --- Reading ----------------------------------------------------------------------------------------------------

    def query(self, query: Any) -> KeyValue | Awaitable[list[KeyValue]] | None:
        """A :class:`Get` is answered at once, a :class:`ListKeys` as an awaitable.

        Raises: CommandRejected, StorageError.
        """
        question = check_query(query)
        return self._get(question.key) if isinstance(question, Get) else self._list(question)

    def _get(self, key: str) -> KeyValue | None:
        session, _ = self._opened()
        assert self._asked is not None, "opened with the session"
        encoded = key.encode("utf-8", "surrogatepass")
        select = f"SELECT value, revision, crc FROM {table_of(session.position.generation)} WHERE key = ?"
        try:
            rows = self._asked.execute(select, (encoded,)).fetchall()  # all: the transaction ends with the last row
        except sqlite3.Error as error:
            raise translate(error, self._path, subject=_SUBJECT, verb="read") from error
        if not rows:
            return None
        value, revision, crc = rows[0]
        check_row(self._path, encoded, value, revision, crc)
        return KeyValue(key=key, value=value, revision=revision)

    async def _list(self, query: ListKeys) -> list[KeyValue]:
        view = self.snapshot()
        try:
            return await view.list_keys(query)
        finally:
            await view.aclose()

    def snapshot(self) -> View:
        """Chunks of at most 256 KiB. Until the view is given back, the write-ahead log cannot be cut."""
        session, _ = self._opened()
        assert self._readers is not None, "opened with the session"
        # A restore drops an old table in a hop that begins when this loop knows of the new one: both are there now.
        return View(self._readers, session.position.generation)

    def digest(self) -> Awaitable[str]:
        return digest_of(self.snapshot())

    # --- Restoring --------------------------------------------------------------------------------------------------

    async def restore(self, meta: SnapshotMeta, chunks: AsyncIterator[bytes]) -> None:
        await self.restore_all(meta, chunks, {})

    async def restore_all(
        self, meta: SnapshotMeta, chunks: AsyncIterator[bytes], records: Mapping[bytes, bytes]
    ) -> None:
        """Into a table beside the one that counts; then one transaction switches over.

        Raises: StorageCorrupt for a bad stream, and the state is as before; StorageError.
        """
        session, database = self._opened()
        decoder = RowDecoder()
        last_index = index_of(meta.last_log_id)
        try:
            await database.run(session.begin_load)
            async for chunk in chunks:
                await database.run(partial(session.load, decoder=decoder, chunk=chunk, last_index=last_index))
            decoder.finish()
            await database.run(lambda connection: session.switch(connection, meta, records))
        except BaseException:
            await database.run(session.settle)
            raise
        await database.run(session.drop_unused)

    def _opened(self) -> tuple[KvSession, Database]:
        if self._session is None or self._database is None:
            raise StorageError(f"{self._path} is not open", subject=_SUBJECT, verb="open")
        return self._session, self._database
