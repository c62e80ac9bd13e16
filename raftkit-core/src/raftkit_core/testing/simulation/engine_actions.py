"""Carrying out the actions of a scenario on a ring of engines."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from raftkit_core.engine.engine import Engine
from raftkit_core.testing.builders import node
from raftkit_core.testing.simulation.engine_node import AskedRead, RingNode
from raftkit_core.testing.simulation.engine_script import Action
from raftkit_core.testing.simulation.stage import FOLLOWER, LEADER
from raftkit_core.types.log_id import LogId
from raftkit_core.types.membership import AddNodes, ReplaceAllVoters

if TYPE_CHECKING:
    from raftkit_core.testing.simulation.engine_ring import EngineRing


def perform(ring: EngineRing, action: Action) -> None:
    """Do it now. What goes to a leader goes to everybody who thinks it is one; what cannot be done is left out."""
    until = ring.now + action.for_s
    node_id = action.node
    if node_id in (LEADER, FOLLOWER):
        leader = ring.leader()
        others = [each for each in sorted(ring.nodes) if leader is None or each != leader.config.id]
        if leader is not None and (node_id == LEADER or not others):
            node_id = leader.config.id
        else:
            node_id = random.Random(action.pick).choice(others)
    match action.kind:
        case "write" | "read" | "lease_read" | "change" | "transfer":
            for each in list(ring.nodes.values()):
                if each.engine is not None and each.engine.is_leader and each.paused_until <= ring.now:
                    _ask_leader(ring, each, each.engine, action)
        case "part":
            _part(ring, random.Random(action.pick), node_id, action.count, until)
        case "ambush_winner" | "ambush_install":
            ring.armed.append((action, until))
        case "crash":
            ring.crash(ring.nodes[node_id], action.for_s, action.pick)
        case "pause":
            ring.nodes[node_id].paused_until = until
            ring.seen["pause"] += 1
        case "cut" | "mute" | "deafen":
            ring.seen["cut off" if action.kind == "cut" else "one-way cut"] += 1
            if action.kind != "deafen":
                ring.mute[node_id] = until
            if action.kind != "mute":
                ring.deaf[node_id] = until
        case "elect" | "snapshot" | "purge":
            each = ring.nodes[node_id]
            if each.engine is None or each.paused_until > ring.now:
                return
            if action.kind == "elect":
                each.engine.handle_elect(ring.clock(each))
            elif action.kind == "snapshot":
                each.engine.handle_trigger_snapshot()
            else:
                state = each.engine.state
                first, last = state.log.first_index, state.log.last_index
                index = random.Random(action.pick).randint(first, max(first, last))
                each.engine.handle_trigger_purge(index, ring.clock(each))
            ring.carry_out(each)


def _part(ring: EngineRing, draw: random.Random, node_id: str, count: int, until: float) -> None:
    """``node_id``, if there is one, on a side of ``count``; otherwise any two sides."""
    ids = sorted(ring.nodes)
    if len(ids) < 2:
        return
    if node_id:
        side = set(node_id.split("+")) & set(ids)
        others = [each for each in ids if each not in side]
        side.update(draw.sample(others, min(len(others), max(0, count - len(side)))))
    else:
        side = set(draw.sample(ids, draw.randint(1, len(ids) - 1)))
    ring.parted.append((frozenset(side), until))
    ring.seen["partition"] += 1


def ambush(ring: EngineRing, action: Action, node_id: str) -> None:
    """What ``action`` has waited for has happened to ``node_id``, this moment. If it names another node, the two
    are alone from now on."""
    draw = random.Random(action.pick)
    ring.seen[action.kind] += 1
    until = ring.now + draw.uniform(0.6, 2.0)
    if action.node:
        _part(ring, draw, f"{node_id}+{action.node}", 2, ring.now + draw.uniform(1.6, 2.4))
        return
    match draw.choice(("part", "part", "crash", "mute")):
        case "crash":
            ring.crash(ring.nodes[node_id], draw.uniform(0.02, 1.0), action.pick)
        case "mute":
            ring.mute[node_id] = until
        case _:
            _part(ring, draw, node_id, draw.randint(1, max(1, (len(ring.nodes) - 1) // 2)), until)


def _ask_leader(ring: EngineRing, each: RingNode, engine: Engine, action: Action) -> None:
    now = ring.clock(each)
    match action.kind:
        case "write":
            ring.operations += 1
            first = engine.handle_client_write([b"%d" % ring.operations] * action.count, now)
            ring.seen["write accepted" if isinstance(first, LogId) else f"write refused: {first.code}"] += 1
        case "read" | "lease_read":
            ring.operations += 1
            by_lease = action.kind == "lease_read"
            request_id = ring.next_request_id()
            each.reads[request_id] = AskedRead(ring.invariants.told, by_lease, ring.now)
            engine.handle_read([request_id], by_lease, now)
        case "change":
            _change(ring, engine, action, now)
        case _:
            engine.handle_transfer_leader(None, 0, now)
    ring.carry_out(each)


def _change(ring: EngineRing, engine: Engine, action: Action, now: float) -> None:
    """Join a spare, then any set of voters; a joint membership is always left first."""
    draw = random.Random(action.pick)
    members = engine.effective
    change: AddNodes | ReplaceAllVoters
    missing = [each for each in ring.nodes if each not in members.nodes]
    if members.is_joint:
        change = ReplaceAllVoters(members.configs[-1])
    elif missing:
        change = AddNodes({missing[0]: node(missing[0])})
    else:
        size = draw.randint(max(1, len(ring.nodes) - 2), len(ring.nodes))
        change = ReplaceAllVoters(tuple(draw.sample(sorted(members.nodes), size)))
    outcome = engine.handle_change_membership(change, retain=draw.random() < 0.5, force=False, store_ids={}, now=now)
    if not isinstance(outcome, LogId):
        ring.seen[f"change refused: {outcome.code}"] += 1


def join(ring: EngineRing, leader: Engine) -> None:
    """One step towards a membership in which every node votes."""
    each = ring.nodes[leader.config.id]
    missing = [other for other in ring.nodes if other not in leader.effective.nodes]
    change = AddNodes({missing[0]: node(missing[0])}) if missing else ReplaceAllVoters(tuple(sorted(ring.nodes)))
    leader.handle_change_membership(change, retain=True, force=False, store_ids={}, now=ring.clock(each))
    ring.carry_out(each)
