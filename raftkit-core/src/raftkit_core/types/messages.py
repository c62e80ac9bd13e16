"""Requests and answers between peers. Every answer names the store that gave it, so that only a member's counts."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from raftkit_core.types.entry import Entry
from raftkit_core.types.ids import PROTOCOL_MAX, PROTOCOL_MIN, NodeId
from raftkit_core.types.log_id import LogId
from raftkit_core.types.snapshot import SnapshotMeta
from raftkit_core.types.vote import Vote


class HelloRequest(msgspec.Struct, frozen=True, array_like=True):
    """Opens every connection, per group, before any message of that group is believed.

    ``target_store_id`` is the store the sender's membership binds the target to (None: unbound or unknown). A pristine
    node adopts ``cluster_id`` from the first hello that names its node id *and* its store id.
    """

    cluster: str
    cluster_id: str | None
    group: str
    node_id: NodeId
    store_id: str
    target_node_id: NodeId
    target_store_id: str | None
    single_term_leader: bool
    protocol_min: int = PROTOCOL_MIN
    protocol_max: int = PROTOCOL_MAX


class HelloResponse(msgspec.Struct, frozen=True, array_like=True):
    """The answer to a hello: who is here."""

    cluster: str
    cluster_id: str | None
    group: str
    node_id: NodeId
    store_id: str
    single_term_leader: bool
    protocol_min: int = PROTOCOL_MIN
    protocol_max: int = PROTOCOL_MAX


class AppendEntriesRequest(msgspec.Struct, frozen=True, gc=False):
    """Entries after ``prev_log_id`` (paper §5.3), or none. ``lease_ms``: withhold votes this long from receipt."""

    vote: Vote
    prev_log_id: LogId | None
    entries: Sequence[Entry]
    leader_commit: LogId | None
    lease_ms: int


class HeartbeatRequest(msgspec.Struct, frozen=True, array_like=True):
    """An append without entries on its own lane. ``prev_log_id`` is what the leader knows to match.

    ``reverted_store_id`` tells that store that it lost what it had acknowledged (``LogReversion``): it retires itself.
    """

    vote: Vote
    prev_log_id: LogId | None
    leader_commit: LogId | None
    lease_ms: int
    reverted_store_id: str | None = None


class Success(msgspec.Struct, frozen=True, array_like=True, tag=0, gc=False):
    """The vote and every accepted entry up to ``matching`` are durable."""

    store_id: str
    matching: LogId | None


class Conflict(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """The log does not hold the request's prev log id (``index``). ``last_log_id`` is the end of this node's log."""

    store_id: str
    index: int
    last_log_id: LogId | None


class HigherVote(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """Refused: this node follows ``vote``."""

    store_id: str
    vote: Vote


class Busy(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """The vote was accepted and is durable, the entries were not taken: try again later. Changes no progress."""

    store_id: str


AppendEntriesResponse = Success | Conflict | HigherVote | Busy


class VoteRequest(msgspec.Struct, frozen=True, array_like=True):
    """Asks for a vote (paper §5.2). ``transfer_of`` is the vote of the leader that handed over, if one did."""

    vote: Vote
    last_log_id: LogId | None
    transfer_of: Vote | None = None


class VoteResponse(msgspec.Struct, frozen=True, array_like=True):
    """``granted`` counts only together with ``vote`` equal to the candidate's."""

    store_id: str
    vote: Vote
    granted: bool
    last_log_id: LogId | None


class InstallSnapshotRequest(msgspec.Struct, frozen=True):
    """Announces a snapshot; its bytes are streamed beside it and resume by offset."""

    vote: Vote
    meta: SnapshotMeta


class InstallSnapshotResponse(msgspec.Struct, frozen=True, array_like=True):
    """``vote`` greater than the request's: refused. Else everything up to the snapshot is durable and restored."""

    store_id: str
    vote: Vote


class TransferLeaderRequest(msgspec.Struct, frozen=True, array_like=True):
    """The leader of ``vote`` asks the target to campaign at once if it holds ``last_log_id`` durably."""

    vote: Vote
    last_log_id: LogId | None


class TransferLeaderResponse(msgspec.Struct, frozen=True, array_like=True):
    store_id: str
    accepted: bool


class ReadIndexRequest(msgspec.Struct, frozen=True, array_like=True):
    """A follower asks the leader for a log id that makes its local read linearizable."""

    policy: str
    timeout_ms: int


class ReadIndexResponse(msgspec.Struct, frozen=True, array_like=True):
    read_log_id: LogId | None


class ForwardRequest(msgspec.Struct, frozen=True, array_like=True):
    """An operation another node was asked for: ``operation`` names it, ``body`` is its MessagePack argument.

    At most one hop: the receiver answers ``ForwardToLeader`` rather than forwarding again. The remaining deadline
    travels.
    """

    operation: str
    body: bytes
    timeout_ms: int


class ForwardResponse(msgspec.Struct, frozen=True, array_like=True):
    """The operation's MessagePack result. A failure travels as the transport's error answer instead."""

    body: bytes
