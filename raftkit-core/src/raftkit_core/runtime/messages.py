"""What reaches the loop: ``RaftMsg`` from users and peers, ``Notification`` (past tense) from own effects."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import msgspec

from raftkit_core.engine.commands import Replicate, ReplicateSnapshot, SendHeartbeat
from raftkit_core.engine.engine import Engine
from raftkit_core.errors import RaftError
from raftkit_core.types.condition import WriteCondition
from raftkit_core.types.ids import IoId, NodeId, RequestId
from raftkit_core.types.log_id import LogId
from raftkit_core.types.membership import ChangeMembers, Membership
from raftkit_core.types.messages import (
    AppendEntriesRequest,
    AppendEntriesResponse,
    HeartbeatRequest,
    InstallSnapshotRequest,
    InstallSnapshotResponse,
    TransferLeaderRequest,
    TransferLeaderResponse,
    VoteRequest,
    VoteResponse,
)
from raftkit_core.types.snapshot import SnapshotMeta
from raftkit_core.types.vote import Vote

# --- from users and peers ---------------------------------------------------------------------------------------------


class ClientWriteResponse(msgspec.Struct, frozen=True, eq=False, gc=False):
    """What became of a write: its log id, the machine's result, and the membership if it was a change of it."""

    log_id: LogId
    data: Any
    membership: Membership | None = None


class ClientWrite(msgspec.Struct):
    """One or more writes, in columns: the envelope of each, the command as its body decodes (None: not known), the
    future of its result or its error, and for how many seconds from ``since`` on that is waited for. ``is_joined``: of
    several callers, who have nothing to do with each other; else one request, taken or refused as a whole."""

    payloads: list[bytes]
    commands: list[Any]
    futures: list[asyncio.Future[Any]]
    timeouts: list[float]
    since: float
    condition: WriteCondition | None = None
    is_joined: bool = False

    def is_whole(self) -> bool:
        """Whether each has its own future: nobody was interrupted between putting in one and the other."""
        return len(self.payloads) == len(self.commands) == len(self.futures) == len(self.timeouts)

    def size_bytes(self) -> int:
        return sum(map(len, self.payloads))

    def part(self, start: int, stop: int) -> ClientWrite:
        """Some of them, as they are here."""
        return ClientWrite(
            self.payloads[start:stop],
            self.commands[start:stop],
            self.futures[start:stop],
            self.timeouts[start:stop],
            self.since,
            self.condition,
            self.is_joined,
        )


class Read(msgspec.Struct, frozen=True):
    request_id: RequestId
    by_lease: bool


class Initialize(msgspec.Struct, frozen=True):
    request_id: RequestId
    membership: Membership


class ChangeMembershipRequest(msgspec.Struct, frozen=True):
    change: ChangeMembers
    retain: bool
    force: bool
    store_ids: Mapping[NodeId, str]
    future: asyncio.Future[Any]
    deadline: float


class TransferLeaderTo(msgspec.Struct, frozen=True):
    request_id: RequestId
    to: NodeId | None


class AppendEntriesArrived(msgspec.Struct, frozen=True):
    request_id: RequestId
    request: AppendEntriesRequest


class HeartbeatArrived(msgspec.Struct, frozen=True):
    request_id: RequestId
    request: HeartbeatRequest


class VoteArrived(msgspec.Struct, frozen=True):
    request_id: RequestId
    request: VoteRequest
    store_id: str
    is_pre_vote: bool


class SnapshotArrived(msgspec.Struct, frozen=True):
    """All bytes of the snapshot are here."""

    request_id: RequestId
    request: InstallSnapshotRequest


class TransferArrived(msgspec.Struct, frozen=True):
    request_id: RequestId
    request: TransferLeaderRequest


class ExternalRequest(msgspec.Struct, frozen=True):
    """Run a function in the loop, with the engine to look at. ``future`` is who waits for it, if anybody does."""

    function: Callable[[Engine, float], None]
    future: asyncio.Future[Any] | None = None


RaftMsg: TypeAlias = (
    ClientWrite
    | Read
    | Initialize
    | ChangeMembershipRequest
    | TransferLeaderTo
    | AppendEntriesArrived
    | HeartbeatArrived
    | VoteArrived
    | SnapshotArrived
    | TransferArrived
    | ExternalRequest
)

# --- from the node's own effects --------------------------------------------------------------------------------------


class Ticked(msgspec.Struct, frozen=True):
    """The ticker's next point on its grid."""


class LogFlushed(msgspec.Struct, frozen=True):
    io_id: IoId


class Applied(msgspec.Struct, frozen=True):
    log_id: LogId


class CommitNoticeDue(msgspec.Struct, frozen=True):
    """The moment is over in which an append may say what was committed."""


class VoteAnswered(msgspec.Struct, frozen=True):
    sender: Vote
    target: NodeId
    response: VoteResponse
    is_pre_vote: bool


class ReplicationProgress(msgspec.Struct, frozen=True):
    command: Replicate
    response: AppendEntriesResponse


class ReplicationFailed(msgspec.Struct, frozen=True):
    """A request failed, and the back-off after it is over."""

    session: int
    target: NodeId
    epoch: int


class HeartbeatAnswered(msgspec.Struct, frozen=True):
    command: SendHeartbeat
    target: NodeId
    response: AppendEntriesResponse


class SnapshotSent(msgspec.Struct, frozen=True):
    command: ReplicateSnapshot
    installed: LogId | None
    response: InstallSnapshotResponse


class SnapshotBuilt(msgspec.Struct, frozen=True):
    meta: SnapshotMeta | None


class SnapshotInstalled(msgspec.Struct, frozen=True):
    request_id: RequestId
    meta: SnapshotMeta


class SnapshotRefused(msgspec.Struct, frozen=True):
    """The received bytes were not what had been announced."""

    request_id: RequestId
    error: RaftError


class TransferAnswered(msgspec.Struct, frozen=True):
    session: int
    target: NodeId
    response: TransferLeaderResponse | None


Notification: TypeAlias = (
    Ticked
    | LogFlushed
    | Applied
    | CommitNoticeDue
    | VoteAnswered
    | ReplicationProgress
    | ReplicationFailed
    | HeartbeatAnswered
    | SnapshotSent
    | SnapshotBuilt
    | SnapshotInstalled
    | SnapshotRefused
    | TransferAnswered
)
