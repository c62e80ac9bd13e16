"""Rules of the engine ring that an engine must not be able to talk its way out of: what is planted stands in the ring's
own records, and the engine knows nothing of it."""

from __future__ import annotations

import msgspec
import pytest

from raftkit_core.testing.simulation.engine_node import Asked, RingNode
from raftkit_core.testing.simulation.engine_ring import EngineRing
from raftkit_core.testing.simulation.engine_scenario import EngineScenario
from raftkit_core.testing.simulation.invariants import InvariantBroken
from raftkit_core.types.entry import Entry
from raftkit_core.types.log_id import LogId
from raftkit_core.types.messages import VoteRequest
from raftkit_core.types.vote import LeaderId, Vote


@pytest.fixture
def ring() -> EngineRing:
    ring = EngineRing(EngineScenario(seed=1, voters=3, spares=0, actions=[], seconds=1.0))
    ring.settle()
    return ring


def leader_of(ring: EngineRing) -> RingNode:
    leader = ring.leader()
    assert leader is not None
    return ring.nodes[leader.config.id]


def test_a_follower_commits_only_what_a_leader_has_committed(ring: EngineRing) -> None:
    leader = leader_of(ring)
    follower = next(node for node in ring.nodes.values() if node is not leader)
    assert leader.engine is not None
    last = max(follower.log)
    extra = Entry(LogId(leader.engine.vote.leader_id, last + 1), 0, 1, b"x")
    for node in ring.nodes.values():
        node.log[last + 1] = node.disk.entries[last + 1] = extra
    with pytest.raises(InvariantBroken, match=r"S5 .* which no leader has committed"):
        ring.invariants.committing(follower, follower.committed, extra.log_id)


def test_a_leader_that_lacks_what_is_committed_is_found_by_its_log(ring: EngineRing) -> None:
    leader = leader_of(ring)
    assert leader.engine is not None
    ring.invariants.established(leader, leader.engine.vote)
    del leader.log[1]
    with pytest.raises(InvariantBroken, match="S7"):
        ring.invariants.established(leader, leader.engine.vote)


@pytest.mark.parametrize(
    ("proof_of", "is_asked", "says"),
    [("leader", True, None), ("leader", False, "never asked for"), ("another", True, "within a lease")],
)
def test_only_the_word_of_its_own_leader_ends_a_voters_hold(
    ring: EngineRing, proof_of: str, is_asked: bool, says: str | None
) -> None:
    leader = leader_of(ring)
    voter, candidate = (node for node in ring.nodes.values() if node is not leader)
    assert leader.engine is not None
    now = leader.engine.vote
    if is_asked:
        ring.invariants.handing_over(leader)
    vote = Vote(LeaderId(now.term + 1, candidate.id))
    voter.disk.vote = vote
    proof = now if proof_of == "leader" else msgspec.structs.replace(now, leader_id=LeaderId(now.term, candidate.id))
    request = VoteRequest(vote, voter.held, proof)
    asked = Asked(request, lambda answer: None, ring.clock(voter), ring.now, voter.held, now)
    if says is None:
        ring.invariants.granting(voter, request, asked)
    else:
        with pytest.raises(InvariantBroken, match=f"S22 .* {says}"):
            ring.invariants.granting(voter, request, asked)
