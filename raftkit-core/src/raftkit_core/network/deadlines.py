"""Many deadlines, one timer: a call costs a heap entry instead of a timer of the loop."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable


class Deadlines:
    """Calls ``expired(key)`` once its time has come, unless ``is_done(key)`` by then.

    Finished keys leave the heap when they reach its top, so that answered calls cost nothing more.
    """

    def __init__(self, expired: Callable[[int], None], is_done: Callable[[int], bool]) -> None:
        self._expired = expired
        self._is_done = is_done
        self._heap: list[tuple[float, int]] = []
        self._timer: asyncio.TimerHandle | None = None

    def add(self, key: int, timeout: float) -> None:
        """``key`` grows from call to call; ``timeout`` is in seconds from now, on the loop's clock."""
        loop = asyncio.get_running_loop()
        heap = self._heap
        while heap and self._is_done(heap[0][1]):
            heapq.heappop(heap)
        heapq.heappush(heap, (loop.time() + max(timeout, 0.0), key))
        self._arm(loop)

    def close(self) -> None:
        """Forget everything."""
        self._heap.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _arm(self, loop: asyncio.AbstractEventLoop) -> None:
        """The timer may fire early for a key that was answered meanwhile; it never fires late."""
        if not self._heap:
            return
        when = self._heap[0][0]
        if self._timer is not None:
            if self._timer.when() <= when:
                return
            self._timer.cancel()
        self._timer = loop.call_at(when, self._fire)

    def _fire(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = None
        now = loop.time()
        heap = self._heap
        while heap and (heap[0][0] <= now or self._is_done(heap[0][1])):
            key = heapq.heappop(heap)[1]
            if not self._is_done(key):
                self._expired(key)
        self._arm(loop)
