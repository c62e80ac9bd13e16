"""What a node measures of itself: how long flushes, snapshots, calls to peers and read confirmations take.

One observation per flush, snapshot, call or read; nothing per entry. Read by whoever exposes metrics.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable

BOUNDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper bounds of the buckets, in seconds."""


class Durations:
    """A histogram. What is observed is only noted, and counted by whoever looks, or by :meth:`count_new` now and then:
    the observer is in a hurry."""

    __slots__ = ("_counts", "_new", "_sum_seconds", "observe")

    def __init__(self) -> None:
        self._counts = [0] * (len(BOUNDS) + 1)
        self._sum_seconds = 0.0
        self._new: list[float] = []
        self.observe: Callable[[float], None] = self._new.append
        """Note one duration, in seconds."""

    def count_new(self) -> None:
        """Count what was noted."""
        new = self._new
        if not new:
            return
        self._sum_seconds += sum(new)
        new.sort()
        counted = 0
        for place, bound in enumerate(BOUNDS):
            upto = bisect_right(new, bound)
            self._counts[place] += upto - counted
            counted = upto
        self._counts[-1] += len(new) - counted
        new.clear()

    @property
    def counts(self) -> list[int]:
        """One item per bound, and one for what is longer."""
        self.count_new()
        return self._counts

    @property
    def sum_seconds(self) -> float:
        self.count_new()
        return self._sum_seconds

    @property
    def count(self) -> int:
        return sum(self.counts)


class NodeFigures:
    """Everything measured since the node started."""

    def __init__(self) -> None:
        self.flush = Durations()
        """Durable writes of the log."""
        self.snapshot = Durations()
        """Building a snapshot."""
        self.read_index = Durations()
        """Confirming that a read is safe, until it was."""
        self.calls: dict[tuple[str, str], Durations] = {}
        """Calls to peers that were answered, by kind and peer."""
        self.call_errors: dict[tuple[str, str], int] = {}
        self.applied_commands = 0
        """Commands of the state machine that were applied here."""

    def called(self, kind: str, peer: str, seconds: float, is_answered: bool) -> None:
        """A call to ``peer`` ended."""
        key = (kind, peer)
        if not is_answered:
            self.call_errors[key] = self.call_errors.get(key, 0) + 1
            return
        found = self.calls.get(key)
        if found is None:
            found = self.calls[key] = Durations()
        found.observe(seconds)

    def count_new(self) -> None:
        """Count what was noted since the last time: without it the notes of a busy node would grow until somebody
        looks."""
        self.flush.count_new()
        self.read_index.count_new()
        for durations in self.calls.values():
            durations.count_new()


__all__ = ["BOUNDS", "Durations", "NodeFigures"]
