"""The witness check: the cluster says where in the log each change stands, so the order need not be searched for.

The claimed order must agree with real time and explain every result. It is linear but for sorting, finds almost
everything, and names the two operations that contradict each other. It trusts nothing: a cluster that lies about log
indexes is caught by the contradictions, or by the zone check and the search, which do not look at them alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

from msgspec import UNSET

from raftkit_core.testing.linearizability.findings import Finding, by_key, finding
from raftkit_core.testing.linearizability.history import Operation

CHECK = "witness"


def check_witness(operations: Sequence[Operation]) -> list[Finding]:
    """What contradicts itself in a whole history (all keys, nothing settled: definite failures are looked at too)."""
    changes = sorted(
        (o for o in operations if o.outcome == "ok" and o.kind != "get" and o.revision is not UNSET),
        key=_revision,
    )
    return [
        *_same_index(changes),
        *_against_real_time(operations, changes),
        *(found for of_key in by_key(operations).values() for found in _KeyCheck(of_key).findings()),
    ]


def _revision(operation: Operation) -> int:
    assert operation.revision is not UNSET
    return operation.revision


def _same_index(changes: list[Operation]) -> list[Finding]:
    return [
        finding(CHECK, later.key, f"two operations were acknowledged with log index {later.revision}", earlier, later)
        for earlier, later in pairwise(changes)
        if earlier.revision == later.revision
    ]


def _against_real_time(operations: Sequence[Operation], changes: list[Operation]) -> list[Finding]:
    """A change that was called after somebody had been told of index i stands behind i."""
    told = sorted(
        (o for o in operations if o.outcome == "ok" and o.revision is not UNSET and o.consistency != "stale"),
        key=lambda o: o.returned,
    )
    findings = []
    highest: Operation | None = None
    place = 0
    for change in sorted(changes, key=lambda o: o.called):
        while place < len(told) and told[place].returned < change.called:
            if highest is None or _revision(told[place]) > _revision(highest):
                highest = told[place]
            place += 1
        if highest is not None and _revision(change) <= _revision(highest):
            message = f"log index {change.revision} was given after index {highest.revision} had been answered"
            findings.append(finding(CHECK, change.key, message, highest, change))
    return findings


class _KeyCheck:
    """The chain of one key's versions, and its readers."""

    def __init__(self, operations: list[Operation]) -> None:
        self._key = operations[0].key
        self._changes = sorted(
            (o for o in operations if o.outcome == "ok" and o.kind != "get" and o.changed and o.revision is not UNSET),
            key=_revision,
        )
        self._by_revision = {_revision(o): o for o in self._changes}
        self._reads = [o for o in operations if o.kind == "get" and o.outcome == "ok" and o.found is not UNSET]
        self._vague = [o for o in operations if o.kind != "get" and _is_vague(o)]
        self._failed = {o.value: o for o in operations if o.outcome == "failed" and o.value is not UNSET}
        self._written = {o.value: o for o in operations if o.outcome in ("ok", "unknown") and o.value is not UNSET}

    def findings(self) -> list[Finding]:
        return [*self._origins(), *self._chain(), *self._against_time()]

    # --- where values come from -------------------------------------------------------------------------------------

    def _origins(self) -> Iterable[Finding]:
        for operation in self._reads:
            if isinstance(operation.found, str):
                yield from self._origin(operation, operation.found)
        for operation in self._changes:
            if operation.kind == "cas" and isinstance(operation.expected, str):
                yield from self._origin(operation, operation.expected)

    def _origin(self, seer: Operation, value: str) -> Iterable[Finding]:
        writer = self._written.get(value)
        if writer is None:
            if value in self._failed:
                message = f"{value!r} was seen, and its write is said to have failed for certain"
                yield finding(CHECK, self._key, message, self._failed[value], seer)
            else:
                yield finding(CHECK, self._key, f"{value!r} was seen, and nobody wrote it", seer)
        elif seer.returned < min(o.called for o in self._writers(value)):
            yield finding(CHECK, self._key, f"{value!r} was seen before it was written", seer, writer)

    def _writers(self, value: str) -> Iterable[Operation]:
        return [o for o in (*self._changes, *self._vague) if o.value == value] or [self._written[value]]

    # --- the chain of previous revisions ----------------------------------------------------------------------------

    def _chain(self) -> Iterable[Finding]:
        before: Operation | None = None
        attributed: set[int] = set()
        for change in self._changes:
            previous = change.previous_revision
            last = 0 if before is None else _revision(before)
            visible = 0 if before is None or before.kind == "delete" else last
            shown = [change] if before is None else [before, change]
            if previous is UNSET:
                previous = visible
            elif previous == visible:
                pass
            elif previous == 0:
                if not self._may_have_deleted(change):
                    message = f"the key was found absent, {visible} had been its revision and nobody deleted it"
                    yield finding(CHECK, self._key, message, *shown)
            elif not last < previous < _revision(change):
                message = f"revision {previous} was replaced, the key was at {visible} then: an update is lost"
                yield finding(CHECK, self._key, message, *shown)
            else:
                attributed.add(previous)
            if change.if_revision is not UNSET and change.if_revision != previous:
                yield finding(CHECK, self._key, f"the condition held at revision {previous}?", change)
            if change.kind == "cas" and change.expected is not UNSET:
                yield from self._cas(change, previous)
            before = change
        if len(attributed) > sum(o.kind != "delete" for o in self._vague):
            message = f"revisions {sorted(attributed)} were replaced: more than the writes of unknown outcome explain"
            yield finding(CHECK, self._key, message, *self._vague)

    def _cas(self, change: Operation, previous: int) -> Iterable[Finding]:
        replaced = self._by_revision.get(previous)
        is_wrong = (change.expected is None) is not (previous == 0)
        if replaced is not None and replaced.value is not UNSET and replaced.value != change.expected:
            is_wrong = True
        if is_wrong:
            shown = [change] if replaced is None else [replaced, change]
            yield finding(CHECK, self._key, f"a comparison succeeded that does not hold at {previous}", *shown)

    def _may_have_deleted(self, seer: Operation) -> bool:
        return any(o.kind == "delete" and o.called <= seer.returned for o in self._vague)

    # --- readers and real time --------------------------------------------------------------------------------------

    def _against_time(self) -> Iterable[Finding]:
        told = sorted([*self._changes, *(r for r in self._reads if _is_current(r))], key=lambda o: o.returned)
        highest: Operation | None = None
        place = 0
        for read in sorted(self._reads, key=lambda o: o.called):
            yield from self._read(read)
            while place < len(told) and told[place].returned < read.called:
                if highest is None or _seen(told[place]) > _seen(highest):
                    highest = told[place]
                place += 1
            if highest is not None and _is_current(read):
                yield from self._floor(highest, read)

    def _read(self, read: Operation) -> Iterable[Finding]:
        if read.revision is UNSET or read.revision == 0:
            return
        writer = self._by_revision.get(read.revision)
        if writer is None:
            if not any(o.value == read.found and o.called <= read.returned for o in self._vague):
                yield finding(CHECK, self._key, f"revision {read.revision} was read, and nobody wrote it", read)
        elif writer.value != read.found:
            yield finding(CHECK, self._key, f"revision {read.revision} holds another value than was read", writer, read)

    def _floor(self, highest: Operation, read: Operation) -> Iterable[Finding]:
        floor = _seen(highest)
        if read.found is None:
            if floor == 0 or highest.kind == "delete" or self._may_have_deleted(read):
                return
            if any(o.kind == "delete" and _revision(o) > floor and o.called <= read.returned for o in self._changes):
                return
            yield finding(CHECK, self._key, "a stale read: the key is absent in it", highest, read)
        elif read.revision is not UNSET and read.revision < floor:
            yield finding(CHECK, self._key, f"a stale read: revision {floor} had been answered", highest, read)


def _is_vague(operation: Operation) -> bool:
    """It may have happened, and nobody knows where: at any revision that no other claims."""
    return operation.outcome == "unknown" or (operation.outcome == "ok" and operation.revision is UNSET)


def _is_current(read: Operation) -> bool:
    return read.consistency != "stale" and read.revision is not UNSET


def _seen(operation: Operation) -> int:
    return 0 if operation.revision is UNSET else operation.revision
