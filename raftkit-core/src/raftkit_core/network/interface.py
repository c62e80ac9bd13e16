"""Contracts between the runtime and a transport, as numbered clauses."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Iterator
from typing import Protocol

from raftkit_core.types.identity import PeerIdentity
from raftkit_core.types.ids import NodeId
from raftkit_core.types.membership import Node
from raftkit_core.types.messages import (
    AppendEntriesRequest,
    AppendEntriesResponse,
    ForwardRequest,
    ForwardResponse,
    HeartbeatRequest,
    HelloRequest,
    HelloResponse,
    InstallSnapshotRequest,
    InstallSnapshotResponse,
    ReadIndexRequest,
    ReadIndexResponse,
    TransferLeaderRequest,
    TransferLeaderResponse,
    VoteRequest,
    VoteResponse,
)
from raftkit_core.types.snapshot import SnapshotSource


class RaftService(Protocol):
    """One group of one node, as a transport serves it. Implemented by the runtime.

    Every handler may raise a ``RaftError``, which the transport carries to the caller as an ``ErrorInfo``. None waits
    longer than the deadline the transport puts on it: a coroutine is cancelled then, a future is left alone and its
    result dropped.

    The handlers of single messages are ``async def`` or plain functions that give a future or a ``Reply``: the latter
    are called in the order of arrival and cost no task. Coroutines are started in that order too.
    """

    group: str

    def cork(self) -> None:
        """A transport is about to hand over what came in together: requests, or answers to this node's own calls."""
        ...

    def uncork(self) -> None:
        """It has: the node may act on all of it now, before this returns."""
        ...

    def local_hello(self, target: NodeId) -> HelloRequest:
        """What to say first on a new connection to ``target``."""
        ...

    def check_hello(self, target: NodeId, response: HelloResponse) -> None:
        """Judge who answered. Raises: IdentityError; Fatal (Stopped) if this node has ended, and nothing leaves it any
        more. The connection must be closed in both cases."""
        ...

    async def hello(self, request: HelloRequest) -> HelloResponse:
        """Judge who connects, and answer. Raises: IdentityError, and the connection must be closed."""
        ...

    def admits(self, node_id: NodeId) -> bool:
        """Whether ``node_id``, whose certificate was checked, may speak here now. Asked at a hello and at every vote,
        by transports that know who connects: one whose name is only claimed gains nothing by a refusal."""
        ...

    def append_entries(self, request: AppendEntriesRequest, peer: PeerIdentity) -> Awaitable[AppendEntriesResponse]: ...

    def heartbeat(self, request: HeartbeatRequest, peer: PeerIdentity) -> Awaitable[AppendEntriesResponse]: ...

    def vote(self, request: VoteRequest, peer: PeerIdentity) -> Awaitable[VoteResponse]: ...

    def pre_vote(self, request: VoteRequest, peer: PeerIdentity) -> Awaitable[VoteResponse]: ...

    async def snapshot_offset(self, request: InstallSnapshotRequest, peer: PeerIdentity) -> int:
        """How many bytes of this snapshot are here already: where the sender may continue."""
        ...

    async def install_snapshot(
        self, request: InstallSnapshotRequest, offset: int, chunks: AsyncIterator[bytes], peer: PeerIdentity
    ) -> InstallSnapshotResponse:
        """Take the bytes from ``offset`` on, then install. A broken stream keeps what came for a later resume."""
        ...

    def transfer_leader(
        self, request: TransferLeaderRequest, peer: PeerIdentity
    ) -> Awaitable[TransferLeaderResponse]: ...

    def read_index(self, request: ReadIndexRequest, peer: PeerIdentity) -> Awaitable[ReadIndexResponse]: ...

    def forward(self, request: ForwardRequest, peer: PeerIdentity) -> Awaitable[ForwardResponse]: ...


