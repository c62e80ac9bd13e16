"""Many entries in little space: columns of payloads and times instead of an object for each."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, MutableSequence, Sequence
from itertools import accumulate, chain, islice, repeat
from math import inf
from operator import attrgetter, eq
from typing import overload

from raftkit_core.types.entry import Entries, Entry, times_of
from raftkit_core.types.log_id import LogId

RUN_ENTRIES = 4096
"""A run that is as long is not added to: to cut off its begin moves the rest of it."""
SHARED_ENTRIES = 64
"""So many that were added together are a run as they are, which costs no copy of their columns."""

FRESH_BATCHES = 64
"""So many additions are put into runs at once."""
_index = attrgetter("log_id.index")
_kind = attrgetter("kind")
_leader_id = attrgetter("log_id.leader_id")
_payload = attrgetter("payload")
_time_ms = attrgetter("time_ms")


class _Run:
    """Entries of one leader and kind with consecutive indexes, to which more are added."""

    __slots__ = ("first", "kind", "payloads", "times")

    def __init__(self, first: LogId, kind: int, payloads: list[bytes], times: list[int]) -> None:
        self.first = first
        self.kind = kind
        self.payloads = payloads
        self.times = times

    def part(self, start: int, stop: int) -> Entries:
        times = self.times[start:stop]
        first = LogId(self.first.leader_id, self.first.index + start)
        return Entries(first, times[-1], self.kind, self.payloads[start:stop], times)


def _joined(runs: Sequence[_Run | Entries], start: int, count: int) -> Sequence[Entry]:
    """``count`` entries of consecutive ``runs``, from the place ``start`` of the first one on."""
    stop = start + count
    first, kind = runs[0].first, runs[0].kind
    next_index = first.index
    for run in runs:
        if run.first.index != next_index or run.kind != kind or run.first.leader_id != first.leader_id:
            return list(islice(chain.from_iterable(map(_all_of, runs)), start, stop))
        next_index += len(run.payloads)
    payloads = tuple(islice(chain.from_iterable([run.payloads for run in runs]), start, stop))
    times = tuple(islice(chain.from_iterable(map(_times_of, runs)), start, stop))
    return Entries(LogId(first.leader_id, first.index + start), times[-1], kind, payloads, times)


def _all_of(run: _Run | Entries) -> Entries:
    return run if type(run) is Entries else run.part(0, len(run.payloads))


def _times_of(run: _Run | Entries) -> Iterable[int]:
    return times_of(run) if isinstance(run, Entries) else run.times


class EntryLog(MutableSequence[Entry]):
    """A list of entries that costs two references an entry. Made for a log: to add at the end, to cut off at either end
    and to read a slice is quick; every other change copies all of it.

    A slice is an :class:`Entries` where its entries have one leader and kind, else a list.
    """

    __slots__ = ("_begin", "_end", "_fresh", "_next_index", "_runs", "_starts")

    def __init__(self, entries: Iterable[Entry] = ()) -> None:
        self._runs: list[_Run | Entries] = []
        self._starts: list[int] = []
        """How many entries were ever before each run."""
        self._fresh: list[Sequence[Entry]] = []
        """What was added last, as it came: put into runs when somebody looks, or when it has become much."""
        self._begin = 0
        self._end = 0
        """The places of the first entry in runs, and behind the last one, whose index is before ``_next_index``."""
        self._next_index = 0
        self.extend(entries)

    def __len__(self) -> int:
        if self._fresh:
            self._settle()
        return self._end - self._begin

    def last_index(self) -> int:
        """The index of the last entry; -1 if there is none."""
        if self._fresh:
            last = self._fresh[-1]
            return last.last.index if type(last) is Entries else last[-1].log_id.index
        return self._next_index - 1 if self._end > self._begin else -1

    # --- reading ----------------------------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Entry]:
        self._settle()
        for run in self._runs:
            yield from _all_of(run)

    @overload
    def __getitem__(self, at: int) -> Entry: ...

    @overload
    def __getitem__(self, at: slice) -> MutableSequence[Entry]: ...

    def __getitem__(self, at: int | slice) -> Entry | Sequence[Entry]:
        if isinstance(at, slice):
            start, stop, step = at.indices(len(self))
            return list(self)[at] if step != 1 else self.part(start, stop) if start < stop else []
        place = at if at >= 0 else at + len(self)
        if not 0 <= place < len(self):
            raise IndexError(at)
        return self.part(place, place + 1)[0]

    def part(self, start: int, stop: int) -> Sequence[Entry]:
        """As the slice, which must not be empty nor go beyond the end."""
        if self._fresh:
            self._settle()
        starts = self._starts
        start += self._begin
        stop += self._begin
        number = bisect_right(starts, start) - 1
        run, before = self._runs[number], starts[number]
        if number + 1 == len(starts) or stop <= starts[number + 1]:
            part = run.part(start - before, stop - before)
            return part if stop - start > 1 else [part[0]]
        return _joined(self._runs[number : bisect_left(starts, stop)], start - before, stop - start)

    def head(self, count: int, enough_bytes: float = inf) -> tuple[int, int]:
        """How many entries at the begin have ``enough_bytes`` of payload together, or ``count``; and how many bytes
        these have. Whole runs of shared columns are not looked into."""
        self._settle()
        found = size_bytes = 0
        for run in self._runs:
            if found >= count or size_bytes >= enough_bytes:
                break
            length = len(run.payloads)
            run_bytes = run.size_bytes if isinstance(run, Entries) else sum(map(len, run.payloads))
            if found + length > count or size_bytes + run_bytes > enough_bytes:
                sizes = list(accumulate(map(len, run.payloads)))
                length = min(bisect_left(sizes, enough_bytes - size_bytes) + 1, count - found)
                run_bytes = sizes[length - 1]
            found += length
            size_bytes += run_bytes
        return found, size_bytes

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, EntryLog | Entries | list):
            return NotImplemented
        return len(self) == len(other) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return repr(list(self))

    def __copy__(self) -> EntryLog:
        return EntryLog(self)

    # --- changing ---------------------------------------------------------------------------------------------------

    def extend(self, entries: Iterable[Entry]) -> None:
        """``entries`` must not be changed afterwards."""
        if type(entries) is not Entries:
            if type(entries) is not list:
                entries = list(entries)
            if not entries:
                return
        self._fresh.append(entries)
        if len(self._fresh) > FRESH_BATCHES:
            self._settle()

    def append(self, entry: Entry) -> None:
        self.extend([entry])

    def _settle(self) -> None:
        """Put everything into runs."""
        fresh, self._fresh = self._fresh, []
        plain: list[Entry] = []
        for entries in fresh:
            if type(entries) is Entries:
                self._settle_plain(plain)
                plain = []
                if len(entries.payloads) >= SHARED_ENTRIES:
                    self._begin_run(entries)
                else:
                    self._add(entries.first, entries.kind, entries.payloads, times_of(entries))
            else:
                plain += entries
        self._settle_plain(plain)

    def _settle_plain(self, entries: list[Entry]) -> None:
        if not entries:
            return
        first, last = entries[0], entries[-1]
        indexes = range(first.log_id.index, last.log_id.index + 1)
        if (
            len(indexes) == len(entries)
            and all(map(eq, map(_index, entries), indexes))
            and all(map(eq, map(_kind, entries), repeat(first.kind)))
            and all(map(eq, map(_leader_id, entries), repeat(first.log_id.leader_id)))
        ):
            self._add(first.log_id, first.kind, list(map(_payload, entries)), map(_time_ms, entries))
            return
        for entry in entries:
            self._add(entry.log_id, entry.kind, [entry.payload], (entry.time_ms,))

    def _add(self, first: LogId, kind: int, payloads: Sequence[bytes], times: Iterable[int]) -> None:
        """To the last run if ``first`` can follow in it, else to a new one."""
        last = self._runs[-1] if self._runs else None
        if (
            type(last) is not _Run
            or first.index != self._next_index
            or kind != last.kind
            or len(last.payloads) >= RUN_ENTRIES
            or first.leader_id != last.first.leader_id
        ):
            self._begin_run(_Run(first, kind, [*payloads], [*times]))
            return
        last.payloads += payloads
        last.times += times
        self._end += len(payloads)
        self._next_index += len(payloads)

    def _begin_run(self, run: _Run | Entries) -> None:
        self._runs.append(run)
        self._starts.append(self._end)
        self._end += len(run.payloads)
        self._next_index = run.first.index + len(run.payloads)

    def __delitem__(self, at: int | slice) -> None:
        self._settle()
        if isinstance(at, slice):
            start, stop, step = at.indices(len(self))
            if step == 1 and start >= stop:
                return
            if step == 1 and stop == len(self):
                self._cut_behind(self._begin + start)
                return
            if step == 1 and start == 0:
                self._cut_before(self._begin + stop)
                return
        entries = list(self)
        del entries[at]
        self._replace(entries)

    def _cut_behind(self, end: int) -> None:
        """Keep what is before the place ``end``."""
        starts, runs = self._starts, self._runs
        while starts and starts[-1] >= end:
            starts.pop()
            runs.pop()
        self._end = end
        if runs:
            last, left = runs[-1], end - starts[-1]
            if type(last) is _Run:
                del last.payloads[left:]
                del last.times[left:]
            elif left < len(last.payloads):
                runs[-1] = last.part(0, left)
            self._next_index = last.first.index + left

    def _cut_before(self, begin: int) -> None:
        """Keep what is from the place ``begin`` on; that is something."""
        starts, runs = self._starts, self._runs
        number = bisect_right(starts, begin) - 1
        del starts[:number]
        del runs[:number]
        first, left = runs[0], begin - starts[0]
        if type(first) is _Run:
            del first.payloads[:left]
            del first.times[:left]
            first.first = LogId(first.first.leader_id, first.first.index + left)
        elif left:
            runs[0] = first.part(left, len(first.payloads))
        self._begin = starts[0] = begin

    @overload
    def __setitem__(self, at: int, value: Entry) -> None: ...

    @overload
    def __setitem__(self, at: slice, value: Iterable[Entry]) -> None: ...

    def __setitem__(self, at: int | slice, value: Entry | Iterable[Entry]) -> None:
        entries = list(self)
        entries[at] = value  # type: ignore[index, assignment]
        self._replace(entries)

    def insert(self, at: int, value: Entry) -> None:
        entries = list(self)
        entries.insert(at, value)
        self._replace(entries)

    def _replace(self, entries: list[Entry]) -> None:
        self._runs.clear()
        self._starts.clear()
        self._begin = self._end = 0
        self.extend(entries)
