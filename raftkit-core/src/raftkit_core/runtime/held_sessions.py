"""Sessions an application holds through its node. ``session_service`` is what the leader does for them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Generator
from typing import Any

from raftkit_core.clock import Clock
from raftkit_core.config import Config
from raftkit_core.network.client_session import ClientSession
from raftkit_core.runtime.messages import ClientWriteResponse
from raftkit_core.runtime.operations import Forwarder
from raftkit_core.runtime.raft_core import RaftCore
from raftkit_core.runtime.writes import Writes
from raftkit_core.types.operations import CloseSession, KeepSession, OpenSession, Operation, SessionOpened
from raftkit_core.types.session import SessionSerial

CLOSE_TIMEOUT = 2.0


class HeldSessions:
    """Opens them, and gives them up with the node."""

    def __init__(self, core: RaftCore, forwarder: Forwarder, writes: Writes) -> None:
        self._core = core
        self._forwarder = forwarder
        self._writes = writes
        self._held: list[Session] = []

    def open(self, ttl: float, timeout: float) -> OpeningSession:
        return OpeningSession(lambda: self._open(ttl, timeout))

    async def _open(self, ttl: float, timeout: float) -> Session:
        core = self._core
        sent_at = core.clock.monotonic()
        opened: SessionOpened = await self._forwarder.call(OpenSession(round(ttl * 1000)), timeout)
        session = Session(
            self._forwarder.call, self._writes.write_once, opened, core.config, core.clock, sent_at=sent_at
        )
        self._held = [held for held in self._held if not held.is_closed] + [session]
        return session

    async def abandon(self) -> None:
        """The node ends: they are not closed, other nodes may carry them on, but nothing of them runs here."""
        for session in self._held:
            await session.abandon()


class Session(ClientSession):
    """A session of an application that holds a node. Made by ``Raft.open_session``."""

    def __init__(
        self,
        call: Callable[[Operation, float], Awaitable[Any]],
        write_once: Callable[[Any, Callable[[], SessionSerial], float], Awaitable[ClientWriteResponse]],
        opened: SessionOpened,
        config: Config,
        clock: Clock,
        *,
        sent_at: float,
    ) -> None:
        self._call = call
        self._write_once = write_once
        super().__init__(
            opened.session, opened.ttl_ms, sent_at=sent_at, max_clock_drift=config.max_clock_drift, clock=clock
        )

    async def _send_keep_alive(self, timeout: float) -> None:
        await self._call(KeepSession(self.ref), timeout)

    async def _send_write(self, command: Any, once: Callable[[], SessionSerial], timeout: float) -> ClientWriteResponse:
        return await self._write_once(command, once, timeout)

    async def _send_close(self, timeout: float) -> None:
        await self._call(CloseSession(self.ref), min(timeout, CLOSE_TIMEOUT))


class OpeningSession:
    """What ``open_session`` gives: await it, or enter it with ``async with``."""

    def __init__(self, opening: Callable[[], Coroutine[Any, Any, Session]]) -> None:
        self._opening = opening
        self._session: Session | None = None

    def __await__(self) -> Generator[Any, None, Session]:
        return self._opening().__await__()

    async def __aenter__(self) -> Session:
        self._session = await self._opening()
        return self._session

    async def __aexit__(self, *exc_info: object) -> None:
        if self._session is not None:
            await self._session.close()
