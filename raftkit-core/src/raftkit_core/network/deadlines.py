"""Many deadlines, one timer: a call costs a comparison instead of a timer of the loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Protocol


class Due(Protocol):
    """Something that waits; ``due`` is a time of the loop."""

    due: float


class Deadlines:
    """Calls ``expired(key)`` once the time of what ``pending`` holds under ``key`` has come, if it is still there.

    The timer stands at the first deadline there was when it was set. When it fires, everything that waits is looked at:
    what was answered meanwhile has left by itself, so that answered calls cost nothing more.
    """

    def __init__(self, expired: Callable[[int], None], pending: Mapping[int, Due]) -> None:
        self._expired = expired
        self._pending = pending
        self._timer: asyncio.TimerHandle | None = None
        self.timer_at = float("inf")
        """When the timer fires. Who puts in what is due before that calls :meth:`arm`."""

    def arm(self, due: float, loop: asyncio.AbstractEventLoop) -> None:
        """Fire at ``due``."""
        if self._timer is not None:
            self._timer.cancel()
        self.timer_at = due
        self._timer = loop.call_at(due, self._fire)

    def close(self) -> None:
        """Forget everything."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.timer_at = float("inf")

    def _fire(self) -> None:
        """The timer may fire early for something that was answered meanwhile; it never fires late."""
        loop = asyncio.get_running_loop()
        self._timer = None
        self.timer_at = float("inf")
        now = loop.time()
        pending = self._pending
        due = sorted((waits.due, key) for key, waits in pending.items() if waits.due <= now)
        try:
            for _, key in due:
                if key in pending:
                    self._expired(key)
        finally:  # whatever one of them led to: the others have their ends too
            if pending:
                first = min(waits.due for waits in pending.values())
                if first < self.timer_at:
                    self.arm(first, loop)
