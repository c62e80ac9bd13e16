"""A client's side of its session: serials, what is acknowledged, and how long the session surely lasts.

Whoever talks to a cluster derives :class:`ClientSession` and says how a keep-alive, a write and a close are sent. The
time to live is counted from the *send* of the last answered keep-alive and shortened by ``max_clock_drift``: the leader
counts from when it arrived, by a clock of its own.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

from raftkit_core.clock import Clock
from raftkit_core.errors import OutcomeUnknown, Overloaded, RaftError, SessionExpired
from raftkit_core.types.session import SessionRef, SessionSerial

WINDOW = 512
"""How far serials may run ahead of the oldest that waits; the cluster remembers twice as many results."""
WRITE_TIMEOUT = 5.0
RETRY_SECONDS = 0.1


class Serials:
    """Numbers writes and knows up to where all of them are settled."""

    def __init__(self) -> None:
        self._last = 0
        self._settled: set[int] = set()
        self.floor = 0
        """Every write up to this one is settled: its result is no longer needed."""

    @property
    def ahead(self) -> int:
        """How many serials are given out above the floor."""
        return self._last - self.floor

    def take(self) -> int:
        self._last += 1
        return self._last

    def settle(self, serial: int) -> None:
        """Nobody will ask for its result any more."""
        self._settled.add(serial)
        while self.floor + 1 in self._settled:
            self.floor += 1
            self._settled.discard(self.floor)


class ClientSession(ABC):
    """An open session. ``async with`` closes it; until then a task of its own keeps it alive."""

    def __init__(self, ref: SessionRef, ttl_ms: int, *, sent_at: float, max_clock_drift: float, clock: Clock) -> None:
        self.ref = ref
        self.ttl = ttl_ms / 1000
        """Time to live, in seconds."""
        self._clock = clock
        self._valid_seconds = self.ttl * (1 - max_clock_drift)
        self._valid_until = sent_at + self._valid_seconds
        self._serials = Serials()
        self._room: deque[asyncio.Future[None]] = deque()
        self._woken = 0
        """Writes that were told of room and did not go on yet."""
        self._ended: RaftError | None = None
        self._is_closed = False
        self._keeping = asyncio.get_running_loop().create_task(self._keep_alive(), name=f"session {ref.id}")

    # --- how it is sent ---------------------------------------------------------------------------------------------

    @abstractmethod
    async def _send_keep_alive(self, timeout: float) -> None:
        """Raises: SessionExpired if the session is no more; any other RaftError: no answer this time."""

    @abstractmethod
    async def _send_write(self, command: Any, once: Callable[[], SessionSerial], timeout: float) -> Any:
        """Send until it is settled or the time is up. ``once`` gives what each attempt carries."""

    @abstractmethod
    async def _send_close(self, timeout: float) -> None: ...

    # --- what an application sees -----------------------------------------------------------------------------------

    @property
    def id(self) -> int:
        return self.ref.id

    @property
    def seconds_left(self) -> float:
        """How long the session lasts for certain if no keep-alive is answered any more; 0 when it is over."""
        if self._is_closed or self._ended is not None:
            return 0.0
        return max(0.0, self._valid_until - self._clock.monotonic())

    @property
    def is_valid(self) -> bool:
        """Whether the cluster surely still has the session. A write may succeed also when this is False."""
        return self.seconds_left > 0

    @property
    def is_expired(self) -> bool:
        """Whether the cluster said that the session is no more."""
        return self._ended is not None

    @property
    def is_closed(self) -> bool:
        return self._is_closed

    async def write(self, command: Any, *, timeout: float = WRITE_TIMEOUT) -> Any:
        """Write ``command`` with one effect, however often it must be sent until an answer comes.

        Raises: SessionExpired (nothing was written; open another session); OutcomeUnknown if no answer settled it
        within ``timeout``, or the session expired after an attempt without an answer; the machine's refusal.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        await self._wait_for_room(timeout)
        if self._is_closed:
            raise SessionExpired(f"the session {self.id} is closed")
        if self._ended is not None:
            raise SessionExpired(self._ended.message, hint=self._ended.hint)
        serial = self._serials.take()
        try:
            return await self._send_write(
                command,
                lambda: SessionSerial(self.ref, serial, self._serials.floor),
                max(deadline - loop.time(), 0.001),
            )
        except SessionExpired as error:
            self._ended = error
            raise
        except OutcomeUnknown as error:
            if isinstance(error.__cause__, SessionExpired):
                self._ended = error.__cause__
            raise
        finally:
            # Also when nobody knows what became of it: a copy that is still under way is refused from now on.
            self._serials.settle(serial)
            self._wake()

    async def close(self, *, timeout: float = WRITE_TIMEOUT) -> None:
        """End the session. Idempotent; never raises for a cluster that cannot be reached: it expires then."""
        if self._is_closed:
            return
        self._is_closed = True
        self._wake()
        self._keeping.cancel()
        await asyncio.wait([self._keeping])
        if self._ended is None:
            with suppress(RaftError):
                await self._send_close(timeout)

    async def abandon(self) -> None:
        """Stop keeping it alive, without a word to the cluster: it expires."""
        self._is_closed = True
        self._wake()
        self._keeping.cancel()
        await asyncio.wait([self._keeping])

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def __repr__(self) -> str:
        state = "closed" if self._is_closed else "expired" if self.is_expired else f"{self.seconds_left:.1f} s left"
        return f"{type(self).__name__}({self.ref.token}, {state})"

    # --- inside -----------------------------------------------------------------------------------------------------

    async def _wait_for_room(self, timeout: float) -> None:
        """Serials must not run further ahead of the oldest unsettled one than the cluster remembers results."""
        if self._serials.ahead < WINDOW:
            return
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        while self._serials.ahead >= WINDOW and not self._is_closed and self._ended is None:
            left = deadline - loop.time()
            if left <= 0:
                raise Overloaded(f"{self._serials.ahead} writes of the session {self.id} wait for the oldest of them")
            waiter = loop.create_future()
            self._room.append(waiter)
            try:
                await asyncio.wait([waiter], timeout=left)
            except asyncio.CancelledError:
                self._leave(waiter)
                self._wake()  # the room is for the next one
                raise
            self._leave(waiter)

    def _leave(self, waiter: asyncio.Future[None]) -> None:
        if not waiter.cancel():
            self._woken -= 1

    def _wake(self) -> None:
        """Tell as many as there is room for: thousands may wait. When the session is over, everybody."""
        is_over = self._is_closed or self._ended is not None
        while self._room and (is_over or self._serials.ahead + self._woken < WINDOW):
            waiter = self._room.popleft()
            if not waiter.done():
                waiter.set_result(None)
                self._woken += 1

    async def _keep_alive(self) -> None:
        interval = self._valid_seconds / 3
        delay = interval
        while True:
            await asyncio.sleep(delay)
            sent_at = self._clock.monotonic()
            try:
                await self._send_keep_alive(interval)
            except SessionExpired as error:
                self._ended = error
                self._wake()
                return
            except RaftError:
                delay = min(RETRY_SECONDS, interval)
                continue
            self._valid_until = max(self._valid_until, sent_at + self._valid_seconds)
            delay = max(interval - (self._clock.monotonic() - sent_at), interval / 10)
