"""The log lane's bookkeeping against a disk that replays every write."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raftkit_core.engine.io_state import IoState
from raftkit_core.testing.builders import log_id
from raftkit_core.types.log_id import LogId, index_of


class Disk:
    """Index to log id after replaying every operation; ``floor`` is what was purged."""

    def __init__(self) -> None:
        self.entries: dict[int, LogId] = {}
        self.floor = -1

    def apply(self, operation: tuple[object, ...]) -> None:
        match operation:
            case ("append", list() as ids):
                self.entries.update({each.index: each for each in ids})
            case ("truncate", int() as since):
                self.entries = {index: each for index, each in self.entries.items() if index < since}
            case ("purge", LogId() as upto):
                self.floor = max(self.floor, upto.index)
                self.entries = {index: each for index, each in self.entries.items() if index > upto.index}
            case _:
                pass

    @property
    def last_index(self) -> int:
        return max(self.entries, default=self.floor)


class Lane:
    """An :class:`IoState` and the same history, replayed."""

    def __init__(self) -> None:
        self.io = IoState()
        self.history: list[tuple[object, ...]] = []
        self.ids: list[LogId] = []
        """The log as it will be when everything is written; purged places included."""
        self.purged = -1
        self.term = 1

    def append(self, count: int) -> None:
        first = len(self.ids)
        added = [log_id(self.term, "n1", first + offset) for offset in range(count)]
        self.ids += added
        self.history.append(("append", added))
        self.io.submit_entries(first, added[-1], count, 0.0)

    def truncate(self, since: int) -> None:
        del self.ids[since:]
        self.term += 1
        self.history.append(("truncate", since))
        self.io.submit_truncate(since, self.ids[-1] if self.ids else None, 0.0)

    def purge(self, upto: int) -> None:
        """Within the log, or beyond its end as an installed snapshot does it."""
        if upto >= len(self.ids):
            self.term += 1
            self.ids += [log_id(self.term, "n1", index) for index in range(len(self.ids), upto + 1)]
            self.term += 1
        self.purged = max(self.purged, upto)
        self.history.append(("purge", self.ids[upto]))
        self.io.submit_purge(self.ids[upto], 0.0)

    def vote(self) -> None:
        self.history.append(("vote",))
        self.io.submit(0.0)

    def durable_prefix(self, io_id: int) -> int:
        """The last index up to which the disk after ``io_id`` holds the log as it will be."""
        disk = Disk()
        for operation in self.history[:io_id]:
            disk.apply(operation)
        index = -1
        while index + 1 < len(self.ids) and (
            index + 1 <= disk.floor or disk.entries.get(index + 1) == self.ids[index + 1]
        ):
            index += 1
        return index

    def check(self) -> None:
        held = self.durable_prefix(self.io.flushed_io)
        assert index_of(self.io.flushed_log_id) == held
        assert held == -1 or self.io.flushed_log_id == self.ids[held]
        for index in range(len(self.ids)):
            io_id = self.io.io_of(index)
            needed = next(io for io in range(len(self.history) + 1) if self.durable_prefix(io) >= index)
            assert io_id <= self.io.flushed_io if index <= held else io_id == needed


OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(["append", "append", "truncate", "purge", "install", "vote", "flush"]), st.integers(0, 9)
    ),
    max_size=25,
)


@settings(max_examples=100, deadline=None)
@given(OPERATIONS)
def test_flushed_position_is_what_a_disk_that_replays_the_lane_holds(operations: list[tuple[str, int]]) -> None:
    lane = Lane()
    for name, number in operations:
        if name == "append":
            lane.append(1 + number % 3)
        elif name == "truncate" and lane.purged + 1 < len(lane.ids):
            lane.truncate(lane.purged + 1 + number % (len(lane.ids) - lane.purged - 1))
        elif name == "purge":
            held = index_of(lane.io.flushed_log_id)
            if held > lane.purged:  # only what is applied is purged, and only what is durable is applied
                lane.purge(lane.purged + 1 + number % (held - lane.purged))
        elif name == "install" and number > 6:
            # An installed snapshot first cuts everything uncommitted, then purges beyond the end.
            if lane.purged + 1 < len(lane.ids):
                lane.truncate(lane.purged + 1)
            lane.purge(len(lane.ids) + number % 3)
        elif name == "vote":
            lane.vote()
        elif name == "flush":
            pending = lane.io.last_io - lane.io.flushed_io
            lane.io.flush(lane.io.flushed_io + (number % (pending + 1)))
        lane.check()


def test_a_truncation_lowers_the_flushed_position_at_once() -> None:
    io = IoState()
    io.flush(io.submit_entries(0, log_id(1, "n1", 4), 5, 0.0))
    io.submit_truncate(3, log_id(1, "n1", 2), 0.0)
    assert io.flushed_log_id == log_id(1, "n1", 2)


def test_an_old_completion_does_not_vouch_for_an_entry_written_again_at_its_index() -> None:
    io = IoState()
    old = io.submit_entries(0, log_id(1, "n1", 4), 5, 0.0)
    io.submit_truncate(2, log_id(1, "n1", 1), 0.0)
    new = io.submit_entries(2, log_id(2, "n2", 4), 3, 0.0)
    io.flush(old)
    assert io.flushed_log_id == log_id(1, "n1", 1)
    assert io.io_of(4) == new
    io.flush(new)
    assert io.flushed_log_id == log_id(2, "n2", 4)


def test_completions_out_of_order_never_lower_the_position() -> None:
    """openraft.md §6 item 21."""
    io = IoState()
    first = io.submit_entries(0, log_id(1, "n1", 0), 1, 0.0)
    second = io.submit_entries(1, log_id(1, "n1", 1), 1, 0.0)
    io.flush(second)
    io.flush(first)
    assert io.flushed_io == second
    assert io.flushed_log_id == log_id(1, "n1", 1)


def test_bytes_on_their_way_to_the_disk_are_counted_until_they_are_there() -> None:
    io = IoState()
    first = io.submit_entries(0, log_id(1, "n1", 0), 10, 1.0)
    io.submit_entries(1, log_id(1, "n1", 1), 20, 2.0)
    assert (io.unflushed_bytes, io.oldest_submitted_at()) == (30, 1.0)
    io.flush(first)
    assert (io.unflushed_bytes, io.oldest_submitted_at()) == (20, 2.0)
    io.flush(io.last_io)
    assert (io.unflushed_bytes, io.oldest_submitted_at()) == (0, None)


def test_a_completion_of_what_was_never_submitted_stops_the_node() -> None:
    with pytest.raises(AssertionError, match="only 0 was submitted"):
        IoState().flush(1)
