"""What a leader knows of one peer (openraft.md §2.7), and that probing always ends at the right place."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raftkit_core.engine.inflight import Inflight
from raftkit_core.engine.progress import ProgressEntry, ProgressState
from raftkit_core.testing.builders import log_id
from raftkit_core.types.log_id import index_of


def pipelining(matching: int, *sent: tuple[int, int]) -> ProgressEntry:
    progress = ProgressEntry(matching + 1, epoch=1)
    progress.ack(log_id(1, "n1", matching))
    for prev, last in sent:
        progress.inflight.append(Inflight(prev, last))
        progress.next_index = last + 1
    return progress


@settings(max_examples=80, deadline=None)
@given(
    st.integers(0, 60),
    st.integers(0, 60),
    st.integers(0, 60),
    st.booleans(),
)
def test_probing_finds_the_last_matching_entry_in_few_steps(
    common: int, only_here: int, only_there: int, hints: bool
) -> None:
    """The peer's log agrees up to ``common`` entries; then both go on with different ones."""
    here, there = common + only_here, common + only_there
    progress = ProgressEntry(here, epoch=1)
    steps = 0
    while True:
        steps += 1
        assert steps <= 30, "a probe does not narrow the search"
        prev = progress.probe_index() - 1
        assert prev < here
        if prev < common:
            progress.ack(None if prev < 0 else log_id(1, "n1", prev))
            break
        progress.conflict(prev, there - 1 if hints else prev)
    assert progress.state is ProgressState.PIPELINE
    assert index_of(progress.matching) < common
    assert progress.next_index == index_of(progress.matching) + 1
    assert common - progress.next_index <= 16 + only_here + common // 2


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["send", "ack", "fail"]), st.integers(1, 6)), max_size=30))
def test_in_flight_ranges_are_consecutive_and_matching_never_falls(steps: list[tuple[str, int]]) -> None:
    progress = pipelining(10)
    matching = 10
    for name, number in steps:
        if name == "send" and progress.state is ProgressState.PIPELINE:
            start = progress.next_index
            progress.inflight.append(Inflight(start - 1, start + number - 1))
            progress.next_index = start + number
        elif name == "ack":
            sent = progress.inflight[-1].last_index if progress.inflight else index_of(progress.matching)
            progress.ack(log_id(1, "n1", min(sent, index_of(progress.matching) + number)))
        elif name == "fail":
            progress.reset(progress.epoch + 1)
        assert index_of(progress.matching) >= matching
        matching = index_of(progress.matching)
        assert progress.next_index > matching
        assert progress.searching_end > matching
        for earlier, later in zip(progress.inflight, list(progress.inflight)[1:], strict=False):
            assert earlier.last_index == later.prev_index
        if progress.inflight:
            assert progress.inflight[-1].last_index > matching
            assert progress.lowest_prev_inflight == progress.inflight[0].prev_index


def test_a_partial_ack_keeps_the_request_in_flight() -> None:
    progress = pipelining(3, (3, 8), (8, 9))
    assert progress.ack(log_id(1, "n1", 6))
    assert [each.last_index for each in progress.inflight] == [8, 9]
    assert progress.next_index == 10
    assert progress.ack(log_id(1, "n1", 8))
    assert [each.last_index for each in progress.inflight] == [9]


def test_an_older_ack_is_no_news() -> None:
    progress = pipelining(7)
    assert not progress.ack(log_id(1, "n1", 5))
    assert progress.matching == log_id(1, "n1", 7)


def test_a_failure_voids_what_is_in_flight_and_probes_after_matching() -> None:
    progress = pipelining(3, (3, 8), (8, 20))
    progress.reset(5)
    assert (progress.state, progress.epoch, len(progress.inflight)) == (ProgressState.PROBE, 5, 0)
    assert progress.probe_index() == 4


@pytest.mark.parametrize(
    ("matching", "searching_end", "index"),
    [(-1, 5, 5), (-1, 15, 15), (-1, 16, 8), (9, 25, 25), (9, 26, 18), (9, 110, 60)],
)
def test_after_a_failed_probe_a_wide_gap_is_halved(matching: int, searching_end: int, index: int) -> None:
    progress = ProgressEntry(searching_end, 1, None if matching < 0 else log_id(1, "n1", matching))
    progress.probed = True
    assert progress.probe_index() == index


def test_a_snapshot_in_flight_blocks_no_purge() -> None:
    progress = ProgressEntry(5, 1)
    progress.inflight.append(Inflight(-1, 9, log_id(1, "n1", 9)))
    assert progress.lowest_prev_inflight is None


def test_d15_a_newer_snapshot_than_the_one_ordered_is_an_ack_like_any_other() -> None:
    """The seed asserted that exactly the planned one was sent."""
    progress = ProgressEntry(5, 1)
    progress.state = ProgressState.SNAPSHOT
    progress.inflight.append(Inflight(-1, 9, log_id(1, "n1", 9)))
    assert progress.ack(log_id(1, "n1", 12))
    assert (progress.state, progress.matching, progress.next_index) == (
        ProgressState.PIPELINE,
        log_id(1, "n1", 12),
        13,
    )
