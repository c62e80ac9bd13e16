"""The loop of tests on real time: what the machine does for others hardly counts.

A process that does not get the processor for half a second finds all its timers due at once, and the messages that
should have come before them still in its sockets: followers miss a leader that wrote to them, deadlines of milliseconds
end what was well. So this loop's time goes on while it *waits*, as long as it meant to, and by a little for whatever
else a turn took. Who measures with it finds less time, never more, than has passed; the clock of nodes follows it.
"""

from __future__ import annotations

import asyncio
import selectors
import time
from collections.abc import Mapping
from typing import Any

from raftkit_core.clock import SystemClock

TURN_SECONDS_MAX = 0.01
"""What counts at most of the time between two waits, and beyond the end of one."""

_system = SystemClock.monotonic


class PatientLoop(asyncio.SelectorEventLoop):
    current: PatientLoop | None = None
    """One loop at a time: what its nodes do on threads has the same clock."""

    def __init__(self) -> None:
        self._counted = self._seen = time.monotonic()
        super().__init__(_PatientSelector(self))
        type(self).current = self

    def time(self) -> float:
        return self._counted + min(time.monotonic() - self._seen, TURN_SECONDS_MAX)

    def has_waited(self, began: float, timeout: float | None) -> None:
        """A wait ends that was to last for ``timeout`` at most, and began when this loop's time was ``began``."""
        now = time.monotonic()
        waited = now - self._seen
        self._counted = began + (waited if timeout is None else min(waited, max(timeout, 0) + TURN_SECONDS_MAX))
        self._seen = now

    def begins_to_wait(self) -> float:
        self._counted = self.time()
        self._seen = time.monotonic()
        return self._counted

    def close(self) -> None:
        super().close()
        if type(self).current is self:
            type(self).current = None


class _PatientSelector(selectors.BaseSelector):
    def __init__(self, loop: PatientLoop) -> None:
        self._loop = loop
        self._inner = selectors.DefaultSelector()

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        began = self._loop.begins_to_wait()
        try:
            return self._inner.select(timeout)
        finally:
            self._loop.has_waited(began, timeout)

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        return self._inner.register(fileobj, events, data)

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        return self._inner.unregister(fileobj)

    def modify(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        return self._inner.modify(fileobj, events, data)

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        return self._inner.get_map()

    def get_key(self, fileobj: Any) -> selectors.SelectorKey:
        return self._inner.get_key(fileobj)

    def close(self) -> None:
        self._inner.close()


def install() -> None:
    """``asyncio.run`` has such a loop too, unless one is there already: threads beside it have the system's."""
    plain = asyncio.events.new_event_loop
    asyncio.events.new_event_loop = lambda: PatientLoop() if PatientLoop.current is None else plain()


def monotonic() -> float:
    """What :class:`SystemClock` tells while tests run."""
    loop = PatientLoop.current
    return _system() if loop is None else loop.time()
