"""Log ids in little space, against a plain list."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raftkit_core.engine.log_id_list import LogIdList
from raftkit_core.testing.builders import log_id, log_ids
from raftkit_core.types.log_id import LogId


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(["extend", "extend", "truncate", "purge"]), st.integers(0, 7)), max_size=20),
)
def test_every_lookup_equals_that_of_a_plain_list(operations: list[tuple[str, int]]) -> None:
    log = LogIdList()
    plain: dict[int, LogId] = {}
    purged: LogId | None = None
    term = 1
    for name, number in operations:
        last = max(plain, default=-1 if purged is None else purged.index)
        first = 0 if purged is None else purged.index + 1
        if name == "extend":
            term += number % 2
            added = [log_id(term, "n1", last + 1 + offset) for offset in range(1 + number)]
            log.extend(added[0], added[-1])
            plain.update({each.index: each for each in added})
        elif name == "truncate":
            since = first + number
            log.truncate(since)
            plain = {index: each for index, each in plain.items() if index < since}
            term += 1
        else:
            upto = plain.get(first + number, log_id(term, "n1", first + number))
            if upto.index not in plain and upto.index < last:
                continue
            log.purge(upto)
            purged = upto
            plain = {index: each for index, each in plain.items() if index > upto.index}
        expected_last = plain[max(plain)] if plain else purged
        assert log.last == expected_last
        assert log.purged == purged
        assert log.first_index == (0 if purged is None else purged.index + 1)
        for index in range(-1, log.last_index + 3):
            known = purged if purged is not None and index == purged.index else plain.get(index)
            assert log.get(index) == known, index
        starts = [each for each in plain.values() if plain.get(each.index - 1) is None]
        leaders = [each for each in plain.values() if each.index - 1 in plain]
        changes = [each for each in leaders if plain[each.index - 1].leader_id != each.leader_id]
        assert log.runs == tuple(sorted(starts + changes))


def test_a_hole_stops_the_node() -> None:
    with pytest.raises(AssertionError, match="hole"):
        log_ids(log_id(1, "n1", 0)).extend(log_id(1, "n1", 2), log_id(1, "n1", 2))


def test_a_falling_leader_id_stops_the_node() -> None:
    with pytest.raises(AssertionError, match="leader id falls"):
        log_ids(log_id(2, "n1", 0)).extend(log_id(1, "n1", 1), log_id(1, "n1", 1))


def test_what_is_purged_cannot_be_truncated() -> None:
    log = log_ids(log_id(1, "n1", 6), log_id(1, "n1", 9), purged=log_id(1, "n1", 5))
    with pytest.raises(AssertionError, match="purged"):
        log.truncate(5)


def test_a_purge_below_the_purged_changes_nothing() -> None:
    log = log_ids(log_id(1, "n1", 6), log_id(1, "n1", 9), purged=log_id(1, "n1", 5))
    log.purge(log_id(1, "n1", 3))
    assert (log.purged, log.runs, log.last) == (log_id(1, "n1", 5), (log_id(1, "n1", 6),), log_id(1, "n1", 9))
