"""What a node says about itself: never through the engine's queue, so that a slow disk cannot silence it."""

from __future__ import annotations

from enum import Enum

import msgspec

from raftkit_core.types.ids import NodeId
from raftkit_core.types.log_id import LogId
from raftkit_core.types.membership import StoredMembership
from raftkit_core.types.vote import ZERO_VOTE, Vote


class ServerState(Enum):
    """Role of a node. A node leads iff it holds a ``Leader`` object; the role is never derived from the vote."""

    LEARNER = "learner"
    FOLLOWER = "follower"
    CANDIDATE = "candidate"
    LEADER = "leader"
    SHUTDOWN = "shutdown"


class PeerMetrics(msgspec.Struct, frozen=True):
    """The leader's view of one peer.

    ``lag`` counts entries behind the leader's last; ``last_contact_ms`` is the age of its last answer (None: never).
    """

    matching: LogId | None = None
    lag: int = 0
    state: str = "probe"
    last_contact_ms: int | None = None
    last_error: str | None = None


class RaftMetrics(msgspec.Struct, frozen=True):
    """Everything, at one moment. Positions are finished IO, except ``last_log_id`` and ``committed``."""

    id: NodeId = ""
    running: bool = True
    fatal: str | None = None
    state: ServerState = ServerState.LEARNER
    current_term: int = 0
    vote: Vote = ZERO_VOTE
    current_leader: NodeId | None = None
    last_log_id: LogId | None = None
    flushed: LogId | None = None
    committed: LogId | None = None
    last_applied: LogId | None = None
    snapshot: LogId | None = None
    purged: LogId | None = None
    membership: StoredMembership = StoredMembership()
    committed_membership: StoredMembership = StoredMembership()
    replication: dict[NodeId, PeerMetrics] | None = None
    millis_since_quorum_ack: int | None = None
    millis_since_leader_contact: int | None = None
    cluster_id: str | None = None
    needs_rejoin: str | None = None
    pending_writes: int = 0

    @property
    def last_log_index(self) -> int | None:
        return None if self.last_log_id is None else self.last_log_id.index

    @property
    def applied_index(self) -> int | None:
        return None if self.last_applied is None else self.last_applied.index


class RaftDataMetrics(msgspec.Struct, frozen=True):
    """The part of :class:`RaftMetrics` that moves with every write."""

    last_log_id: LogId | None = None
    committed: LogId | None = None
    last_applied: LogId | None = None
    snapshot: LogId | None = None
    purged: LogId | None = None
    replication: dict[NodeId, PeerMetrics] | None = None
    millis_since_quorum_ack: int | None = None


class RaftServerMetrics(msgspec.Struct, frozen=True):
    """The part of :class:`RaftMetrics` that moves with elections and membership changes."""

    id: NodeId = ""
    vote: Vote = ZERO_VOTE
    state: ServerState = ServerState.LEARNER
    current_leader: NodeId | None = None
    membership: StoredMembership = StoredMembership()


class NodeEvent(msgspec.Struct, frozen=True):
    """Something that happened to a node. ``number`` grows from event to event, also over restarts.

    ``kind``: role, leader, election, membership, snapshot, stall or fatal. ``at_ms`` is the node's own wall clock.
    """

    number: int
    at_ms: int
    term: int
    kind: str
    message: str


class NodeCounters(msgspec.Struct):
    """How often something happened since the process started."""

    elections_started: int = 0
    elections_won: int = 0
    elections_lost: int = 0
    leader_changes: int = 0
    snapshots: int = 0
    storage_stalls: int = 0
    plugin_stalls: int = 0
