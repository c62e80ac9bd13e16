"""Unknown outcomes: what may have happened is allowed to, and what a search did not finish is not a pass."""

from __future__ import annotations

from histories import cas, delete, get, put

from raftkit_core.testing.linearizability import DurableWrite, Operation, check_zones, judge, search, settle
from raftkit_core.testing.linearizability.search import compile_moves


def is_legal(*operations: Operation) -> bool:
    findings, _ = search(settle(operations))
    return not findings


def test_absent_is_not_unknown() -> None:
    """A read that found nothing is an observation; a read without an answer is none."""
    written = put("a", "1", 0, 1)
    assert not is_legal(written, get("b", None, 2, 3))
    assert is_legal(written, Operation(client="b", kind="get", key="k", called=2, returned=3, outcome="unknown"))
    assert not is_legal(written, cas("b", None, "2", 2, 3))
    assert is_legal(written, cas("b", None, "2", 2, 3, outcome="unknown"))


def test_an_unknown_write_may_happen_late_early_or_never_but_once() -> None:
    first, lost = put("a", "1", 0, 1), put("b", "2", 0, 1, outcome="unknown")
    assert is_legal(first, lost, get("c", "1", 2, 3))
    assert is_legal(first, lost, get("c", "2", 2, 3))
    assert is_legal(first, lost, get("c", "1", 2, 3), get("c", "2", 90, 91))
    assert not is_legal(first, lost, get("c", "2", 2, 3), get("c", "1", 4, 5))
    third = put("a", "3", 6, 7)
    assert not is_legal(first, lost, get("c", "2", 2, 3), third, get("c", "3", 8, 9), get("c", "2", 10, 11))


def test_an_unknown_write_cannot_happen_before_it_was_called() -> None:
    assert not is_legal(put("a", "1", 0, 1), get("c", "2", 2, 3), put("b", "2", 4, 5, outcome="unknown"))


def test_an_unknown_write_explains_a_refusal() -> None:
    first, refused = put("a", "1", 0, 1), cas("c", "1", "3", 2, 3, outcome="refused")
    assert not is_legal(first, refused)
    assert is_legal(first, put("b", "2", 0, 1, outcome="unknown"), refused)
    assert is_legal(first, delete("b", 0, 1, outcome="unknown"), refused)
    assert is_legal(first, delete("b", 0, 1, outcome="unknown"), get("c", None, 2, 3))


def test_unknown_writes_help_each_other() -> None:
    """b's comparison can only have happened behind a's write, and together they explain what c saw."""
    chain = [put("a", "1", 0, 1, outcome="unknown"), cas("b", "1", "2", 0, 1, outcome="unknown")]
    assert is_legal(*chain, get("c", "2", 5, 6))
    assert not is_legal(chain[1], get("c", "2", 5, 6))
    assert not is_legal(*chain, get("c", "2", 5, 6), get("c", "1", 7, 8))


def test_an_unknown_write_that_nothing_can_need_is_left_out() -> None:
    lost = [put("b", f"lost{n}", 0, 1, outcome="unknown") for n in range(30)]
    definite, unknown = compile_moves(
        settle([put("a", "1", 0, 1), *lost, get("c", "1", 2, 3), get("c", "lost7", 4, 5)])
    )
    assert (len(definite), len(unknown)) == (3, 1)


def test_the_final_log_decides_about_unknown_writes() -> None:
    lost = put("b", "2", 0, 1, outcome="unknown")
    log = [DurableWrite(index=5, kind="put", key="k", value="2"), DurableWrite(index=7, kind="put", key="k", value="3")]
    third = put("a", "3", 4, 6, revision=7, previous_revision=5)
    assert settle([lost, third], log) == [
        put("b", "2", 0, 6, revision=5),  # by the time somebody was told of 7
        third,
    ]
    assert settle([lost], []) == []
    assert settle([lost]) == [lost]


def test_a_write_the_log_places_must_have_happened_by_then() -> None:
    lost = put("b", "2", 0, 1, outcome="unknown")
    log = [DurableWrite(index=5, kind="put", key="k", value="2"), DurableWrite(index=7, kind="put", key="k", value="3")]
    operations = [
        put("x", "1", 0, 1),
        lost,
        put("a", "3", 2, 3, revision=7),
        get("c", "3", 4, 5),
        get("c", "2", 8, 9),
    ]
    assert judge(operations).is_pass  # it may still have been under way
    assert judge(operations, durable=[DurableWrite(index=3, kind="put", key="k", value="1"), *log]).findings
    assert check_zones(settle(operations, log))


def hard(key: str = "k") -> list[Operation]:
    """Wrong, and only after every subset of 14 concurrent writes was tried."""
    writes = [put(f"c{n}", f"{n}", 0, 10, key=key) for n in range(14)]
    return [*writes, cas("a", "0", "x", 11, 12, key=key), cas("a", "1", "y", 13, 14, key=key)]


def test_a_search_out_of_budget_is_undecided_and_that_is_not_a_pass() -> None:
    report = judge(hard(), budget=1000)
    assert report.verdict == "undecided"
    assert not report.is_pass
    assert report.undecided == ["k"]
    assert "undecided: the search of key k ran out of its budget" in str(report)
    assert judge(hard()[6:], budget=10_000).verdict == "violation"


def test_a_violation_elsewhere_outweighs_an_undecided_key() -> None:
    wrong = [put("a", "1", 0, 1, key="w"), get("a", None, 2, 3, key="w")]
    report = judge([*hard(), *wrong], budget=1000)
    assert report.verdict == "violation"
    assert report.undecided == ["k"]


def test_a_stale_read_is_judged_only_for_what_it_promised() -> None:
    history = [
        put("a", "1", 0, 1, revision=1, previous_revision=0),
        put("a", "2", 2, 3, revision=2, previous_revision=1),
    ]
    assert judge([*history, get("b", "1", 4, 5, revision=1, consistency="stale")]).is_pass
    assert not judge([*history, get("b", "1", 4, 5, revision=1, consistency="lease")]).is_pass
    assert not judge([*history, get("b", "9", 4, 5, consistency="stale")]).is_pass


def test_operations_that_touch_in_time_are_concurrent() -> None:
    assert is_legal(put("a", "1", 0, 1), get("b", None, 1, 2))
    assert not check_zones(settle([put("a", "1", 0, 1), get("b", None, 1, 2)]))
    assert not is_legal(put("a", "1", 0, 1), get("b", None, 1.000001, 2))
