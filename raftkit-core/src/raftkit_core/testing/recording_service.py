"""A :class:`RaftService` that writes down what arrives: what transports are tested against."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from hashlib import sha256
from typing import Any

from raftkit_core.errors import IdentityError
from raftkit_core.types.identity import PeerIdentity
from raftkit_core.types.ids import DEFAULT_GROUP, NodeId
from raftkit_core.types.log_id import LogId
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
    Success,
    TransferLeaderRequest,
    TransferLeaderResponse,
    VoteRequest,
    VoteResponse,
)
from raftkit_core.types.snapshot import SnapshotMeta, SnapshotSource

Reaction = Callable[[Any], Any]
"""Gives the answer to a message, or an awaitable of it; what it raises travels to the caller."""


class RecordingService:
    """Answers everything with success. ``calls`` holds (kind, message, peer) in order of arrival.

    ``reactions[kind]`` replaces an answer: kinds are ``hello, append_entries, heartbeat, vote, pre_vote,
    transfer_leader, read_index, forward, snapshot_offset, install_snapshot``.
    """

    def __init__(
        self,
        node_id: NodeId,
        *,
        group: str = DEFAULT_GROUP,
        cluster: str = "default",
        cluster_id: str | None = None,
        store_id: str | None = None,
    ) -> None:
        self.node_id = node_id
        self.group = group
        self.cluster = cluster
        self.cluster_id = cluster_id
        self.store_id = store_id or sha256(node_id.encode()).hexdigest()[:32]
        self.calls: list[tuple[str, Any, PeerIdentity | None]] = []
        self.reactions: dict[str, Reaction] = {}
        self.snapshot_bytes: dict[str, bytearray] = {}
        self.stream_errors: list[BaseException] = []
        self.shut_out: set[NodeId] = set()
        """Whom :meth:`admits` refuses."""

    def count(self, kind: str) -> int:
        """How often ``kind`` arrived."""
        return sum(1 for known, _, _ in self.calls if known == kind)

    def cork(self) -> None:
        """Nothing to gather: every call is recorded as it comes."""

    def uncork(self) -> None:
        """See :meth:`cork`."""

    def admits(self, node_id: NodeId) -> bool:
        return node_id not in self.shut_out

    # --- Hello ------------------------------------------------------------------------------------------------------

    def local_hello(self, target: NodeId) -> HelloRequest:
        return HelloRequest(
            cluster=self.cluster,
            cluster_id=self.cluster_id,
            group=self.group,
            node_id=self.node_id,
            store_id=self.store_id,
            target_node_id=target,
            target_store_id=None,
            single_term_leader=False,
        )

    def check_hello(self, target: NodeId, response: HelloResponse) -> None:
        if (response.cluster, response.node_id) != (self.cluster, target):
            raise IdentityError(
                f"expected node {target} of cluster {self.cluster}, found {response.node_id} of {response.cluster}"
            )

    async def hello(self, request: HelloRequest) -> HelloResponse:
        self.calls.append(("hello", request, None))
        if "hello" in self.reactions:
            answer: HelloResponse = await _settled(self.reactions["hello"](request))
            return answer
        if request.cluster != self.cluster:
            raise IdentityError(f"this is cluster {self.cluster}, not {request.cluster}")
        if request.target_node_id != self.node_id:
            raise IdentityError(f"this is node {self.node_id}, not {request.target_node_id}")
        return HelloResponse(self.cluster, self.cluster_id, self.group, self.node_id, self.store_id, False)

    # --- Messages ---------------------------------------------------------------------------------------------------

    def append_entries(self, request: AppendEntriesRequest, peer: PeerIdentity) -> Awaitable[AppendEntriesResponse]:
        last: LogId | None = request.entries[-1].log_id if request.entries else request.prev_log_id
        return self._answer("append_entries", request, peer, Success(self.store_id, last))

    def heartbeat(self, request: HeartbeatRequest, peer: PeerIdentity) -> Awaitable[AppendEntriesResponse]:
        return self._answer("heartbeat", request, peer, Success(self.store_id, request.prev_log_id))

    def vote(self, request: VoteRequest, peer: PeerIdentity) -> Awaitable[VoteResponse]:
        return self._answer("vote", request, peer, VoteResponse(self.store_id, request.vote, True, None))

    def pre_vote(self, request: VoteRequest, peer: PeerIdentity) -> Awaitable[VoteResponse]:
        return self._answer("pre_vote", request, peer, VoteResponse(self.store_id, request.vote, True, None))

    def transfer_leader(self, request: TransferLeaderRequest, peer: PeerIdentity) -> Awaitable[TransferLeaderResponse]:
        return self._answer("transfer_leader", request, peer, TransferLeaderResponse(self.store_id, True))

    def read_index(self, request: ReadIndexRequest, peer: PeerIdentity) -> Awaitable[ReadIndexResponse]:
        return self._answer("read_index", request, peer, ReadIndexResponse(None))

    def forward(self, request: ForwardRequest, peer: PeerIdentity) -> Awaitable[ForwardResponse]:
        return self._answer("forward", request, peer, ForwardResponse(request.body))

    def _answer(self, kind: str, request: Any, peer: PeerIdentity, default: Any) -> Awaitable[Any]:
        """Recorded at the call, before anything can wait: the order of ``calls`` is the order of arrival."""
        self.calls.append((kind, request, peer))
        if kind in self.reactions:
            reaction = self.reactions[kind](request)
            return reaction if isinstance(reaction, asyncio.Future) else _settled(reaction)
        future = asyncio.get_running_loop().create_future()
        future.set_result(default)
        return future

    # --- Snapshots --------------------------------------------------------------------------------------------------

    async def snapshot_offset(self, request: InstallSnapshotRequest, peer: PeerIdentity) -> int:
        self.calls.append(("snapshot_offset", request, peer))
        if "snapshot_offset" in self.reactions:
            offset: int = await _settled(self.reactions["snapshot_offset"](request))
            return offset
        return len(self.snapshot_bytes.get(request.meta.snapshot_id, b""))

    async def install_snapshot(
        self, request: InstallSnapshotRequest, offset: int, chunks: AsyncIterator[bytes], peer: PeerIdentity
    ) -> InstallSnapshotResponse:
        """Keeps what comes; a broken stream is noted in ``stream_errors`` and keeps what came before."""
        self.calls.append(("install_snapshot", request, peer))
        kept = self.snapshot_bytes.setdefault(request.meta.snapshot_id, bytearray())
        del kept[offset:]
        try:
            async for chunk in chunks:
                kept += chunk
        except BaseException as error:
            self.stream_errors.append(error)
            raise
        if "install_snapshot" in self.reactions:
            answer: InstallSnapshotResponse = await _settled(self.reactions["install_snapshot"](request))
            return answer
        return InstallSnapshotResponse(self.store_id, request.vote)


class BytesSource(SnapshotSource):
    """A snapshot source over bytes in memory. ``before_chunk(offset)`` may wait or raise."""

    def __init__(self, meta: SnapshotMeta, content: bytes, chunk_bytes: int = 64 * 1024) -> None:
        self.meta = meta
        self.content = content
        self.chunk_bytes = chunk_bytes
        self.opened_at: list[int] = []
        self.before_chunk: Callable[[int], Awaitable[None]] | None = None

    async def open(self, offset: int = 0, chunk_bytes: int = 1024 * 1024) -> AsyncIterator[bytes]:
        self.opened_at.append(offset)
        step = min(chunk_bytes, self.chunk_bytes)
        for start in range(offset, len(self.content), step):
            if self.before_chunk is not None:
                await self.before_chunk(start)
            yield self.content[start : start + step]

    async def close(self) -> None:
        return


async def _settled(value: Any) -> Any:
    return await value if isinstance(value, Awaitable) else value
