"""Quorum positions against brute force over all subsets (openraft.md §6 item 1)."""

from __future__ import annotations

from itertools import combinations

from hypothesis import given, settings
from hypothesis import strategies as st

from raftkit_core.engine.quorum import quorum_log_id, quorum_value
from raftkit_core.testing.builders import log_id
from raftkit_core.types.log_id import LogId
from raftkit_core.types.membership import Membership, Node

VOTERS = ["n1", "n2", "n3", "n4", "n5", "n6"]
CONFIGS = st.lists(st.lists(st.sampled_from(VOTERS), min_size=1, unique=True), min_size=1, max_size=3)
POSITIONS = st.dictionaries(
    st.sampled_from(VOTERS),
    st.one_of(st.none(), st.builds(log_id, st.integers(1, 3), st.just("n1"), st.integers(0, 5))),
)


def quorums(configs: list[list[str]]) -> list[set[str]]:
    members = Membership.of(configs, {voter: Node(voter) for voter in VOTERS})
    subsets = [set(chosen) for size in range(len(VOTERS) + 1) for chosen in combinations(VOTERS, size)]
    return [subset for subset in subsets if members.is_quorum(subset)]


@settings(max_examples=40, deadline=None)
@given(CONFIGS, POSITIONS)
def test_the_quorum_position_is_the_greatest_that_some_quorum_has_reached(
    configs: list[list[str]], positions: dict[str, LogId | None]
) -> None:
    reached = [
        min(held)
        for quorum in quorums(configs)
        if len(held := [at for voter in quorum if (at := positions.get(voter)) is not None]) == len(quorum)
    ]
    assert quorum_log_id(configs, positions) == max(reached, default=None)


@settings(max_examples=40, deadline=None)
@given(CONFIGS, st.dictionaries(st.sampled_from(VOTERS), st.floats(0, 9)))
def test_the_quorum_value_is_the_greatest_that_some_quorum_has_reached(
    configs: list[list[str]], values: dict[str, float]
) -> None:
    reached = [min(values.get(voter, -1.0) for voter in quorum) for quorum in quorums(configs)]
    assert quorum_value(configs, values, -1.0) == max(reached)


def test_nothing_is_reached_without_a_configuration() -> None:
    assert quorum_log_id([], {"n1": log_id(1, "n1", 1)}) is None
    assert quorum_value([], {"n1": 5.0}, -1.0) == -1.0
    assert not Membership().is_quorum(["n1"])


def test_d01_a_minority_ahead_twice_does_not_commit() -> None:
    """The seed's incremental array reported 3 at the end, held by two of five."""
    configs = [["a", "b", "c", "d", "e"]]
    positions: dict[str, LogId | None] = {}
    reached = []
    for voter, index in (("a", 1), ("b", 2), ("a", 6), ("c", 3)):
        positions[voter] = log_id(1, "n1", index)
        reached.append(quorum_log_id(configs, positions))
    assert reached == [None, None, None, log_id(1, "n1", 2)]
