"""The role: held, not derived (DESIGN §4). Stepping down drops it without IO and touches neither vote nor log."""

from __future__ import annotations

from raftkit_core.engine.commands import QuitLeader, Respond
from raftkit_core.engine.parts import EngineParts
from raftkit_core.errors import ForwardToLeader, TransferFailed
from raftkit_core.types.metrics import ServerState


class ServerStateHandler:
    def __init__(self, parts: EngineParts) -> None:
        self._parts = parts

    def step_down(self, reason: str, now: float) -> None:
        """Drop leadership and any campaign. Reads that wait are told to look for the leader; writes go on waiting:
        their entries may still commit."""
        parts = self._parts
        parts.candidate = None
        leader = parts.leader
        if leader is not None:
            parts.leader = None
            # Its timer ran out while it led: without a new one it would campaign against its successor at once.
            parts.redraw_election_timeout(now)
            parts.output.push(QuitLeader(leader.session, reason))
            for read in leader.reads:
                parts.output.push(Respond(0, read.request_id, forward_to_leader(parts)))
            if leader.transfer is not None and not leader.transfer.sent and leader.transfer.request_id is not None:
                failure = TransferFailed(
                    f"leadership was lost before the hand-over to {leader.transfer.target}: {reason}"
                )
                parts.output.push(Respond(0, leader.transfer.request_id, failure))
        self.refresh()

    def refresh(self) -> None:
        """Name the role after what is held: after any change of the role or of the effective membership."""
        parts = self._parts
        parts.state.revision += 1
        if parts.leader is not None:
            parts.state.server_state = ServerState.LEADER
        elif parts.candidate is not None:
            parts.state.server_state = ServerState.CANDIDATE
        elif parts.is_voter:
            parts.state.server_state = ServerState.FOLLOWER
        else:
            parts.state.server_state = ServerState.LEARNER


def forward_to_leader(parts: EngineParts) -> ForwardToLeader:
    """The refusal of a node that does not lead, naming the leader if it is a known member."""
    leader = parts.known_leader()
    node = None if leader is None else parts.effective.nodes.get(leader)
    if leader is None or node is None or leader == parts.config.id:
        return ForwardToLeader(
            f"{parts.config.id} does not lead and knows no leader",
            hint="wait for an election, or look at: raftkit status",
        )
    return ForwardToLeader(
        f"{parts.config.id} does not lead; {leader} does", leader=leader, leader_node=node, hint=f"ask {leader}"
    )
