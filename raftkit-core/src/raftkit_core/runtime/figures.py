"""What a node measures of itself: how long flushes, snapshots, calls to peers and read confirmations take.

One observation per flush, snapshot, call or read; nothing per entry. Read by whoever exposes metrics.
"""

from __future__ import annotations

from bisect import bisect_left

BOUNDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper bounds of the buckets, in seconds."""


class Durations:
    """A histogram. ``counts`` has one item per bound, and one for what is longer."""

    __slots__ = ("counts", "sum_seconds")

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS) + 1)
        self.sum_seconds = 0.0

    def observe(self, seconds: float) -> None:
        self.counts[bisect_left(BOUNDS, seconds)] += 1
        self.sum_seconds += seconds

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


__all__ = ["BOUNDS", "Durations", "NodeFigures"]
