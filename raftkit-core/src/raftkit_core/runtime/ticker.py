"""Ticks on a fixed grid: late ones are skipped, never made up for in a burst (openraft.md §6 item 50)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Ticker:
    """Calls ``ticked`` every ``period`` seconds of the loop's clock until stopped; ``late`` is told how late it was."""

    def __init__(
        self, period: float, ticked: Callable[[], None], late: Callable[[float], None] = lambda seconds: None
    ) -> None:
        self._period = period
        self._ticked = ticked
        self._late = late
        self._timer: asyncio.TimerHandle | None = None
        self._started_at = 0.0
        self._point = 0
        self._due = 0.0

    def start(self) -> None:
        loop = asyncio.get_running_loop()
        self._started_at = loop.time()
        self._arm(loop)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _tick(self) -> None:
        loop = asyncio.get_running_loop()
        self._late(loop.time() - self._due)
        self._arm(loop)
        self._ticked()

    def _arm(self, loop: asyncio.AbstractEventLoop) -> None:
        """The next point that is still to come. Points are counted: a timer that fires a rounding error early must not
        find the same point again."""
        self._point = max(self._point, int((loop.time() - self._started_at) / self._period)) + 1
        self._due = self._started_at + self._point * self._period
        self._timer = loop.call_at(self._due, self._tick)
