"""A session of a simulated client: the product's own client side, over whichever node answers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from raftkit_core.clock import Clock
from raftkit_core.errors import Fatal, RaftError, Unreachable
from raftkit_core.network.client_session import ClientSession
from raftkit_core.network.repeating import Attempts
from raftkit_core.raft import Raft
from raftkit_core.types.ids import NodeId
from raftkit_core.types.kv import Put
from raftkit_core.types.operations import CloseSession, KeepSession, SessionOpened
from raftkit_core.types.session import SessionSerial

if TYPE_CHECKING:
    from raftkit_core.testing.simulation.simulation import Simulation

RETRY_SECONDS = 0.05
CLOSE_SECONDS = 2.0
LATE_SECONDS = 4.0
"""How much later than its answer, at most, a copy of a request arrives."""


class SimSession(ClientSession):
    """Each attempt goes to a node that ``choose`` gives (None: all are down).

    The way to that node loses nothing. In bad weather it repeats: a copy of a request that was not refused comes to
    some node seconds later, when its client has long gone on; and the answer to a keep-alive takes its time.
    """

    def __init__(
        self,
        sim: Simulation,
        opened: SessionOpened,
        *,
        sent_at: float,
        clock: Clock,
        choose: Callable[[], NodeId | None],
    ) -> None:
        super().__init__(
            opened.session, opened.ttl_ms, sent_at=sent_at, max_clock_drift=sim.config.max_clock_drift, clock=clock
        )
        self._sim = sim
        self._choose = choose
        self.patience_s = 1.5
        """How long one node is waited for before another is asked."""
        self.on_late_answer: Callable[[], None] | None = None
        """The next keep-alive is answered late, and this is called when that has been counted."""
        self._is_given_back = False
        self._chance = sim.stream(f"late/{self.id}")
        sim.oracle.sessions.promised(self.id, lambda: self.is_counted_on)

    @property
    def is_counted_on(self) -> bool:
        """Whether the client may be sure that the cluster has the session, also when it says nothing any more."""
        return not self._is_given_back and self._ended is None and self._clock.monotonic() < self._valid_until

    @property
    def next_serial(self) -> int:
        """The serial of the next write, as long as nobody else begins one before."""
        return self._serials._last + 1

    async def close(self, *, timeout: float = CLOSE_SECONDS) -> None:
        self._is_given_back = True
        await super().close(timeout=timeout)

    def _node(self) -> Raft:
        node = self._choose()
        if node is None:
            raise Unreachable("every node is down", outcome="not_applied")
        return self._sim.raft(node)

    async def _send_keep_alive(self, timeout: float) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        await self._node().call(KeepSession(self.ref), timeout=timeout)
        if self._is_bad_weather() or self.on_late_answer is not None:
            self._sim.trace.seen("session.kept_late")
            await asyncio.sleep(self._chance.uniform(0.0, max(0.0, deadline - loop.time())))
            if self.on_late_answer is not None:
                loop.call_soon(self.on_late_answer)
        self._sim.trace.seen("session.kept")

    async def _send_write(self, command: Any, once: Callable[[], SessionSerial], timeout: float) -> Any:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        attempts = Attempts(f"a write of the session {self.id}")
        while True:
            serial = once()
            try:
                left = max(deadline - loop.time(), 0.001)
                done = await self._node().write(command, session=serial, timeout=min(left, self.patience_s))
                self._repeat_later(command, serial)
                self._forge_later(command, serial)
                return done
            except RaftError as error:
                if error.outcome == "unknown":
                    self._repeat_later(command, serial)
                # A node that is gone speaks for itself only: another may be there.
                is_gone = isinstance(error, Fatal) and error.outcome == "not_applied"
                told = None if is_gone else attempts.failed(error)
                if told is error:
                    raise
                if told is not None:
                    raise told from error
                if loop.time() + RETRY_SECONDS >= deadline:
                    raise attempts.given_up(error)  # noqa: B904 - it has its own cause
                self._sim.trace.seen("session.retried" if attempts.is_uncertain else "session.asked_again")
            await asyncio.sleep(RETRY_SECONDS)

    def _is_bad_weather(self) -> bool:
        """As often as frames between nodes are doubled, delayed or unanswered."""
        weather = self._sim.hub.weather
        return self._chance.random() < max(weather.duplicate, weather.answer_loss, 10 * weather.tail)

    def _repeat_later(self, command: Any, serial: SessionSerial) -> None:
        if not self._is_bad_weather():
            return

        async def copy(delay: float) -> None:
            await asyncio.sleep(delay)
            self._sim.trace.event("late", "", (self.id, serial.serial))
            with suppress(RaftError):
                await self._node().write(command, session=serial, timeout=self.patience_s)

        self._sim.under_way.append(
            asyncio.get_running_loop().create_task(copy(self._chance.uniform(0.05, LATE_SECONDS)), name="late copy")
        )

    def _forge_later(self, command: Any, serial: SessionSerial) -> None:
        """Another command under a serial whose write was answered: whoever sends that must be refused. S23."""
        if not isinstance(command, Put) or not self._is_bad_weather():
            return
        forged = Put(command.key, bytes(command.value) + b"!")

        async def ask(delay: float) -> None:
            await asyncio.sleep(delay)
            with suppress(RaftError):
                done = await self._node().write(forged, session=serial, timeout=self.patience_s)
                detail = f"two commands under serial {serial.serial} of session {self.id} are answered by {done.data}"
                self._sim.oracle.breach("S23", "", detail)
            self._sim.trace.seen("session.forged")

        self._sim.under_way.append(
            asyncio.get_running_loop().create_task(ask(self._chance.uniform(0.0, 0.5)), name="forged write")
        )

    async def _send_close(self, timeout: float) -> None:
        await self._node().call(CloseSession(self.ref), timeout=timeout)
