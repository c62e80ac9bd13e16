"""The order of the final log, tried first: if it explains every result and agrees with real time, it is the proof that
was looked for, and no search is needed. That it does not explain something proves nothing: then the search decides.

The log is believed in nothing but the order: what each command did is worked out anew, from an absent key on.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import UNSET

from raftkit_core.testing.linearizability.history import DurableWrite, Operation
from raftkit_core.testing.linearizability.settling import Signature, each_once, signature

INFINITY = float("inf")


class _Version:
    """What the key held between two changes: the operation that made it (None: nothing yet), and its readers."""

    def __init__(self, maker: Operation | None, revision: int) -> None:
        self.maker = maker
        self.revision = revision
        """0: the key was absent."""
        self.seers: list[Operation] = []
        """Reads, and operations that were refused or found nothing to change."""


def explains(operations: Sequence[Operation], durable: Sequence[DurableWrite]) -> bool:
    """Whether the settled ``operations`` of one key are linear in the order in which ``durable``, the committed
    commands for that key, has them."""
    versions = _replayed(operations, durable)
    if versions is None:
        return False
    by_revision = {version.revision: version for version in versions if version.revision}
    of_absence = []
    for operation in operations:
        if operation.kind != "get":
            continue
        if operation.found is None:
            if operation.revision is not UNSET and operation.revision != 0:
                return False
            of_absence.append(operation)
            continue
        version = None if operation.revision is UNSET else by_revision.get(operation.revision)
        if version is None or version.maker is None or version.maker.value != operation.found:
            return False
        version.seers.append(operation)
    return _agrees_with_time(versions, sorted(of_absence, key=lambda read: read.called))


def _replayed(operations: Sequence[Operation], durable: Sequence[DurableWrite]) -> list[_Version] | None:
    """The versions of the key as the log makes them; None if an operation was told anything else."""
    claimed = {
        operation.revision: operation
        for operation in operations
        if operation.outcome == "ok" and _names_place(operation)
    }
    others: dict[Signature, list[Operation]] = {}
    for operation in sorted(operations, key=lambda each: each.called, reverse=True):
        if operation.kind != "get" and not (operation.outcome == "ok" and _names_place(operation)):
            others.setdefault(signature(operation), []).append(operation)
    versions = [_Version(None, 0)]
    value: str | None = None
    for entry in each_once(durable):
        found = claimed.pop(entry.index, None)
        if found is None:
            waiting = others.get(signature(entry))
            if not waiting:
                return None
            found = waiting.pop()
        elif signature(found) != signature(entry):
            return None
        revision = versions[-1].revision
        holds = (found.if_revision is UNSET or found.if_revision == revision) and (
            found.kind != "cas" or found.expected is UNSET or found.expected == value
        )
        if found.outcome != "unknown" and holds is (found.outcome == "refused"):
            return None
        changes = holds and (found.kind != "delete" or revision != 0)
        if found.outcome == "ok":
            told = found.previous_revision
            if found.changed is not changes or (changes and told is not UNSET and told != revision):
                return None
        if changes:
            value = None if found.kind == "delete" or found.value is UNSET else found.value
            versions.append(_Version(found, 0 if found.kind == "delete" else entry.index))
        else:
            versions[-1].seers.append(found)
    unexplained = any(operation.outcome != "unknown" for waiting in others.values() for operation in waiting)
    return None if claimed or unexplained else versions


def _names_place(operation: Operation) -> bool:
    return operation.kind != "get" and operation.revision is not UNSET


def _agrees_with_time(versions: list[_Version], of_absence: list[Operation]) -> bool:
    """Give every change the earliest moment it can have. ``of_absence`` may have read any time the key was absent: they
    go to the first where they are in nobody's way."""
    limits = [INFINITY] * (len(versions) + 1)
    """By when something of this version, or of a later one, had ended."""
    for place in range(len(versions) - 1, -1, -1):
        version = versions[place]
        ends = [_end(each) for each in (*version.seers, *([version.maker] if version.maker is not None else []))]
        limits[place] = min([limits[place + 1], *ends])
    moment, absent = -INFINITY, 0
    for place, version in enumerate(versions):
        if version.maker is not None:
            moment = max(moment, version.maker.called)
            if moment > _end(version.maker):
                return False
        began = moment
        for seer in version.seers:
            if began > _end(seer):
                return False
            moment = max(moment, seer.called)
        if version.revision == 0:
            while absent < len(of_absence) and of_absence[absent].called <= limits[place + 1]:
                if began > _end(of_absence[absent]):
                    return False
                moment = max(moment, of_absence[absent].called)
                absent += 1
    return absent == len(of_absence)


def _end(operation: Operation) -> float:
    return INFINITY if operation.outcome == "unknown" else operation.returned
