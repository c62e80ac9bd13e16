"""A :class:`RaftNetwork` over two lanes: small urgent calls on one, everything that may be large on the other (T3)."""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import Callable
from typing import Any

from raftkit_core.errors import NetworkError, RPCTimeout, Unreachable
from raftkit_core.network.calls import CallLane
from raftkit_core.network.interface import RaftNetwork
from raftkit_core.network.reply import Reply
from raftkit_core.network.wire import AppendEncoder, Kind, SnapshotOffer, encode_request
from raftkit_core.types.messages import (
    AppendEntriesRequest,
    AppendEntriesResponse,
    ForwardRequest,
    ForwardResponse,
    HeartbeatRequest,
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

_APPEND_ENTRIES = Kind.APPEND_ENTRIES
"""Looked up once: in Python 3.11 a member of an enum costs as much as a call."""


class LaneNetwork(RaftNetwork):
    """Everything but ``stream_snapshot``. The networks of one factory share ``encoder``."""

    def __init__(self, control: CallLane, data: CallLane, encoder: AppendEncoder) -> None:
        self._control = control
        self._data = data
        self._encoder = encoder
        self._transfers: list[asyncio.Timeout] = []
        self._closed = False

    @property
    def target(self) -> str:
        return self._control.target

    @property
    def is_closed(self) -> bool:
        return self._closed

    async def hello(self, timeout: float) -> HelloResponse:
        return await self._control.hello(timeout)

    def append_entries(self, request: AppendEntriesRequest, timeout: float) -> Reply[AppendEntriesResponse]:
        return self._data.call(_APPEND_ENTRIES, self._encoder.encode(request), timeout)

    def heartbeat(self, request: HeartbeatRequest, timeout: float) -> Reply[AppendEntriesResponse]:
        return self._control.call(Kind.HEARTBEAT, encode_request(Kind.HEARTBEAT, request), timeout)

    def vote(self, request: VoteRequest, timeout: float) -> Reply[VoteResponse]:
        return self._control.call(Kind.VOTE, encode_request(Kind.VOTE, request), timeout)

    def pre_vote(self, request: VoteRequest, timeout: float) -> Reply[VoteResponse]:
        return self._control.call(Kind.PRE_VOTE, encode_request(Kind.PRE_VOTE, request), timeout)

    def transfer_leader(self, request: TransferLeaderRequest, timeout: float) -> Reply[TransferLeaderResponse]:
        return self._control.call(Kind.TRANSFER_LEADER, encode_request(Kind.TRANSFER_LEADER, request), timeout)

    def read_index(self, request: ReadIndexRequest, timeout: float) -> Reply[ReadIndexResponse]:
        return self._control.call(Kind.READ_INDEX, encode_request(Kind.READ_INDEX, request), timeout)

    def forward(self, request: ForwardRequest, timeout: float) -> Reply[ForwardResponse]:
        return self._data.call(Kind.FORWARD, encode_request(Kind.FORWARD, request), timeout)

    async def install_snapshot(
        self, request: InstallSnapshotRequest, source: SnapshotSource, timeout: float
    ) -> InstallSnapshotResponse:
        if self._closed:
            raise Unreachable(f"the connections to {self.target} are closed")
        loop = asyncio.get_running_loop()
        scope = asyncio.timeout(timeout)

        def progressed() -> None:
            if not self._closed and not scope.expired():
                scope.reschedule(loop.time() + timeout)

        try:
            async with scope:
                self._transfers.append(scope)
                offer = await self._snapshot_offer(request, timeout)
                return await self.stream_snapshot(request, source, offer, progressed)
        except TimeoutError:
            if self._closed:
                raise Unreachable(f"the connections to {self.target} were closed") from None
            raise RPCTimeout(f"the snapshot for {self.target} made no progress for {timeout:g} s") from None
        finally:
            self._transfers.remove(scope)

    @abstractmethod
    async def stream_snapshot(
        self,
        request: InstallSnapshotRequest,
        source: SnapshotSource,
        offer: SnapshotOffer,
        progressed: Callable[[], None],
    ) -> InstallSnapshotResponse:
        """Send the bytes from ``offer.offset`` on and give the answer; ``progressed`` moves the deadline."""

    async def _snapshot_offer(self, request: InstallSnapshotRequest, timeout: float) -> SnapshotOffer:
        """Ask where a snapshot stream may start, and for the ticket it must show."""
        body = encode_request(Kind.SNAPSHOT_OFFSET, request)
        offer: Any = await self._data.call(Kind.SNAPSHOT_OFFSET, body, timeout)
        assert isinstance(offer, SnapshotOffer), "the lane decodes the answer"
        if request.meta.size_bytes and offer.offset > request.meta.size_bytes:
            raise NetworkError(
                f"{self.target} says it holds {offer.offset} bytes of a snapshot of {request.meta.size_bytes}"
            )
        return offer

    async def close(self) -> None:
        self._closed = True
        for scope in self._transfers:
            if not scope.expired():
                scope.reschedule(0)
        await self._control.close()
        await self._data.close()
