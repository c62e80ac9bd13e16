"""Every log id of a log in little space: one key per leader, because a leader's entries are consecutive."""

from __future__ import annotations

from bisect import bisect_right
from operator import attrgetter

from raftkit_core.types.log_id import LogId, index_of

_index = attrgetter("index")


class LogIdList:
    """Maps an index to its log id.

    ``purged`` is the last removed log id; ``_runs`` holds the first log id of every leader among the entries that are
    there, with growing index and leader id; ``last`` is the last entry, or ``purged`` when none is left.
    """

    __slots__ = ("_runs", "last", "last_index", "purged")

    def __init__(self, purged: LogId | None = None, runs: list[LogId] | None = None, last: LogId | None = None) -> None:
        self.purged = purged
        self._runs: list[LogId] = [] if runs is None else list(runs)
        self.last = purged if last is None else last
        self.last_index = index_of(self.last)
        """Index of the last entry (or of the last purged one); -1 for an empty log."""

    @property
    def runs(self) -> tuple[LogId, ...]:
        """The first log id of every leader among the entries that are there."""
        return tuple(self._runs)

    @property
    def first_index(self) -> int:
        """Index of the first entry that is there, or would be: the one after ``purged``."""
        return 0 if self.purged is None else self.purged.index + 1

    def get(self, index: int) -> LogId | None:
        """The log id at ``index``, the purged one included; None if it is not known."""
        if index >= self.last_index:
            return self.last if index == self.last_index else None
        runs = self._runs
        if runs and index >= runs[-1].index:
            return LogId(runs[-1].leader_id, index)  # mostly: of the newest leader
        purged = self.purged
        if purged is not None and index <= purged.index:
            return purged if index == purged.index else None
        position = bisect_right(runs, index, key=_index) - 1
        if position < 0:
            return None
        return LogId(runs[position].leader_id, index)

    def extend(self, first: LogId, last: LogId) -> None:
        """Append the consecutive entries ``first..last`` of one leader."""
        assert first.index == self.last_index + 1, f"hole: {first} after {self.last}"
        runs = self._runs
        if not runs or runs[-1].leader_id != first.leader_id:
            assert self.last is None or first.leader_id >= self.last.leader_id, (
                f"leader id falls: {first} after {self.last}"
            )
            runs.append(first)
        self.last = last
        self.last_index = last.index

    def truncate(self, since: int) -> None:
        """Remove ``since`` and everything after it."""
        assert since >= self.first_index, f"cannot remove {since}: purged up to {self.purged}"
        if since > self.last_index:
            return
        new_last = self.get(since - 1) if since > self.first_index else self.purged
        while self._runs and self._runs[-1].index >= since:
            self._runs.pop()
        self.last = new_last
        self.last_index = index_of(new_last)

    def purge(self, upto: LogId) -> None:
        """Remove everything up to ``upto``, which may lie beyond the end."""
        if self.purged is not None and upto.index <= self.purged.index:
            return
        if upto.index >= self.last_index:
            self._runs.clear()
            self.last = upto
            self.last_index = upto.index
        else:
            keep_from = bisect_right(self._runs, upto.index + 1, key=_index) - 1
            first = LogId(self._runs[keep_from].leader_id, upto.index + 1)
            self._runs = [first, *self._runs[keep_from + 1 :]]
        self.purged = upto
