"""Three PySyncObj nodes in one thread, ticked round robin without a pause: its best for one process."""

from __future__ import annotations

import time
from typing import Any

from raftkit_core.testing.ports import free_ports

from ..measure import Sample, sample

TUNED = {"batch": True, "period": 0.005, "tick": 0.05}
"""Batches every 5 ms: its best rate."""
QUICK = {"batch": False, "period": 0.1, "tick": 0.05}
"""No batches: its best latency."""


class OneThread:
    """A cluster that is made once and measured often."""

    def __init__(self, options: dict[str, Any]) -> None:
        from .pysyncobj_node import KeyValues, conf_of

        addresses = [f"127.0.0.1:{port}" for port in free_ports(3)]
        conf = conf_of(options, autoTick=False, raftMinTimeout=1.0, raftMaxTimeout=2.0)
        self._nodes = [KeyValues(one, [other for other in addresses if other != one], conf) for one in addresses]
        deadline = time.monotonic() + 20
        while not all(node._getLeader() for node in self._nodes) and time.monotonic() < deadline:
            self._tick()
        self._leader = next(node for node in self._nodes if node._isLeader())

    def _tick(self) -> None:
        for node in self._nodes:
            node.doTick(0)

    def write(self, outstanding: int, seconds: float, payload: int) -> Sample:
        latencies: list[float] = []
        value = "v" * (payload - 12)
        clock = time.perf_counter
        active = outstanding
        started = clock()
        end = started + seconds

        def issue(number: int) -> None:
            begin = clock()

            def done(result: Any, reason: int) -> None:
                nonlocal active
                now = clock()
                latencies.append(now - begin)
                if now < end:
                    issue(number)
                else:
                    active -= 1

            self._leader.put(f"key{number:05d}", value, callback=done)

        for number in range(outstanding):
            issue(number)
        while active:
            self._tick()
        return sample(len(latencies), clock() - started, latencies)

    def close(self) -> None:
        for node in self._nodes:
            node.destroy()
        for _ in range(5):
            self._tick()
