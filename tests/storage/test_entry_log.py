"""``Entries`` and ``EntryLog`` are the lists of entries they stand for, whatever is done to them."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from math import inf
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raftkit_core.types import entry_log
from raftkit_core.types.entry import BLANK, NORMAL, Entries, Entry, indexes_of, payload_bytes, payloads_of
from raftkit_core.types.entry_log import RUN_ENTRIES, EntryLog
from raftkit_core.types.log_id import LogId
from raftkit_core.types.vote import LeaderId

T1, T2 = LeaderId(1, "n1"), LeaderId(2, "n2")


def plain(term: LeaderId, start: int, stop: int, time_ms: int = 5, kind: int = NORMAL) -> list[Entry]:
    return [Entry(LogId(term, index), time_ms, kind, b"%d" % index) for index in range(start, stop)]


def together(term: LeaderId, start: int, stop: int, time_ms: int = 5, kind: int = NORMAL) -> Entries:
    return Entries(LogId(term, start), time_ms, kind, [b"%d" % index for index in range(start, stop)])


@pytest.mark.parametrize("length", [1, 2, 7])
def test_entries_are_the_list_of_what_they_stand_for(length: int) -> None:
    made, expected = together(T1, 3, 3 + length), plain(T1, 3, 3 + length)
    assert made == expected
    assert expected == made
    assert list(made) == expected
    assert [made[at] for at in range(-length, length)] == [*expected, *expected]
    assert (made.first, made.last, len(made)) == (expected[0].log_id, expected[-1].log_id, length)
    assert (payload_bytes(made), [*payloads_of(made)]) == (payload_bytes(expected), payloads_of(expected))
    assert list(indexes_of(made)) == indexes_of(expected)
    assert repr(made) == repr(expected)
    for start in range(-1, length + 1):
        for stop in range(-1, length + 2):
            assert made[start:stop] == expected[start:stop], (start, stop)
    assert made[::-1] == expected[::-1]
    assert made != expected[:-1]
    assert made != together(T2, 3, 3 + length)
    for outside in (length, -length - 1):
        with pytest.raises(IndexError):
            made[outside]


def test_entries_of_different_times_keep_them() -> None:
    made = Entries(LogId(T1, 3), 9, NORMAL, [b"3", b"4", b"5"], [5, 5, 9])
    expected = [*plain(T1, 3, 5), *plain(T1, 5, 6, 9)]
    assert (list(made), [made[0], made[1], made[2]], made[1:], made[:2]) == (
        expected,
        expected,
        expected[1:],
        expected[:2],
    )
    assert made.part(0, 2).time_ms == 5
    with pytest.raises(AssertionError, match="2 times for 3 payloads"):
        Entries(LogId(T1, 3), 9, NORMAL, [b"3", b"4", b"5"], [5, 5])


@given(st.integers(0, 2**32))
def test_a_log_of_columns_is_the_list_it_stands_for(seed: int) -> None:
    """Whatever was put in or handed out stays as it was."""
    random = Random(seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(entry_log, "SHARED_ENTRIES", random.choice([1, 3, 64]))
        patch.setattr(entry_log, "RUN_ENTRIES", random.choice([4, 4096]))
        _compare_with_a_list(random)


def head_of(entries: list[Entry], count: int, enough_bytes: float) -> tuple[int, int]:
    found = size_bytes = 0
    for entry in entries:
        if found >= count or size_bytes >= enough_bytes:
            break
        found += 1
        size_bytes += len(entry.payload)
    return found, size_bytes


def _compare_with_a_list(random: Random) -> None:
    log, expected = EntryLog(), list[Entry]()
    others: list[tuple[Sequence[Entry], list[Entry]]] = []
    term, end, time_ms = 1, random.choice([0, 4]), 0
    for _ in range(random.randrange(1, 30)):
        match random.randrange(9):
            case 0 | 1 | 2 | 3:
                if random.random() < 0.2:
                    term += 1
                time_ms += random.randrange(2)
                length = random.choice([1, 1, 2, 5])
                where = LeaderId(term, "n1"), end, end + length, time_ms, random.choice([NORMAL, NORMAL, BLANK])
                added = together(*where) if random.random() < 0.7 else plain(*where)
                log.extend(added)
                others.append((added, plain(*where)))
                expected += plain(*where)
                end += length
            case 4:
                keep = random.randrange(len(expected) + 1)
                del log[keep:]
                del expected[keep:]
                end -= 0 if not expected else end - 1 - expected[-1].index
            case 5:
                drop = random.randrange(len(expected) + 1)
                del log[:drop]
                del expected[:drop]
            case 6 if expected:
                at = random.randrange(len(expected))
                log[at] = expected[at] = Entry(LogId(T2, 100), 7, NORMAL, b"other")
                log.insert(at, expected[0])
                expected.insert(at, expected[0])
            case 7 if expected:
                at = random.randrange(len(expected))
                assert log.pop(at) == expected.pop(at)
            case _:
                pass
        assert len(log) == len(expected)
        assert log == expected
        count, enough = random.randrange(-1, len(expected) + 2), random.choice([inf, 0, random.randrange(40)])
        assert log.head(count, enough) == head_of(expected, count, enough)
        start, stop = sorted(random.choices(range(-2, len(expected) + 2), k=2))
        assert log[start:stop] == expected[start:stop]
        others += (log[start:stop], expected[start:stop]), (copy.copy(log), expected[:])
        if expected:
            assert (log[0], log[-1]) == (expected[0], expected[-1])
            assert log.last_index() == expected[-1].index
    for theirs, as_it_was in others:
        assert theirs == as_it_was


def test_a_copy_of_a_log_is_another_log() -> None:
    log = EntryLog(plain(T1, 0, 5))
    image = copy.copy(log)
    log.append(plain(T1, 5, 6)[0])
    del log[:2]
    assert (list(image), list(log)) == (plain(T1, 0, 5), plain(T1, 2, 6))
    assert (image.last_index(), log.last_index(), EntryLog().last_index()) == (4, 5, -1)


def test_a_log_is_read_across_its_runs() -> None:
    log, expected = EntryLog(), list[Entry]()
    for number in range(5):
        where = T1, number * RUN_ENTRIES // 2, (number + 1) * RUN_ENTRIES // 2, number
        log.extend(together(*where))
        expected += plain(*where)
    del log[:10]
    del expected[:10]
    assert log == expected
    across = log[RUN_ENTRIES - 20 : RUN_ENTRIES + 20]
    assert isinstance(across, Entries), "of one leader and kind: columns, however many runs they lie in"
    assert across == expected[RUN_ENTRIES - 20 : RUN_ENTRIES + 20]
    with pytest.raises(IndexError):
        log[len(expected)]
