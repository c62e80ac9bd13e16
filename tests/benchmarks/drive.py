"""Closed loops: so many callers, each with one operation under way."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from .measure import Sample, sample

SAMPLED = 16
"""Every so many operations one is timed by itself: reading the clock twice per operation would be seen."""


async def closed_loop(
    operation: Callable[[int], Awaitable[object]], outstanding: int, seconds: float, *, every: bool = False
) -> Sample:
    """``outstanding`` callers of ``operation(number)`` for ``seconds``; ``every`` times each of them."""
    latencies: list[float] = []
    clock = time.perf_counter
    untimed = 0 if every else SAMPLED - 1
    done = 0

    async def caller(number: int) -> None:
        nonlocal done
        count = 0
        while True:
            started = clock()
            if started >= end:
                break
            await operation(number)
            latencies.append(clock() - started)
            for _ in range(untimed):
                await operation(number)
            count += 1 + untimed
        done += count

    started = clock()
    end = started + seconds
    await asyncio.gather(*(caller(number) for number in range(outstanding)))
    return sample(done, clock() - started, latencies)
