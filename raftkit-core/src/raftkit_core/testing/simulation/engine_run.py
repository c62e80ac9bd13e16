"""Running a scenario on a ring of engines, from its first action to the calm after the last, into a report."""

from __future__ import annotations

import random

from raftkit_core.testing.simulation.engine_actions import join, perform
from raftkit_core.testing.simulation.engine_ring import EngineRing
from raftkit_core.testing.simulation.engine_scenario import EngineScenario, plan
from raftkit_core.testing.simulation.engine_script import Action
from raftkit_core.testing.simulation.invariants import InvariantBroken
from raftkit_core.testing.simulation.report import SeedReport, Violation
from raftkit_core.types.ids import NodeId

FOR_EVER = 1e9
CALM_SECONDS = 3.0
SUCCESSOR_SECONDS = 10.0


def run_seed(seed: int, profile: str = "mixed", *, seconds: float = 15.0) -> SeedReport:
    """The scenario of ``seed``, run."""
    return run(plan(seed, profile, seconds=seconds))


def run(scenario: EngineScenario) -> SeedReport:
    """Run it; a violation is part of the report, nothing is raised but Ctrl-C."""
    violation = None
    ring = None
    try:
        ring = EngineRing(scenario)
        play(ring)
    except Exception as error:
        violation = Violation.of(error, 0.0 if ring is None else round(ring.now, 6))
    return SeedReport(
        ring="engine",
        seed=scenario.seed,
        profile=scenario.profile,
        violation=violation,
        trace_hash="" if ring is None else ring.trace_hash,
        coverage={} if ring is None else dict(sorted(ring.seen.items())),
        simulated_s=0.0 if ring is None else round(ring.now, 6),
        steps=0 if ring is None else ring.steps,
        actions=len(scenario.actions),
        operations=0 if ring is None else ring.operations,
    )


def play(ring: EngineRing) -> None:
    """The actions, then the recovery: V1 and V4 (calm without a write), V11 (nobody campaigns in calm), V2 (it serves).
    With an ending other than "all" only a quorum is left for that (V3).

    Raises: AssertionError (InvariantBroken) for a violation.
    """
    scenario = ring.scenario
    ring.run(scenario.seconds)
    if scenario.ends_early:
        return
    if scenario.purge_at_end:
        _purge_everything(ring)
    dead = _end(ring)
    ring.settle(dead=dead)
    ring.run(1.0)  # a hand-over that was under way may end
    leader = ring.settle(dead=dead)
    if leader.config.id not in leader.effective.nodes:
        raise InvariantBroken(f"S20: {leader.config.id} leads a cluster it was removed from: {ring.describe()}")
    won = ring.seen["election won"]
    ring.run(CALM_SECONDS)
    if ring.seen["election won"] != won:
        raise InvariantBroken(f"V11: an election in calm: {ring.describe()}")
    if not dead:
        _hand_over_to_the_deaf(ring)
    written, read = ring.seen["write accepted"], ring.seen["read confirmed"]
    for number in range(3):
        perform(ring, Action(0.0, "write", count=2))
        perform(ring, Action(0.0, "read"))
        ring.run(0.2 + 0.1 * number)
    ring.settle(dead=dead)
    if ring.seen["write accepted"] == written or ring.seen["read confirmed"] == read:
        raise InvariantBroken(f"V2: nothing is served in calm: {ring.describe()}")
    if not dead:
        _lose_the_leader(ring)
        _let_everybody_vote(ring)
    ring.seen[f"recovered: {scenario.ending}"] += 1


def _hand_over_to_the_deaf(ring: EngineRing) -> None:
    """A hand-over that nobody takes up must end."""
    leader = ring.leader()
    assert leader is not None
    others = [voter for voter in leader.effective.voter_ids if voter != leader.config.id]
    if others:
        each = ring.nodes[leader.config.id]
        ring.deaf[others[0]] = ring.now + 1.0
        leader.handle_transfer_leader(others[0], 0, ring.clock(each))
        ring.carry_out(each)
        ring.run(3.0)
        ring.settle()


def _lose_the_leader(ring: EngineRing) -> None:
    """V5: a leader that dies in calm has a successor in time."""
    leader = ring.leader()
    assert leader is not None
    if len(leader.effective.voter_ids) < 3 or leader.effective.is_joint:
        return
    lost = leader.config.id
    ring.crash(ring.nodes[lost], FOR_EVER, 0)
    ring.dead.add(lost)
    try:
        ring.settle(SUCCESSOR_SECONDS, dead=frozenset({lost}))
    except InvariantBroken as error:
        raise InvariantBroken(f"V5: no successor: {error}") from None
    ring.dead.discard(lost)


def _purge_everything(ring: EngineRing) -> None:
    """The leader takes a snapshot and purges all it may, while somebody does not listen."""
    leader = ring.leader()
    others = [each for each in sorted(ring.nodes) if leader is None or each != leader.config.id]
    if others:
        ring.deaf[random.Random(f"deaf {ring.scenario.seed}").choice(others)] = ring.now + 1.2
    perform(ring, Action(0.0, "write", count=9))
    ring.run(0.4)
    for each in ring.nodes.values():
        if each.engine is not None and each.engine.is_leader:
            each.engine.handle_trigger_snapshot()
            ring.carry_out(each)
    ring.run(0.8)
    for each in ring.nodes.values():
        if each.engine is not None and each.engine.is_leader:
            each.engine.handle_trigger_purge(each.engine.state.log.last_index, ring.clock(each))
            ring.carry_out(each)


def _let_everybody_vote(ring: EngineRing) -> None:
    """V7: in calm the membership can be changed to one in which every node votes, and leaves its joint step."""
    everybody = tuple(sorted(ring.nodes))
    for _ in range(8):
        leader = ring.settle()
        if leader.effective.configs == (everybody,):
            return
        join(ring, leader)
        ring.run(0.5)
    raise InvariantBroken(f"V7: the membership does not become {everybody}: {ring.describe()}")


def _end(ring: EngineRing) -> frozenset[NodeId]:
    """Heal what is to heal, and break for ever what is not; gives who is not waited for."""
    ring.mute.clear()
    ring.deaf.clear()
    ring.heal()
    ending = ring.scenario.ending
    if ending == "all" or not ring.invariants.committed:
        return frozenset()  # or: nothing is committed, so the membership may be known to a single node
    outside = frozenset(ring.nodes) - _core(ring)
    for node_id in sorted(outside):
        if ending == "core_dead":
            ring.dead.add(node_id)
            ring.nodes[node_id].forget()
        elif ending == "core_mute":
            ring.mute[node_id] = FOR_EVER
        else:
            ring.deaf[node_id] = FOR_EVER
    return outside


def _core(ring: EngineRing) -> frozenset[NodeId]:
    """Nodes that are a quorum of every membership that anybody may follow, whoever leads."""
    memberships = []
    for each in ring.nodes.values():
        if each.engine is not None:
            held = each.engine.state.membership
            memberships += [held.effective.membership, held.committed.membership]
    ids = sorted(ring.nodes)
    random.Random(f"core {ring.scenario.seed}").shuffle(ids)
    core: set[NodeId] = set()
    for node_id in ids:
        if all(members.is_quorum(core) for members in memberships if members.configs):
            break
        core.add(node_id)
    return frozenset(core)
