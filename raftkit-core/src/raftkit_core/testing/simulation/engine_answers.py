"""What leaves a node of a ring as an answer, and what the rules say about it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from raftkit_core.engine.commands import Respond
from raftkit_core.engine.engine import Engine
from raftkit_core.testing.simulation.engine_node import Asked, RingNode
from raftkit_core.types.log_id import LogId, log_id_lt
from raftkit_core.types.messages import (
    Busy,
    Conflict,
    HigherVote,
    InstallSnapshotResponse,
    Success,
    VoteRequest,
    VoteResponse,
)

if TYPE_CHECKING:
    from raftkit_core.testing.simulation.engine_ring import EngineRing


class RingAnswers:
    """Answers to peers and to readers."""

    def __init__(self, ring: EngineRing) -> None:
        self.ring = ring

    def respond(self, each: RingNode, engine: Engine, command: Respond) -> None:
        read = each.reads.pop(command.request_id, None)
        if read is not None:
            if isinstance(command.response, LogId):
                self.ring.seen["read by lease" if read.by_lease else "read confirmed"] += 1
                clocks = {node_id: self.ring.clock(node) for node_id, node in self.ring.nodes.items()}
                self.ring.invariants.read(each, command.response, read, clocks)
            else:
                self.ring.seen["read refused"] += 1
            return
        asked = each.requests.pop(command.request_id, None)
        if asked is None or (command.under is not None and command.under != engine.vote):
            return
        self._check_answer(each, engine, command, asked)
        asked.reply(command.response)

    def _check_answer(self, each: RingNode, engine: Engine, command: Respond, asked: Asked) -> None:
        invariants, request = self.ring.invariants, asked.request
        match command.response:
            case VoteResponse(granted=granted):
                if granted and not asked.is_pre_vote:
                    invariants.granting(each, request, asked)
                elif granted:
                    invariants.willing(each, request, asked.held)
                elif not granted:
                    invariants.refusing(each, request, asked)
                    self._count_refusal(engine, request, asked)
            case Success(matching=matching):
                assert command.under is not None
                invariants.acknowledged(each, command.under, matching)
                invariants.promised(each, request.vote.leader_id, matching)
                self._promise(each, asked)
            case Busy():
                self.ring.seen["answered busy"] += 1
                invariants.answering(each, request.vote)
                self._promise(each, asked)
            case Conflict():
                self.ring.seen["log conflict"] += 1
                invariants.answering(each, request.vote)
                self._promise(each, asked)
            case HigherVote(vote=vote):
                self.ring.seen["higher vote"] += 1
                invariants.answering(each, vote)
            case InstallSnapshotResponse(vote=vote):
                if vote == request.vote:
                    invariants.acknowledged(each, vote, request.meta.last_log_id)
                    invariants.promised(each, vote.leader_id, request.meta.last_log_id)
                else:
                    invariants.answering(each, vote)
            case _:
                pass

    def _promise(self, each: RingNode, asked: Asked) -> None:
        lease_s = max(asked.request.lease_ms, self.ring.config.leader_lease_ms) / 1000
        self.ring.invariants.followed(each, asked.request.vote.leader_id, asked.arrived_at + lease_s, asked.at)

    def _count_refusal(self, engine: Engine, request: VoteRequest, asked: Asked) -> None:
        kind = "pre-vote" if asked.is_pre_vote else "vote"
        if asked.arrived_at < engine.state.hold_until or engine.is_leader:
            self.ring.seen[f"{kind} refused by lease"] += 1
        elif log_id_lt(request.last_log_id, engine.state.log.last):
            self.ring.seen[f"{kind} refused by log"] += 1
        else:
            self.ring.seen[f"{kind} refused by vote"] += 1
