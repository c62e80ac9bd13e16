"""What a history says once its uncertain parts are settled: reads without an answer go, so does what certainly never
happened, and the final log decides what it can about writes whose outcome nobody was told."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate

import msgspec
from msgspec import UNSET, UnsetType

from raftkit_core.testing.linearizability.history import DurableWrite, Operation

Signature = tuple[str, str, str | UnsetType]


def settle(operations: Iterable[Operation], durable: Sequence[DurableWrite] | None = None) -> list[Operation]:
    """The operations a search has to place. Unknown writes are all that may still be ``unknown`` among them.

    With the final log, an unknown put that is not in it is dropped, and one that is in it has happened, by the time
    anybody saw a later position: it becomes ``ok`` with the revision the log gives it.
    """
    kept = [
        operation
        for operation in operations
        if operation.outcome != "failed"
        and not (operation.kind == "get" and (operation.outcome != "ok" or operation.consistency == "stale"))
    ]
    if durable is None or all(operation.outcome != "unknown" for operation in kept):
        return kept
    places = _places(kept, durable)
    writers = Counter(signature(operation) for operation in kept if operation.kind != "get")
    bounds = _Bounds(kept)
    settled = []
    for operation in kept:
        if operation.outcome == "unknown":
            found = places.get(signature(operation), [])
            if not found:
                continue
            if len(found) == 1 and writers[signature(operation)] == 1 and operation.kind != "delete":
                operation = _at(operation, found[0], bounds)
        settled.append(operation)
    return settled


def without_repeats(operations: Sequence[Operation]) -> Sequence[Operation]:
    """What a session sent again is one operation: from its first call to its first answer."""
    if not any(operation.session for operation in operations):
        return operations
    whole: dict[tuple[int, int], Operation] = {}
    kept: list[Operation] = []
    for operation in operations:
        if not operation.session or operation.kind == "get":
            kept.append(operation)
            continue
        identity = (operation.session, operation.serial)
        known = whole.setdefault(identity, operation)
        if known is not operation:
            answer = operation if _rank(operation) < _rank(known) else known
            whole[identity] = msgspec.structs.replace(answer, called=min(known.called, operation.called))
    return [*kept, *whole.values()]


def each_once(durable: Iterable[DurableWrite]) -> Iterator[DurableWrite]:
    """The log without what a session sent again: only the first of them is carried out."""
    carried_out: set[tuple[int, int]] = set()
    for entry in durable:
        if entry.session:
            if (entry.session, entry.serial) in carried_out:
                continue
            carried_out.add((entry.session, entry.serial))
        yield entry


def _rank(operation: Operation) -> tuple[int, float]:
    """Answers before everything else; a definite failure of one attempt says nothing about the others."""
    return (["ok", "refused", "unknown", "failed"].index(operation.outcome), operation.returned)


def signature(operation: Operation | DurableWrite) -> Signature:
    """What tells one write from another, in a log that does not know who sent it."""
    return (operation.kind, operation.key, operation.value)


def _places(operations: Iterable[Operation], durable: Iterable[DurableWrite]) -> dict[Signature, list[int]]:
    """Where in the log each kind of write stands that no acknowledged operation claims."""
    claimed = {operation.revision for operation in operations if operation.outcome == "ok" and operation.kind != "get"}
    places: dict[Signature, list[int]] = {}
    for entry in durable:
        if entry.index not in claimed:
            places.setdefault(signature(entry), []).append(entry.index)
    return places


def _at(operation: Operation, index: int, bounds: _Bounds) -> Operation:
    returned = bounds.seen_behind(index)
    if operation.kind == "put" and operation.if_revision is UNSET and returned is not None:
        returned = max(returned, operation.called)
        return msgspec.structs.replace(operation, outcome="ok", revision=index, returned=returned)
    return msgspec.structs.replace(operation, revision=index)  # a condition may have failed


class _Bounds:
    """By when a position of the log had been passed: the first answer that could only be given behind it."""

    def __init__(self, operations: Iterable[Operation]) -> None:
        seen = sorted(
            (2 * operation.revision + (operation.kind == "get"), operation.returned)
            for operation in operations
            if operation.outcome == "ok" and operation.revision is not UNSET
        )
        self._positions = [position for position, _ in seen]
        self._earliest = list(accumulate((returned for _, returned in reversed(seen)), min))[::-1]

    def seen_behind(self, index: int) -> float | None:
        place = bisect_right(self._positions, 2 * index)
        return self._earliest[place] if place < len(self._earliest) else None
