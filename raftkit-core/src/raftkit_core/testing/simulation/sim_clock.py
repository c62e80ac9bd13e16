"""The clocks of simulated nodes: they began somewhere, and drift."""

from __future__ import annotations

import asyncio

from raftkit_core.testing.virtual_time import WALL_START


class SimClock:
    """A node's own clock: it began somewhere, and runs a little fast or slow."""

    def __init__(self, loop: asyncio.AbstractEventLoop, rate: float, offset: float) -> None:
        self._loop = loop
        self.rate = rate
        self.offset = offset
        self._wall_ahead = 0.0

    def monotonic(self) -> float:
        return self._loop.time() * self.rate + self.offset

    def wall(self) -> float:
        return WALL_START + self._wall_ahead + self._loop.time()

    def set_wall(self, seconds: float) -> None:
        """Somebody sets the date: information only, so that nothing may come of it."""
        self._wall_ahead += seconds
