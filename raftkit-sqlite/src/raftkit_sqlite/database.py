"""One SQLite connection on aiosqlite's thread. A job, however many statements it has, costs one hop.

aiosqlite runs a driver call per hop, and a transaction in three hops costs up to 0.2 ms more than in one. So a job is
staged first, and ``commit`` of our own connection class, which aiosqlite calls on its thread, runs what is staged. That
uses public calls only. Both queues are first in, first out, and nothing is awaited between staging and ``commit``, so
jobs run in the order of their calls. A cancelled caller stops waiting; its job still runs, whole.
"""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar

import aiosqlite

Result = TypeVar("Result")
JOIN_S = 1.0
"""The thread has answered its last call when it is joined: this is how long its return may take."""

Job = Callable[["JobConnection"], None]


class JobConnection(sqlite3.Connection):
    """A connection whose ``commit`` runs the next staged job. Transactions are opened and closed by statements."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.jobs: deque[Job] = deque()
        self.before_close: Callable[[], None] = _nothing
        self.on_close: Callable[[], None] = _nothing

    def commit(self) -> None:
        self.jobs.popleft()(self)

    def close(self) -> None:
        # Here and not after it: whoever ends the thread, the claim outlives the connection and never the handle.
        try:
            self.before_close()
            super().close()
        finally:
            self.on_close()


class Database:
    """The handle of the event loop's side."""

    def __init__(self, connection: aiosqlite.Connection, jobs: deque[Job], thread: threading.Thread) -> None:
        self._connection = connection
        self._jobs = jobs
        self._thread = thread

    @classmethod
    async def open(cls, connect: Callable[[], JobConnection], on_close: Callable[[], None]) -> Database:
        """Start the thread and call ``connect`` on it. The caller shields this from cancellation.

        ``on_close`` is called on the thread when the connection is closed. Raises what ``connect`` raises.
        """
        jobs: deque[Job] = deque()
        failures: list[BaseException] = []
        threads: list[threading.Thread] = []

        def connector() -> sqlite3.Connection:
            threads.append(threading.current_thread())
            try:
                connection = connect()
            except BaseException as error:
                # aiosqlite does not wait for its thread after a failed start, and a loop that is closed before the
                # thread has answered makes that fail too. So it starts with a stand-in, which is closed in good order.
                failures.append(error)
                connection = sqlite3.connect(":memory:", factory=JobConnection)
            else:
                connection.on_close = on_close
            connection.jobs = jobs
            return connection

        connection = _on_daemon_thread(lambda: aiosqlite.Connection(connector, 64))
        await connection
        database = cls(connection, jobs, threads[0])
        if failures:
            await database.close()
            raise failures[0]
        return database

    async def run(self, job: Callable[[sqlite3.Connection], Result]) -> Result:
        """Run ``job`` on the thread, after every earlier one."""
        results: list[Result] = []
        self._jobs.append(lambda connection: results.append(job(connection)))
        await self._connection.commit()
        return results[0]

    def begin(self, job: Callable[[sqlite3.Connection], None]) -> asyncio.Future[None]:
        """As :meth:`run`, for who waits by a callback: the job is on its way when this returns, a turn of the loop and
        a task earlier."""
        self._jobs.append(job)
        commit = self._connection.commit()
        # aiosqlite queues the job and then waits for this future, which its thread ends. Nobody else has to wait.
        done: asyncio.Future[None] = commit.send(None)
        done._asyncio_future_blocking = False
        commit.close()
        return done

    async def close(self) -> None:
        """Run what is queued, close the connection and end the thread, whatever fails on the way."""
        try:
            await self._connection.close()
        finally:
            self._thread.join(JOIN_S)


def _nothing() -> None:
    return


def _on_daemon_thread(make: Callable[[], aiosqlite.Connection]) -> aiosqlite.Connection:
    """Make a connection whose thread does not keep a failed program alive.

    aiosqlite's thread is not a daemon, so a process that ends by an exception would wait for it for ever
    (aiosqlite #290, #299, #369). A thread inherits the daemon flag of the one that makes it. Ending it in the middle of
    a transaction is what SQLite's log is made for: nobody was told that it is durable.
    """
    made: list[Any] = []
    maker = threading.Thread(target=lambda: made.append(make()), daemon=True, name="raftkit-sqlite-start")
    maker.start()
    maker.join()
    connection: aiosqlite.Connection = made[0]
    return connection
