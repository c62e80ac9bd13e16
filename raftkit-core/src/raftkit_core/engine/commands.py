"""Orders of the engine, carried out by the runtime in the order they are emitted.

The log lane (``SaveVote``, ``SaveLease``, ``AppendInputEntries``, ``DeleteConflictLog``, ``PurgeLog``) is written in
order and never waits for anything. Everything else may wait for the lane, never the other way round: ``when`` is the
io_id that must be flushed first (0: at once).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, TypeAlias

import msgspec

from raftkit_core.types.entry import Entry
from raftkit_core.types.ids import IoId, NodeId, RequestId
from raftkit_core.types.log_id import LogId
from raftkit_core.types.membership import Node
from raftkit_core.types.messages import TransferLeaderRequest, VoteRequest
from raftkit_core.types.snapshot import SnapshotMeta
from raftkit_core.types.vote import Vote


class SaveVote(msgspec.Struct, frozen=True, gc=False):
    """Log lane: make the vote durable (``LogBatch.vote``)."""

    when: ClassVar[IoId] = 0
    io_id: IoId
    vote: Vote


class SaveLease(msgspec.Struct, frozen=True, gc=False):
    """Log lane: make the largest acknowledged lease durable (``save_identity``), before it is acknowledged."""

    when: ClassVar[IoId] = 0
    io_id: IoId
    lease_ms: int


class AppendInputEntries(msgspec.Struct, frozen=True, gc=False):
    """Log lane: append (``LogBatch.entries``)."""

    when: ClassVar[IoId] = 0
    io_id: IoId
    entries: Sequence[Entry]


class DeleteConflictLog(msgspec.Struct, frozen=True, gc=False):
    """Log lane: remove ``since`` and everything after (``LogBatch.truncate_since``). Answers no client."""

    when: ClassVar[IoId] = 0
    io_id: IoId
    since: int


class PurgeLog(msgspec.Struct, frozen=True, gc=False):
    """Log lane: remove up to ``upto`` (``LogBatch.purge_upto``); it may lie beyond the last entry."""

    when: ClassVar[IoId] = 0
    io_id: IoId
    upto: LogId


class SendVote(msgspec.Struct, frozen=True):
    """Ask ``targets`` for their votes (``RaftNetwork.vote``), after the own vote is durable."""

    when: IoId
    targets: tuple[NodeId, ...]
    request: VoteRequest


class SendPreVote(msgspec.Struct, frozen=True):
    """Ask whether ``targets`` would vote (``RaftNetwork.pre_vote``)."""

    when: ClassVar[IoId] = 0
    targets: tuple[NodeId, ...]
    request: VoteRequest


class Replicate(msgspec.Struct, frozen=True, gc=False):
    """Send entries ``(prev_log_id, last_index]`` to ``target`` (``RaftNetwork.append_entries``).

    As many requests as their bytes need, in order; one only, with what fits, for a probe (``single``). With
    ``last_index == prev_log_id.index`` the request is empty. ``seq`` and ``sent_at`` come back with the answer: they
    say which reads and which lease it confirms.
    """

    when: IoId
    session: int
    target: NodeId
    epoch: int
    seq: int
    sent_at: float
    vote: Vote
    prev_log_id: LogId | None
    last_index: int
    leader_commit: LogId | None
    single: bool


class ReplicateSnapshot(msgspec.Struct, frozen=True):
    """Send the current snapshot to ``target`` (``RaftNetwork.install_snapshot``)."""

    when: IoId
    session: int
    target: NodeId
    epoch: int
    seq: int
    sent_at: float
    vote: Vote


class SendHeartbeat(msgspec.Struct, frozen=True):
    """Send a heartbeat to ``peers`` (``RaftNetwork.heartbeat``), each with what is known to match there."""

    when: IoId
    session: int
    peers: tuple[tuple[NodeId, LogId | None], ...]
    seq: int
    sent_at: float
    vote: Vote
    leader_commit: LogId | None
    reverted: tuple[tuple[NodeId, str], ...] = ()
    """Peers that lost what they had acknowledged, with the store that did: they are told."""


class ReplicateCommitted(msgspec.Struct, frozen=True, gc=False):
    """A peer with nothing in flight has not heard of a raised commit: ``on_commit_notice_due`` soon.

    Mostly the next append says it first. Ordered once, until that was called.
    """

    when: ClassVar[IoId] = 0
    session: int


class ConfirmRead(SendHeartbeat, frozen=True):
    """A round of heartbeats that confirms the leader for reads that arrived before it."""


class SendTransferLeader(msgspec.Struct, frozen=True):
    """Ask ``target`` to campaign at once (``RaftNetwork.transfer_leader``)."""

    when: ClassVar[IoId] = 0
    session: int
    target: NodeId
    request: TransferLeaderRequest


class RebuildReplicationStreams(msgspec.Struct, frozen=True):
    """Have exactly these streams; close the others. Closing never waits for a peer."""

    when: ClassVar[IoId] = 0
    session: int
    targets: tuple[tuple[NodeId, Node], ...]


class BecomeLeader(msgspec.Struct, frozen=True, gc=False):
    """This node leads from now on, under ``vote``."""

    when: ClassVar[IoId] = 0
    session: int
    vote: Vote


class QuitLeader(msgspec.Struct, frozen=True, gc=False):
    """This node leads no more: end streams and transfers."""

    when: ClassVar[IoId] = 0
    session: int
    reason: str


class Commit(msgspec.Struct, frozen=True, gc=False):
    """Apply entries ``since..upto``: they are committed, and durable here (``RaftStateMachine.apply``).

    The log is told as well, without a flush of its own: it rides with the next write (``LogBatch.committed``).
    """

    when: ClassVar[IoId] = 0
    since: int
    upto: LogId


class BuildSnapshot(msgspec.Struct, frozen=True, gc=False):
    """Snapshot the machine (``RaftStateMachine.snapshot``), then ``on_snapshot_built``."""

    when: ClassVar[IoId] = 0


class RetireStore(msgspec.Struct, frozen=True, gc=False):
    """Mark this store as retired, durably, and stop: it went back behind what it had acknowledged."""

    when: ClassVar[IoId] = 0
    reason: str


class InstallSnapshot(msgspec.Struct, frozen=True):
    """Publish and restore the received snapshot, then ``on_snapshot_installed``."""

    when: ClassVar[IoId] = 0
    request_id: RequestId
    meta: SnapshotMeta


class Respond(msgspec.Struct, frozen=True):
    """Answer ``request_id``. With ``under`` the answer is dropped if that is no longer this node's vote by then."""

    when: IoId
    request_id: RequestId
    response: Any
    under: Vote | None = None


LogCommand: TypeAlias = SaveVote | SaveLease | AppendInputEntries | DeleteConflictLog | PurgeLog
Command: TypeAlias = (
    LogCommand
    | SendVote
    | SendPreVote
    | Replicate
    | ReplicateSnapshot
    | SendHeartbeat
    | ReplicateCommitted
    | ConfirmRead
    | SendTransferLeader
    | RebuildReplicationStreams
    | BecomeLeader
    | QuitLeader
    | Commit
    | BuildSnapshot
    | InstallSnapshot
    | RetireStore
    | Respond
)
