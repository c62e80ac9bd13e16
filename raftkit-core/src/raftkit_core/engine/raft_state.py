"""What the node believes: the state *after* every queued command has been carried out.

``purged ≤ committed ≤ last_log_id`` and ``submitted ≤ committed`` (checked by :meth:`RaftState.check`). ``purged`` is
at most where the snapshot ends, or what a durable machine has applied.
What has already reached the disk is in :mod:`.io_state`.
"""

from __future__ import annotations

from raftkit_core.engine.io_state import IoState
from raftkit_core.engine.log_id_list import LogIdList
from raftkit_core.engine.membership_state import MembershipState
from raftkit_core.types.log_id import LogId, index_of
from raftkit_core.types.metrics import ServerState
from raftkit_core.types.snapshot import SnapshotMeta
from raftkit_core.types.vote import ZERO_LEADER_ID, ZERO_VOTE, LeaderId, Vote


class RaftState:
    """Beliefs of one node. Times are seconds of the node's monotonic clock."""

    __slots__ = (
        "accepted",
        "accepted_under",
        "applied",
        "committed",
        "election_deadline",
        "hold_until",
        "io",
        "largest_lease_ms",
        "last_contact",
        "last_time_ms",
        "lease_io",
        "log",
        "log_bytes",
        "membership",
        "revision",
        "server_state",
        "snapshot",
        "snapshot_mark",
        "submitted",
        "vote",
        "vote_io",
    )

    def __init__(
        self,
        *,
        vote: Vote = ZERO_VOTE,
        log: LogIdList | None = None,
        committed: LogId | None = None,
        applied: LogId | None = None,
        membership: MembershipState | None = None,
        snapshot: SnapshotMeta | None = None,
        last_time_ms: int = 0,
        largest_lease_ms: int = 0,
    ) -> None:
        self.vote = vote
        self.vote_io = 0
        """The write that makes ``vote`` durable."""
        self.log = LogIdList() if log is None else log
        self.committed = committed
        self.submitted = applied
        """What the state machine has been told to apply."""
        self.applied = applied
        """What the state machine has applied."""
        self.membership = MembershipState() if membership is None else membership
        self.snapshot = snapshot
        self.io = IoState(self.log.last)
        self.server_state = ServerState.LEARNER
        self.revision = 0
        """Grows whenever vote, role or effective membership may have changed."""
        self.last_time_ms = last_time_ms
        """Cluster time of the last entry seen; never falls."""
        self.accepted: LogId | None = None
        """The last position the leader ``accepted_under`` verified here: limits what a follower may commit."""
        self.accepted_under: LeaderId = ZERO_LEADER_ID
        self.last_contact: float | None = None
        self.election_deadline = 0.0
        self.hold_until = 0.0
        """Until then no vote is granted and no campaign is started."""
        self.largest_lease_ms = largest_lease_ms
        self.lease_io = 0
        self.log_bytes = 0
        """Payload bytes appended in this life, and how many of them the last snapshot covers (``snapshot_mark``)."""
        self.snapshot_mark = 0

    @property
    def last_log_id(self) -> LogId | None:
        return self.log.last

    @property
    def is_pristine(self) -> bool:
        """Never voted, never held an entry."""
        return self.log.last is None and self.vote == ZERO_VOTE

    def has_log_id(self, log_id: LogId) -> bool:
        """Whether this log holds ``log_id``. Anything at or below ``committed`` does: committed entries are equal."""
        committed = self.committed
        if committed is not None and log_id.index <= committed.index:
            known = self.log.get(log_id.index)
            # A leader that contradicts a committed entry means data was lost somewhere: stop, never overwrite.
            assert known is None or known == log_id, f"{log_id} contradicts committed {known}"
            return True
        return self.log.get(log_id.index) == log_id

    def accept(self, leader_id: LeaderId, log_id: LogId | None) -> None:
        """The leader ``leader_id`` verified this log up to ``log_id``; raised only, and void for another leader."""
        accepted = self.accepted
        if self.accepted_under != leader_id:
            self.accepted_under = leader_id
            self.accepted = log_id
        elif accepted is None or (log_id is not None and log_id > accepted):
            self.accepted = log_id

    def check(self) -> None:
        """The one inequality that orders all positions."""
        committed = index_of(self.committed)
        assert index_of(self.log.purged) <= max(committed, -1), f"purged {self.log.purged} beyond {self.committed}"
        assert committed <= self.log.last_index, f"committed {self.committed} beyond the log {self.log.last}"
        assert index_of(self.submitted) <= committed, f"applied {self.submitted} beyond committed {self.committed}"
