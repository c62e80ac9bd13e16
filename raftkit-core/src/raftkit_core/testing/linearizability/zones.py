"""The zone check: decides a register with reads and writes of unique values in O(n log n).

Gibbons and Korach: a write and the reads of its value form a *cluster*. ``first_end`` is when the first of them had
ended, ``last_start`` when the last of them began. Cluster A must come before B if something of A had ended before
something of B began: ``A.first_end < B.last_start``. A history is linearizable if and only if no read precedes its own
write and no two clusters must each come before the other. A cluster with ``first_end < last_start`` is a *forward zone*
(the register held the value all that time), else it is a *backward* one; two forward zones may not overlap, and no
backward zone may lie inside a forward one.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from itertools import pairwise

from msgspec import UNSET

from raftkit_core.testing.linearizability.findings import Finding, finding
from raftkit_core.testing.linearizability.history import Operation

CHECK = "zones"
INFINITY = float("inf")


class Cluster:
    """The operations of one value, which ``None`` is for a key that was not written yet."""

    __slots__ = ("first_end", "first_ended", "last_start", "last_started", "write", "write_started")

    def __init__(self, write: Operation | None) -> None:
        self.write = write
        is_known = write is not None and write.outcome == "ok"
        self.write_started = write.called if write is not None else -INFINITY
        self.first_end = write.returned if is_known and write is not None else (INFINITY if write else -INFINITY)
        self.last_start = self.write_started
        self.first_ended: Operation | None = write
        self.last_started: Operation | None = write

    def add(self, read: Operation) -> None:
        if read.returned < self.first_end:
            self.first_end, self.first_ended = read.returned, read
        if read.called > self.last_start:
            self.last_start, self.last_started = read.called, read


def can_decide(operations: Sequence[Operation]) -> bool:
    """Whether these settled operations of one key are plain reads and writes of unique values."""
    written = set()
    for operation in operations:
        if operation.kind == "put":
            if operation.if_revision is not UNSET or operation.value in written or operation.value is UNSET:
                return False
            written.add(operation.value)
        elif operation.kind != "get" or operation.found is UNSET:
            return False
    return True


def check_zones(operations: Sequence[Operation]) -> list[Finding]:
    """What is wrong with the settled operations of one key, which must be ones :func:`can_decide` accepts."""
    clusters: dict[str | None, Cluster] = {None: Cluster(None)}
    for operation in operations:
        if operation.kind == "put":
            assert isinstance(operation.value, str)
            clusters[operation.value] = Cluster(operation)
    for operation in operations:
        if operation.kind == "get":
            assert operation.found is not UNSET
            cluster = clusters.get(operation.found)
            if cluster is None:
                return [finding(CHECK, operation.key, "a value was read that nobody wrote", operation)]
            if operation.returned < cluster.write_started:
                assert cluster.write is not None
                return [
                    finding(CHECK, operation.key, "a value was read before it was written", operation, cluster.write)
                ]
            cluster.add(operation)
    # An unknown write nobody saw has no end and forces nothing.
    return _conflicts([cluster for cluster in clusters.values() if cluster.first_end != INFINITY])


def _conflicts(clusters: list[Cluster]) -> list[Finding]:
    forward = sorted((c for c in clusters if c.first_end < c.last_start), key=lambda c: (c.first_end, c.last_start))
    for earlier, later in pairwise(forward):
        if later.first_end < earlier.last_start:
            return [_conflict(earlier, later)]
    starts = [cluster.first_end for cluster in forward]
    for cluster in clusters:
        if cluster.first_end >= cluster.last_start:
            place = bisect_left(starts, cluster.last_start) - 1
            if place >= 0 and cluster.first_end < forward[place].last_start:
                return [_conflict(forward[place], cluster)]
    return []


def _conflict(one: Cluster, other: Cluster) -> Finding:
    shown: list[Operation] = []
    for operation in (one.write, one.first_ended, one.last_started, other.write, other.first_ended, other.last_started):
        if operation is not None and all(operation is not seen for seen in shown):
            shown.append(operation)
    names = " and ".join("the absent key" if c.write is None else repr(c.write.value) for c in (one, other))
    return finding(CHECK, shown[0].key, f"{names} must each come before the other", *shown)
