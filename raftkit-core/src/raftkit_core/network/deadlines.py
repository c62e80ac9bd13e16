"""Many deadlines, one timer: a call costs a heap entry instead of a timer of the loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Container
from heapq import heappop, heappush


class Deadlines:
    """Calls ``expired(key)`` once its time has come, if ``key`` is still in ``pending`` by then.

    Finished keys leave the heap when they reach its top, so that answered calls cost nothing more.
    """

    def __init__(self, expired: Callable[[int], None], pending: Container[int]) -> None:
        self._expired = expired
        self._pending = pending
        self._heap: list[tuple[float, int]] = []
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = float("inf")

    def add(self, key: int, due: float, loop: asyncio.AbstractEventLoop) -> None:
        """``key`` grows from call to call; ``due`` is a time of ``loop``."""
        heap, pending = self._heap, self._pending
        while heap and heap[0][1] not in pending:
            heappop(heap)
        heappush(heap, (due, key))
        if due < self._timer_at:
            self._arm(loop)

    def close(self) -> None:
        """Forget everything."""
        self._heap.clear()
        self._disarm()

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._timer_at = float("inf")

    def _arm(self, loop: asyncio.AbstractEventLoop) -> None:
        """The timer may fire early for a key that was answered meanwhile; it never fires late."""
        self._disarm()
        if self._heap:
            self._timer_at = self._heap[0][0]
            self._timer = loop.call_at(self._timer_at, self._fire)

    def _fire(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = None
        now = loop.time()
        heap, pending = self._heap, self._pending
        while heap and (heap[0][0] <= now or heap[0][1] not in pending):
            key = heappop(heap)[1]
            if key in pending:
                self._expired(key)
        self._arm(loop)