class RaftNetwork(ABC):
    """One peer, as this node calls it. Connects on first use and again after a break.

    Errors by what to do next: ``Unreachable`` back off (the call never left, so it may be made again), ``NetworkError``
    retry, ``RPCTimeout``, ``PayloadTooLarge``, ``PeerBusy`` back off and never count as contact, ``RemoteError`` (the
    peer's own error; typed ``RaftError`` of a forward or read_index is raised as itself).

    - **T1** Every new connection says ``service.local_hello(target)`` first and passes the answer to
      ``service.check_hello`` before anything else is sent; a refusal closes the connection and is ``Unreachable``.
    - **T2** Requests to one peer arrive in the order of the calls, per lane (control: vote, pre_vote, heartbeat,
      read_index, transfer_leader; data: append_entries, forward); a transport that cannot says ``pipelined = False``.
    - **T3** A heartbeat or vote never waits behind an append or a snapshot.
    - **T4** Each call ends within its ``timeout`` seconds with an answer or an ``RPCError``; a late answer is dropped.
    - **T5** When a connection breaks, every call pending on it fails; none is sent twice.
    """

    pipelined: bool = True

    @abstractmethod
    async def hello(self, timeout: float) -> HelloResponse:
        """Connect if needed and give the peer's last hello. Raises: RPCError, IdentityError."""

    @abstractmethod
    def append_entries(self, request: AppendEntriesRequest, timeout: float) -> Awaitable[AppendEntriesResponse]:
        """May be called while others are pending. Frames are encoded once per request object, for all peers."""

    @abstractmethod
    def heartbeat(self, request: HeartbeatRequest, timeout: float) -> Awaitable[AppendEntriesResponse]: ...

    @abstractmethod
    def vote(self, request: VoteRequest, timeout: float) -> Awaitable[VoteResponse]: ...

    @abstractmethod
    def pre_vote(self, request: VoteRequest, timeout: float) -> Awaitable[VoteResponse]: ...

    @abstractmethod
    async def install_snapshot(
        self, request: InstallSnapshotRequest, source: SnapshotSource, timeout: float
    ) -> InstallSnapshotResponse:
        """Stream the snapshot, resuming where the peer is. ``timeout`` is per chunk of progress, not for the whole."""

    @abstractmethod
    def transfer_leader(self, request: TransferLeaderRequest, timeout: float) -> Awaitable[TransferLeaderResponse]: ...

    @abstractmethod
    def read_index(self, request: ReadIndexRequest, timeout: float) -> Awaitable[ReadIndexResponse]: ...

    @abstractmethod
    def forward(self, request: ForwardRequest, timeout: float) -> Awaitable[ForwardResponse]: ...

    def backoff(self) -> Iterator[float]:
        """Delays in seconds after ``Unreachable``, restarted by a success. The default grows from 50 ms to 1 s."""
        delay = 0.05
        while True:
            yield delay
            delay = min(delay * 2, 1.0)

    @abstractmethod
    async def close(self) -> None:
        """Close connections; pending calls fail. Idempotent."""


class RaftNetworkFactory(ABC):
    """A node's transport: serves its groups and makes clients to peers. Several groups may share one."""

    def attach(self, raft: object) -> None:
        """The handle of a node on this transport, before ``serve``: for transports that also serve clients."""
        return

    @abstractmethod
    async def serve(self, group: str, service: RaftService) -> None:
        """Start answering peers of ``group``. Raises: AddressInUse."""

    @abstractmethod
    def connect(self, target: NodeId, node: Node, service: RaftService) -> RaftNetwork:
        """A client to ``target`` on behalf of ``service`` (which says hello). Does no IO.

        Raises: ConfigError if ``node.peer`` is no address of this transport.
        """

    @abstractmethod
    def advertised(self) -> Node:
        """The address other members should use, without a store id."""

    def validate_address(self, peer: str) -> None:
        """Raises: ConfigError if ``peer`` is no address of this transport. Called before a membership is written."""
        return

    def reload(self) -> None:
        """Read certificates and the like again, because somebody changed their files. Connections stay open."""
        return

    @abstractmethod
    async def stop_serving(self, group: str) -> None:
        """Stop answering peers of ``group``. Idempotent."""

    @abstractmethod
    async def close(self) -> None:
        """Stop serving, close every connection, end every task. Idempotent."""
