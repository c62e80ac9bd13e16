"""The log: append, truncate, purge. The only place that emits log-lane commands about entries."""

from __future__ import annotations

from collections.abc import Sequence

from raftkit_core.engine.commands import AppendInputEntries, DeleteConflictLog, PurgeLog
from raftkit_core.engine.parts import EngineParts
from raftkit_core.types.entry import MEMBERSHIP, Entries, Entry, decode_membership, payload_bytes
from raftkit_core.types.log_id import LogId, index_of
from raftkit_core.types.membership import StoredMembership


class LogHandler:
    def __init__(self, parts: EngineParts) -> None:
        self._parts = parts

    def append(self, entries: Sequence[Entry], now: float) -> list[StoredMembership]:
        """Append consecutive entries; gives the memberships among them, in order."""
        parts = self._parts
        state = parts.state
        if type(entries) is Entries:
            # Of one leader and one kind, and its size is known.
            first, last, time_ms = entries.first, entries.last, entries.time_ms
            state.log.extend(first, last)
            memberships = _memberships(entries) if entries.kind == MEMBERSHIP else []
            size_bytes = entries.size_bytes
        elif len(entries) == 1:
            only = entries[0]
            first = last = only.log_id
            time_ms = only.time_ms
            state.log.extend(first, last)
            memberships = _memberships(entries) if only.kind == MEMBERSHIP else []
            size_bytes = len(only.payload)
        else:
            end = entries[-1]
            first, last, time_ms = entries[0].log_id, end.log_id, end.time_ms
            for entry in entries:
                state.log.extend(entry.log_id, entry.log_id)
            memberships = _memberships(entries)
            size_bytes = payload_bytes(entries)
        state.log_bytes += size_bytes
        if time_ms > state.last_time_ms:
            state.last_time_ms = time_ms
        io_id = state.io.submit_entries(first.index, last, size_bytes, now)
        parts.output.push(AppendInputEntries(io_id, entries))
        return memberships

    def truncate(self, since: int, now: float) -> bool:
        """Remove ``since`` and after; says whether the effective membership went back.

        Never at or below ``committed``: that would lose acknowledged data, so it stops the node (S11).
        """
        self.cut(since, now)
        return self._parts.state.membership.truncate(since)

    def cut(self, since: int, now: float) -> None:
        """Remove ``since`` and after from the log alone: memberships are the caller's business."""
        state = self._parts.state
        assert since > index_of(state.committed), f"truncation at {since} below committed {state.committed}"
        if since > state.log.last_index:
            return
        state.log.truncate(since)
        io_id = state.io.submit_truncate(since, state.log.last, now)
        self._parts.output.push(DeleteConflictLog(io_id, since))
        if index_of(state.accepted) >= since:
            state.accepted = state.log.last

    def purge(self, upto: LogId, now: float) -> None:
        """Remove up to ``upto``."""
        state = self._parts.state
        assert upto.index > index_of(state.log.purged), f"{upto} is purged already, up to {state.log.purged}"
        state.log.purge(upto)
        io_id = state.io.submit_purge(upto, now)
        self._parts.output.push(PurgeLog(io_id, upto))


def _memberships(entries: Sequence[Entry]) -> list[StoredMembership]:
    """The memberships among ``entries``, in order."""
    found = [entry for entry in entries if entry.kind == MEMBERSHIP]
    return [StoredMembership(entry.log_id, decode_membership(entry.payload)) for entry in found]
