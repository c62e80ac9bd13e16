"""A campaign under way: whom was asked, who has granted."""

from __future__ import annotations

from raftkit_core.types.ids import NodeId
from raftkit_core.types.log_id import LogId
from raftkit_core.types.membership import Membership
from raftkit_core.types.vote import Vote


class Candidate:
    """Counts grants for ``vote``. With ``is_pre_vote`` nothing durable stands behind it."""

    __slots__ = ("granted", "is_pre_vote", "last_log_id", "membership", "started_at", "transfer_of", "vote", "vote_io")

    def __init__(
        self,
        vote: Vote,
        last_log_id: LogId | None,
        membership: Membership,
        started_at: float,
        *,
        vote_io: int = 0,
        is_pre_vote: bool = False,
        transfer_of: Vote | None = None,
    ) -> None:
        self.vote = vote
        self.last_log_id = last_log_id
        self.membership = membership
        self.started_at = started_at
        self.vote_io = vote_io
        """The own grant counts only once this write is flushed."""
        self.is_pre_vote = is_pre_vote
        self.transfer_of = transfer_of
        self.granted: set[NodeId] = set()

    def grant(self, node_id: NodeId) -> bool:
        """Record a grant; says whether a quorum of every configuration has granted."""
        self.granted.add(node_id)
        return self.membership.is_quorum(self.granted)
