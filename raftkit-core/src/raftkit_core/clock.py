"""Time as an argument: the runtime reads it here and nowhere else."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Protocol


class Clock(Protocol):
    """Where a node takes its time from."""

    def monotonic(self) -> float:
        """Seconds that never go back and go on while the machine sleeps, if the system can tell."""
        ...

    def wall(self) -> float:
        """Seconds since the epoch. Information only: no rule depends on it."""
        ...


_BOOTTIME = getattr(time, "CLOCK_BOOTTIME", None)


class SystemClock:
    """The machine's clocks: ``CLOCK_BOOTTIME`` where it exists, so that a suspended leader knows its lease is over."""

    monotonic: Callable[[], float] = (
        staticmethod(time.monotonic) if _BOOTTIME is None else staticmethod(partial(time.clock_gettime, _BOOTTIME))
    )
    """Nothing but the system's call: it is read several times for every write."""

    def wall(self) -> float:
        return time.time()
