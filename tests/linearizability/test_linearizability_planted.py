"""Histories that are wrong on purpose: every check can say no, and says what it saw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pytest
from histories import cas, delete, get, put

from raftkit_core.testing.linearizability import (
    DurableWrite,
    Operation,
    check_durability,
    check_sessions,
    check_witness,
    check_zones,
    judge,
    search,
    settle,
)
from raftkit_core.testing.linearizability.zones import can_decide


@dataclass
class Planted:
    operations: Sequence[Operation]
    message: str
    """What the witness check says about it."""
    is_zoned: bool = True
    is_visible: bool = True
    """Whether it is wrong by values and times alone."""


PLANTED = {
    "a stale read": Planted(
        [
            put("a", "1", 0, 1, revision=1, previous_revision=0),
            put("a", "2", 2, 3, revision=2, previous_revision=1),
            get("b", "1", 4, 5, revision=1),
        ],
        "a stale read: revision 2 had been answered",
    ),
    "a stale read that two readers show": Planted(
        [
            put("a", "1", 0, 1, revision=1, previous_revision=0),
            put("a", "2", 2, 9, revision=2, previous_revision=1),
            get("b", "2", 3, 4, revision=2),
            get("c", "1", 5, 6, revision=1),
        ],
        "a stale read: revision 2 had been answered",
    ),
    "an absent key after an acknowledged write": Planted(
        [put("a", "1", 0, 1, revision=1, previous_revision=0), get("b", None, 2, 3, revision=0)],
        "a stale read: the key is absent in it",
    ),
    "a read of what nobody wrote": Planted(
        [put("a", "1", 0, 1, revision=1, previous_revision=0), get("b", "9", 2, 3, revision=1)],
        "'9' was seen, and nobody wrote it",
    ),
    "a read of what is written later": Planted(
        [get("b", "1", 0, 1, revision=1), put("a", "1", 2, 3, revision=1, previous_revision=0)],
        "'1' was seen before it was written",
    ),
    "a definite failure that is read": Planted(
        [put("a", "1", 0, 1, outcome="failed"), get("b", "1", 2, 3, revision=1)],
        "its write is said to have failed for certain",
    ),
    "an acknowledged write that never was": Planted(
        [
            put("a", "1", 0, 1, revision=1, previous_revision=0),
            put("b", "2", 2, 3, revision=2, previous_revision=1),
            put("c", "3", 4, 5, revision=3, previous_revision=1),
        ],
        "an update is lost",
        is_visible=False,
    ),
    "a lost update of two comparisons": Planted(
        [
            put("a", "0", 0, 1, revision=1, previous_revision=0),
            cas("b", "0", "1", 2, 4, revision=2, previous_revision=1),
            cas("c", "0", "2", 3, 5, revision=3, previous_revision=1),
        ],
        "an update is lost",
        is_zoned=False,
    ),
    "a comparison that succeeded and does not hold": Planted(
        [
            put("a", "0", 0, 1, revision=1, previous_revision=0),
            put("a", "1", 2, 3, revision=2, previous_revision=1),
            cas("b", "0", "2", 4, 5, revision=3, previous_revision=2),
        ],
        "a comparison succeeded that does not hold",
        is_zoned=False,
    ),
    "log indexes against real time": Planted(
        [
            put("a", "1", 0, 1, revision=7, previous_revision=0),
            put("b", "2", 2, 3, revision=5, previous_revision=0),
        ],
        "log index 5 was given after index 7 had been answered",
        is_visible=False,
    ),
    "log indexes against a reader's real time": Planted(
        [
            put("a", "1", 0, 9, revision=7, previous_revision=0),
            get("c", "1", 1, 2, revision=7),
            put("b", "2", 3, 4, revision=5, previous_revision=0),
            get("c", "1", 5, 6, revision=7),
        ],
        "log index 5 was given after index 7 had been answered",
    ),
    "one log index twice": Planted(
        [
            put("a", "1", 0, 9, revision=3, previous_revision=0),
            put("b", "2", 0, 9, revision=3, previous_revision=0),
        ],
        "two operations were acknowledged with log index 3",
        is_visible=False,
    ),
    "a delete that did not delete": Planted(
        [
            put("a", "1", 0, 1, revision=1, previous_revision=0),
            delete("b", 2, 3, revision=2, previous_revision=1),
            get("c", "1", 4, 5, revision=1),
        ],
        "a stale read: revision 2 had been answered",
        is_zoned=False,
    ),
    "a value that came back": Planted(
        [
            put("a", "1", 0, 1, revision=1, previous_revision=0),
            put("a", "2", 2, 3, revision=2, previous_revision=1),
            get("b", "2", 4, 5, revision=2),
            get("b", "1", 6, 7, revision=1),
        ],
        "a stale read: revision 2 had been answered",
    ),
    "more replaced revisions than unknown writes": Planted(
        [
            put("a", "1", 0, 1, revision=1, previous_revision=0),
            put("x", "7", 0, 1, outcome="unknown"),
            put("b", "2", 2, 3, revision=4, previous_revision=3),
            put("b", "3", 4, 5, revision=8, previous_revision=6),
        ],
        "more than the writes of unknown outcome explain",
        is_visible=False,
    ),
    "a key that vanished": Planted(
        [
            put("a", "1", 0, 1, revision=1, previous_revision=0),
            put("a", "2", 2, 3, revision=2, previous_revision=0),
        ],
        "nobody deleted it",
        is_visible=False,
    ),
    "a revision with another value": Planted(
        [
            put("a", "1", 0, 1, revision=1, previous_revision=0),
            put("b", "2", 0, 1, revision=2, previous_revision=1),
            get("c", "1", 2, 3, revision=2),
        ],
        "revision 2 holds another value",
        is_visible=False,
    ),
}


@pytest.mark.parametrize("name", PLANTED)
def test_the_witness_check_says_no_and_why(name: str) -> None:
    planted = PLANTED[name]
    messages = [found.message for found in check_witness(planted.operations)]
    assert any(planted.message in message for message in messages), messages
    report = judge(planted.operations)
    assert report.verdict == "violation"
    assert not report.is_pass
    assert planted.message in str(report)


def without_revisions(operations: Sequence[Operation]) -> list[Operation]:
    from histories import without_witness

    return settle(without_witness(operations))


@pytest.mark.parametrize("name", [name for name, planted in PLANTED.items() if planted.is_visible])
def test_the_search_says_no_by_values_and_times_alone(name: str) -> None:
    findings, _ = search(without_revisions(PLANTED[name].operations))
    assert findings
    assert findings[0].operations


@pytest.mark.parametrize("name", [n for n, planted in PLANTED.items() if planted.is_visible and planted.is_zoned])
def test_the_zone_check_says_no_by_values_and_times_alone(name: str) -> None:
    operations = without_revisions(PLANTED[name].operations)
    assert can_decide(operations)
    assert check_zones(operations)


@pytest.mark.parametrize("name", [name for name, planted in PLANTED.items() if not planted.is_visible])
def test_what_only_the_witness_shows_is_legal_without_it(name: str) -> None:
    """Else the case would prove less than it says."""
    assert search(without_revisions(PLANTED[name].operations))[0] == []


def test_the_search_says_what_the_key_held_before_it_was_stuck() -> None:
    good = [put("a", "1", 0, 1), put("b", "2", 0, 1)]
    findings, _ = search([*good, get("c", None, 2, 3), get("c", "2", 4, 5)])
    assert findings[0].message.startswith("the key held '1' or '2' before these operations, and no order")
    assert findings[0].operations == (get("c", None, 2, 3),)


def test_one_wrong_key_among_many_is_named() -> None:
    good = [put("a", str(n), n, n + 0.5, key=f"k{n}", revision=n + 10, previous_revision=0) for n in range(20)]
    bad = [
        put("b", "x", 30, 31, key="bad", revision=40, previous_revision=0),
        get("b", None, 32, 33, key="bad", revision=0),
    ]
    report = judge([*good, *bad])
    assert {found.key for found in report.findings} == {"bad"}
    assert report.keys == 21


# --- against the final log ------------------------------------------------------------------------------------------


def log(*entries: tuple[int, str]) -> list[DurableWrite]:
    return [DurableWrite(index=index, kind="put", key="k", value=value) for index, value in entries]


def test_an_acknowledged_write_that_is_not_in_the_final_log_is_lost() -> None:
    operations = [put("a", "1", 0, 1, revision=1), put("a", "2", 2, 3, revision=2)]
    assert check_durability(operations, log((1, "1"), (2, "2"))) == []
    assert "an acknowledged write is lost" in check_durability(operations, log((1, "1")))[0].message
    assert "put k='9' at 2" in check_durability(operations, log((1, "1"), (2, "9")))[0].message
    assert len(check_durability(operations, [])) == 2


@pytest.mark.parametrize("operation", [put("a", "2", 2, 3), put("a", "2", 2, 3, if_revision=7, outcome="refused")])
def test_an_answer_that_names_no_place_must_be_of_some_entry_too(operation: Operation) -> None:
    known = put("b", "2", 0, 1, revision=1)
    assert check_durability([known, operation], log((1, "2"), (2, "2"))) == []
    for durable in (log((1, "2")), log((1, "2"), (2, "other"))):
        (found,) = check_durability([known, operation], durable)
        assert "no entry of the final log is left" in found.message


def test_a_definite_failure_in_the_final_log_came_back_to_life() -> None:
    operations = [put("a", "1", 0, 1, outcome="failed")]
    assert check_durability(operations, []) == []
    assert "failed for certain" in check_durability(operations, log((4, "1")))[0].message


@pytest.mark.parametrize("outcome", ["ok", "unknown"])
def test_one_call_that_is_twice_in_the_final_log_had_two_effects(outcome: str) -> None:
    operations = [put("a", "1", 0, 1, outcome=outcome)]
    assert check_durability(operations, log((4, "1"))) == []
    assert "2 of 1 writes" in check_durability(operations, log((4, "1"), (6, "1")))[0].message


def test_what_others_wrote_is_nobodys_business() -> None:
    assert check_durability([put("a", "1", 0, 1, revision=1)], log((1, "1"), (2, "theirs"), (3, "theirs"))) == []


def test_a_session_may_repeat_itself_in_the_log_but_not_in_its_effects() -> None:
    first = put("a", "1", 0, 1, revision=4, previous_revision=0, session=9, serial=1)
    twice = [DurableWrite(index=index, kind="put", key="k", value="1", session=9, serial=1) for index in (4, 6)]
    assert check_durability([first], twice) == []
    again = put("a", "1", 2, 3, revision=4, previous_revision=0, session=9, serial=1)
    assert check_sessions([first, again], twice) == []
    assert judge([first, again]).is_pass
    other = put("a", "1", 2, 3, revision=6, previous_revision=4, session=9, serial=1)
    assert "took effect twice" in check_sessions([first, other])[0].message
    assert judge([first, other]).verdict == "violation"


def test_one_serial_is_one_command() -> None:
    one = put("a", "1", 0, 1, session=9, serial=1)
    other = put("a", "2", 2, 3, session=9, serial=1)
    assert "is two commands" in check_sessions([one, other])[0].message
    entries = [
        DurableWrite(index=i, kind="put", key="k", value=v, session=9, serial=1) for i, v in ((1, "1"), (2, "2"))
    ]
    assert "is put k='1', put k='2'" in check_sessions([], entries)[0].message
