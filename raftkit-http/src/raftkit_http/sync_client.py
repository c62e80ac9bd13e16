"""The client library for programs without an event loop: the same calls, each waiting for its answer."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from raftkit_core.errors import ConfigError, OutcomeUnknown, RaftError
from raftkit_core.network.client import Consistency, NodeStatus
from raftkit_core.network.client_session import WRITE_TIMEOUT
from raftkit_core.types.kv import KeyValue, KvEvent, WriteResult
from raftkit_core.types.session import DEFAULT_TTL_MS
from raftkit_http.client import DEFAULT_TIMEOUT
from raftkit_http.pipelined import Client, HttpSession

T = TypeVar("T")

START_SECONDS = 10.0


class SyncClient:
    """:class:`Client` behind a thread of its own with its event loop. May be used from several threads.

    ``with SyncClient(["http://127.0.0.1:7401"]) as client: client.kv_put("k", b"v")``
    """

    def __init__(
        self,
        endpoints: Sequence[str],
        *,
        timeout: float = DEFAULT_TIMEOUT,
        token: str | None = None,
        ca: Path | str | None = None,
        discover: bool = True,
    ) -> None:
        self._client = Client(endpoints, timeout=timeout, token=token, ca=ca, discover=discover)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._lock = threading.RLock()
        """Reentrant: the garbage collector may end a watch in a thread that holds it."""

    def __enter__(self) -> SyncClient:
        with self._lock:
            if self._thread is not None:
                raise ConfigError("this client is open already")
            started = threading.Event()
            self._thread = threading.Thread(target=self._serve, args=(started,), name="raftkit-client", daemon=True)
            self._thread.start()
            started.wait(START_SECONDS)
        self._run(self._client.__aenter__())
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Close sessions and connections, and end the thread. Calls of other threads end with it: a write that was sent
        as ``OutcomeUnknown``. Idempotent."""
        with self._lock:
            thread, loop = self._thread, self._loop
            self._thread = self._loop = None
        if thread is None or loop is None:
            return
        try:
            asyncio.run_coroutine_threadsafe(self._client.__aexit__(), loop).result()
        finally:
            loop.call_soon_threadsafe(loop.stop)
            thread.join()

    def _serve(self, started: threading.Event) -> None:
        with asyncio.Runner() as runner:
            self._loop = runner.get_loop()
            self._loop.call_soon(started.set)
            self._loop.run_forever()

    def _run(self, call: Coroutine[Any, Any, T]) -> T:
        """Raises: what ``call`` raises; ConfigError if the client is not open, OutcomeUnknown if it was closed before
        there was an answer."""
        with self._lock:  # what was handed over is begun before the loop ends
            loop = self._loop
            if loop is not None:
                future = asyncio.run_coroutine_threadsafe(call, loop)
        if loop is None:
            call.close()
            raise ConfigError("the client is not open", hint="with SyncClient([...]) as client: …")
        try:
            return future.result()
        except CancelledError:
            raise OutcomeUnknown("the client was closed before there was an answer") from None
        except BaseException:
            future.cancel()  # an interrupted caller waits for nothing
            raise

    # --- the calls --------------------------------------------------------------------------------------------------

    def status(self, *, digest: bool = False) -> NodeStatus:
        return self._run(self._client.status(digest=digest))

    def write(self, command: Any) -> Any:
        """See :meth:`Client.write`."""
        return self._run(self._client.write(command))

    def write_many(self, commands: Sequence[Any]) -> list[Any | RaftError]:
        """All at once; gives each one's result or error, in order."""
        return self._run(self._client.write_many(commands))

    def kv_get(self, key: str, *, consistency: Consistency = "linearizable") -> KeyValue | None:
        return self._run(self._client.kv_get(key, consistency=consistency))

    def kv_list(
        self,
        prefix: str = "",
        *,
        limit: int = 1000,
        after: str | None = None,
        consistency: Consistency = "linearizable",
    ) -> list[KeyValue]:
        return self._run(self._client.kv_list(prefix, limit=limit, after=after, consistency=consistency))

    def kv_put(self, key: str, value: bytes, *, if_revision: int | None = None) -> WriteResult:
        return self._run(self._client.kv_put(key, value, if_revision=if_revision))

    def kv_delete(self, key: str, *, if_revision: int | None = None) -> WriteResult:
        return self._run(self._client.kv_delete(key, if_revision=if_revision))

    def kv_cas(self, key: str, expected: bytes | None, value: bytes) -> WriteResult:
        return self._run(self._client.kv_cas(key, expected, value))

    def watch(self, prefix: str = "", *, from_revision: int | None = None) -> Iterator[KvEvent]:
        """See :meth:`Client.watch`. Ends with the loop that takes its changes, or with the client."""

        async def begin() -> AsyncGenerator[KvEvent, None]:
            return self._client.watch(prefix, from_revision=from_revision)

        changes = self._run(begin())

        async def following() -> KvEvent:
            return await anext(changes)

        try:
            while True:
                yield self._run(following())
        finally:
            # Ended by the garbage collector in the client's own thread, which must not wait for itself, the stream is
            # left to its loop.
            if threading.current_thread() is not self._thread:
                with suppress(ConfigError, OutcomeUnknown):  # the client is closed, and the stream with it
                    self._run(changes.aclose())

    def open_session(self, ttl: float = DEFAULT_TTL_MS / 1000) -> SyncSession:
        """See :meth:`Client.open_session`; ``with`` closes it."""

        async def opened() -> HttpSession:
            return await self._client.open_session(ttl)

        return SyncSession(self._run(opened()), self._run)


class SyncSession:
    """An :class:`HttpSession` for programs without an event loop; it is kept alive by the client's thread."""

    def __init__(self, session: HttpSession, run: Callable[[Coroutine[Any, Any, Any]], Any]) -> None:
        self._session = session
        self._run = run

    def __enter__(self) -> SyncSession:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    @property
    def token(self) -> str:
        return self._session.ref.token

    @property
    def seconds_left(self) -> float:
        """See :attr:`ClientSession.seconds_left`."""
        return self._session.seconds_left

    @property
    def is_valid(self) -> bool:
        return self._session.is_valid

    @property
    def is_expired(self) -> bool:
        return self._session.is_expired

    def write(self, command: Any, *, timeout: float = WRITE_TIMEOUT) -> Any:
        """See :meth:`ClientSession.write`."""
        return self._run(self._session.write(command, timeout=timeout))

    def kv_put(self, key: str, value: bytes, *, if_revision: int | None = None) -> WriteResult:
        result: WriteResult = self._run(self._session.kv_put(key, value, if_revision=if_revision))
        return result

    def kv_delete(self, key: str, *, if_revision: int | None = None) -> WriteResult:
        result: WriteResult = self._run(self._session.kv_delete(key, if_revision=if_revision))
        return result

    def kv_cas(self, key: str, expected: bytes | None, value: bytes) -> WriteResult:
        result: WriteResult = self._run(self._session.kv_cas(key, expected, value))
        return result

    def close(self) -> None:
        if not self._session.is_closed:
            self._run(self._session.close())
