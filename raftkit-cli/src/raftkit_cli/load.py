"""Callers that keep a cluster busy, and how long each call took: what ``bench`` and ``check perf`` measure with."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

PERCENTILES = (50.0, 90.0, 99.0, 99.9)


class Load:
    """So many callers at once, each with one call under way; at most ``rate`` calls a second where one is given."""

    def __init__(self, callers: int, seconds: float, rate: float | None = None) -> None:
        self.callers = callers
        self.seconds = seconds
        self.rate = rate
        self.latencies_ms: list[float] = []
        self.errors: Counter[str] = Counter()
        self.took_s = 0.0
        self._now: Callable[[], float] = time.perf_counter
        """The clock of the loop that runs."""

    async def run(self, call: Callable[[int], Awaitable[object]], told: Callable[[str], None], every_s: float) -> None:
        """Call until the time is up. An error counts by its code, and the caller goes on."""
        now = self._now = asyncio.get_running_loop().time
        began = now()
        telling = asyncio.create_task(self._tell(began, told, every_s))
        try:
            await asyncio.gather(*(self._caller(number, call, began) for number in range(self.callers)))
        finally:
            telling.cancel()
            await asyncio.gather(telling, return_exceptions=True)
            self.took_s = now() - began

    async def _caller(self, number: int, call: Callable[[int], Awaitable[object]], began: float) -> None:
        from raftkit_core.errors import RaftError

        pause = 0.0 if self.rate is None else self.callers / self.rate
        due = began + pause * number / self.callers
        while True:
            now = self._now()
            if pause and due > now:
                await asyncio.sleep(min(due - now, max(began + self.seconds - now, 0.0)))
            started = self._now()
            if started >= began + self.seconds:
                return
            due = max(due + pause, started - 1.0)  # what was missed by more than a second is not made up for
            try:
                await call(number)
            except RaftError as error:
                self.errors[error.code] += 1
                await asyncio.sleep(0.01)
            else:
                self.latencies_ms.append((self._now() - started) * 1000)

    async def _tell(self, began: float, told: Callable[[str], None], every_s: float) -> None:
        before = 0
        while True:
            await asyncio.sleep(every_s)
            count = len(self.latencies_ms)
            recent = sorted(self.latencies_ms[before:])
            p99 = f", p99 {recent[int(len(recent) * 0.99)]:.1f} ms" if recent else ""
            failed = f", {sum(self.errors.values())} failed" if self.errors else ""
            told(f"[{self._now() - began:5.1f}s] {(count - before) / every_s:,.0f}/s{p99}{failed}")
            before = count

    def as_data(self) -> dict[str, Any]:
        """What was measured, in milliseconds and calls a second."""
        ordered = sorted(self.latencies_ms)
        count = len(ordered)
        return {
            "callers": self.callers,
            "seconds": round(self.took_s, 3),
            "operations": count,
            "errors": dict(self.errors),
            "operations_per_second": round(count / self.took_s, 1) if self.took_s else 0.0,
            "latency_ms": {
                f"p{share:g}": round(ordered[min(count - 1, int(count * share / 100))], 3) if count else None
                for share in PERCENTILES
            }
            | {"max": round(ordered[-1], 3) if count else None},
        }
