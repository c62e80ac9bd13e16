"""Closed loops (so many callers, each with one operation under way), and writes at an even pace."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

from raftkit_core.types.kv import Put

from .measure import Sample, percentile, sample

PACE_SECONDS = 0.002
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


class PacedWrites:
    """``rate`` writes a second at the leader, due at even times: a write that could not even begin in time counts from
    when it was due, so that a standstill is seen by all it held up, not by those alone who happened to be under way."""

    def __init__(self, raft: Any, rate: int, payload: int, keys: int) -> None:
        self._raft = raft
        self._rate = rate
        self._keys = keys
        self._value = b"v" * (payload - 12)
        self._latencies: list[float] = []
        self._failed = 0
        self._running = asyncio.create_task(self._write())

    async def _write(self) -> None:
        clock = time.perf_counter
        started, number = clock(), 0
        while True:
            due_count = int((clock() - started) * self._rate)
            while number < due_count:
                self._one(started + number / self._rate, number)
                number += 1
            await asyncio.sleep(PACE_SECONDS)

    def _one(self, due: float, number: int) -> None:
        def answered(future: asyncio.Future[Any]) -> None:
            if future.cancelled() or future.exception() is not None:
                self._failed += 1
            else:
                self._latencies.append(time.perf_counter() - due)

        command = Put(f"key{number % self._keys:08d}", self._value)
        self._raft.client_write_ff(command, timeout=60).add_done_callback(answered)

    def take(self) -> dict[str, Any]:
        """What came back since the last take."""
        taken, self._latencies = self._latencies, []
        failed, self._failed = self._failed, 0
        found = {"count": len(taken), "failed": failed}
        for name, share in (("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999), ("max", 1.0)):
            found[f"{name}_ms"] = percentile(taken, share) * 1000 if taken else 0.0
        return found

    async def stop(self) -> None:
        self._running.cancel()
        await asyncio.wait([self._running])
