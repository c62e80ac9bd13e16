"""Reading connections to the state of ``sqlite-kv``: what is committed, without ever waiting for a write.

A view is a connection with an open transaction: SQLite shows it the moment it began, whatever is written meanwhile.
Getting one takes a fraction of a millisecond and is done by the caller, so that the moment is the call's; reading over
it is done on one thread of its own.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

from raftkit_core.errors import StorageError
from raftkit_core.state_machine.kv_rules import cut, key_range
from raftkit_core.state_machine.kv_stream import Row, encode_rows
from raftkit_core.types.kv import KeyValue, ListKeys
from raftkit_sqlite.kv_session import check_row, table_of
from raftkit_sqlite.translate import translate

_BUSY_S = 0.1
_IDLE_CONNECTIONS = 2

Result = TypeVar("Result")


class Readers:
    """The reading connections of one open state, and the thread that works on them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._idle: list[sqlite3.Connection] = []
        self._all: set[sqlite3.Connection] = set()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="raftkit-sqlite-view")
        self.is_closed = False

    def take(self) -> sqlite3.Connection:
        """A connection outside of any transaction. Raises: sqlite3.Error, StorageError once closed."""
        self.require_open()
        if self._idle:
            return self._idle.pop()
        uri = f"file:{quote(str(self.path.resolve()))}?mode=ro"
        connection = sqlite3.connect(uri, uri=True, isolation_level=None, timeout=_BUSY_S, check_same_thread=False)
        self._all.add(connection)
        connection.execute("PRAGMA trusted_schema=0").fetchall()
        connection.execute("PRAGMA cell_size_check=1").fetchall()
        return connection

    def give_back(self, connection: sqlite3.Connection) -> None:
        """End its transaction. On any thread, while nobody works on it."""
        if self.is_closed:
            return
        try:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
        except sqlite3.Error:
            self._discard(connection)
            return
        if len(self._idle) < _IDLE_CONNECTIONS:
            self._idle.append(connection)
        else:
            self._discard(connection)

    def _discard(self, connection: sqlite3.Connection) -> None:
        self._all.discard(connection)
        connection.close()

    async def run(self, work: Callable[[], Result]) -> Result:
        """``work`` on the thread, after what is there already. A cancelled caller leaves; the work is done."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def require_open(self) -> None:
        """Raises: StorageError."""
        if self.is_closed:
            raise StorageError(f"{self.path} is closed", subject="state machine", verb="read")

    async def close(self) -> None:
        """Close every connection, those of open views too, when the thread is done with its current piece."""
        if self.is_closed:
            return
        try:
            await self.run(self._close_all)
        finally:
            self._thread.shutdown(wait=False)

    def _close_all(self) -> None:
        self.is_closed = True
        for connection in self._all:
            connection.close()
        self._all.clear()
        self._idle.clear()


class View(AsyncIterator[bytes]):
    """The state at the moment this is made, as chunks of the ``kv/1`` stream.

    It is given back at its end, by ``aclose``, or when nobody refers to it any more.
    """

    def __init__(self, readers: Readers, generation: int) -> None:
        self._readers = readers
        self._table = table_of(generation)
        self._chunks: Generator[bytes, None, None] = _nothing()
        self._connection: sqlite3.Connection | None = None
        try:
            self._connection = readers.take()
            self._connection.execute("BEGIN")
            # A transaction begins at its first read, not at BEGIN.
            self._connection.execute("SELECT 1 FROM meta LIMIT 1").fetchall()
        except sqlite3.Error as error:
            self._release()
            raise translate(error, readers.path, subject="state machine", verb="read") from error
        self._chunks = _chunks_of(_state(self._connection, readers.path, self._table))

    async def __anext__(self) -> bytes:
        chunk = await self._readers.run(self._next)
        if chunk is None:
            raise StopAsyncIteration
        return chunk

    async def list_keys(self, query: ListKeys) -> list[KeyValue]:
        """Instead of the chunks."""
        return await self._readers.run(lambda: self._guarded(lambda: self._listed(query)))

    async def aclose(self) -> None:
        if self._connection is not None and not self._readers.is_closed:
            await self._readers.run(self._release)

    def __del__(self) -> None:
        self._release()  # work on the thread holds a reference, so nothing is under way

    def _release(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            self._chunks.close()  # a cursor that is not done would hold the transaction open
            self._readers.give_back(connection)

    # --- On the thread ----------------------------------------------------------------------------------------------

    def _next(self) -> bytes | None:
        chunk = self._guarded(lambda: next(self._chunks, None))
        if chunk is None:
            self._release()
        return chunk

    def _guarded(self, work: Callable[[], Result]) -> Result:
        self._readers.require_open()
        try:
            return work()
        except sqlite3.Error as error:
            raise translate(error, self._readers.path, subject="state machine", verb="read") from error

    def _listed(self, query: ListKeys) -> list[KeyValue]:
        if self._connection is None:
            return []
        start, is_inclusive, end = key_range(query)
        where = f"WHERE key {'>=' if is_inclusive else '>'} ?"
        parameters: tuple[bytes | int, ...] = (start,)
        if end is not None:
            where, parameters = f"{where} AND key < ?", (*parameters, end)
        where, parameters = f"{where} ORDER BY key LIMIT ?", (*parameters, min(query.limit, (1 << 63) - 1))
        rows = _select(self._connection, self._readers.path, self._table, where, parameters)
        with closing(rows):  # a cursor that is not done would hold the transaction open
            items = (KeyValue(key=key.decode(), value=value, revision=revision) for key, value, revision in rows)
            return cut(items, query)


# These know no view: a generator that referred to its view would keep an abandoned one open.


def _nothing() -> Generator[bytes, None, None]:
    yield from ()


def _chunks_of(rows: Iterator[Row]) -> Generator[bytes, None, None]:
    yield from encode_rows(rows)


def _state(connection: sqlite3.Connection, path: Path, table: str) -> Iterator[Row]:
    for key, value, revision in _select(connection, path, table, "ORDER BY key"):
        yield key.decode(), value, revision


def _select(
    connection: sqlite3.Connection, path: Path, table: str, rest: str, parameters: tuple[bytes | int, ...] = ()
) -> Generator[tuple[bytes, bytes, int], None, None]:
    for key, value, revision, crc in connection.execute(
        f"SELECT key, value, revision, crc FROM {table} {rest}", parameters
    ):
        check_row(path, key, value, revision, crc)
        yield key, value, revision
