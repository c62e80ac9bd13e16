"""What enters the log at all: limits, conditions, and who may append."""

from __future__ import annotations

import pytest
from leading import BLANK, LEADING, THREE, ZERO, ack, leading, write

from raftkit_core.errors import ConditionFailed, ForwardToLeader, Overloaded
from raftkit_core.testing.builders import elect, engine_with, flush, vote
from raftkit_core.types.condition import WriteCondition
from raftkit_core.types.log_id import LogId

# --- limits -----------------------------------------------------------------------------------------------------------


def test_overloaded_is_definite_and_ends_when_something_is_committed() -> None:
    engine = leading(max_uncommitted_bytes=10)
    write(engine, payload=b"12345678")
    refusal = engine.handle_client_write([b"123"], 0.0)
    assert isinstance(refusal, Overloaded)
    assert refusal.outcome == "not_applied"
    assert engine.take_commands() == []
    assert engine.state.log.last_index == 2
    flush(engine)
    ack(engine, "n2", 2)
    write(engine, payload=b"123")


def test_one_entry_larger_than_the_limit_still_gets_through_beside_the_blank() -> None:
    engine = engine_with("n1", THREE, log=[ZERO], committed=ZERO, settings={"max_uncommitted_bytes": 10})
    elect(engine)
    write(engine, payload=b"12345678901")


def test_a_follower_says_who_leads_and_appends_nothing() -> None:
    engine = engine_with("n1", THREE, vote=vote(3, "n2", committed=True), log=[ZERO], committed=ZERO)
    refusal = engine.handle_client_write([b"x"], 0.0)
    assert isinstance(refusal, ForwardToLeader)
    assert (refusal.leader, refusal.leader_node) == ("n2", THREE.nodes["n2"])
    assert engine.take_commands() == []


def test_a_node_that_knows_no_leader_names_none() -> None:
    for known in (vote(3, "n2"), vote(3, "n1", committed=True), vote(3, "n9", committed=True)):
        engine = engine_with("n1", THREE, vote=known, log=[ZERO], committed=ZERO)
        refusal = engine.handle_client_write([b"x"], 0.0)
        assert isinstance(refusal, ForwardToLeader)
        assert refusal.leader is None


# --- writes under a condition -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("condition", "is_met"),
    [
        (WriteCondition(), True),
        (WriteCondition(leader_id=LEADING.leader_id, last_log_id=BLANK, membership_log_id=ZERO), True),
        (WriteCondition(leader_id=vote(9).leader_id), False),
        (WriteCondition(last_log_id=ZERO), False),
        (WriteCondition(membership_log_id=BLANK), False),
    ],
)
def test_a_write_whose_condition_is_not_met_enters_no_log(condition: WriteCondition, is_met: bool) -> None:
    engine = leading()
    result = engine.handle_client_write([b"x"], 0.0, condition)
    assert isinstance(result, LogId if is_met else ConditionFailed)
    assert bool(engine.take_commands()) is is_met
