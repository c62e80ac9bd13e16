"""The serving side of peer connections: ``GET /raft/v1/{group}/control`` and ``…/data``, upgraded to frames."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Any

from aiohttp import web

from raftkit_core.errors import AccessDenied
from raftkit_core.network.interface import RaftService
from raftkit_core.network.serving import ServedConnection
from raftkit_core.network.wire import CONTROL_KINDS, DATA_KINDS, FrameError
from raftkit_core.types.identity import PeerIdentity
from raftkit_core.types.ids import MAX_FRAME_BYTES, NodeId
from raftkit_http.frames import SWITCHING, UPGRADE_HEADERS, FrameProtocol
from raftkit_http.listener import GuardedHandler
from raftkit_http.snapshots import SnapshotReceiver
from raftkit_http.tls import certified_ids

logger = logging.getLogger(__name__)

CONTROL_FRAME_BYTES = 4096
"""The control lane carries nothing large, so that nothing on it ever waits for something large."""
CONNECTIONS_MAX = 512
"""Peer connections: far more than a cluster has, far fewer than would hurt."""
CONNECTIONS_PER_PEER_MAX = 4
"""Of one node, on one lane of one group. It uses one; others are stale, or ask a single hello."""
HELLO_DEADLINE = 5.0
"""Seconds a new connection may take to say hello."""
UNSENT_BYTES_MAX = 2 * MAX_FRAME_BYTES
"""Answers a peer has not read; reading its requests stops there."""
STOP_TIMEOUT = 2.0

LANES = {"control": (CONTROL_KINDS, CONTROL_FRAME_BYTES), "data": (DATA_KINDS, MAX_FRAME_BYTES)}


class PeerAdmission:
    """Judges hellos and requests for votes, reads and writes on one connection. With ``certified`` a name is worth what
    its certificate says; without, it is what was claimed, and listening beyond this machine was somebody's explicit
    wish."""

    def __init__(self, request: web.Request, *, certified: bool) -> None:
        self._request = request
        self._certified = certified

    def check(self, node_id: NodeId, service: RaftService) -> None:
        if self._certified:
            known = certified_ids(_certificate_of(self._request))
            if node_id not in known:
                raise AccessDenied(
                    f"the certificate is that of {', '.join(sorted(known)) or 'no node'}, not of {node_id}",
                    hint="give each node its own certificate: raftkit certs dev",
                )
            if not service.admits(node_id):
                raise AccessDenied(f"{node_id} is no member", hint="add it: raftkit member add")
        if isinstance(self._request.protocol, GuardedHandler):
            self._request.protocol.is_peer = True  # from now on it is not dropped when others need room


class PeerEndpoint:
    """Accepts peers for every group served by one listener. With ``certified`` they must show a node's certificate."""

    def __init__(self, *, certified: bool = False) -> None:
        self.certified = certified
        self.services: dict[str, RaftService] = {}
        self.refused_frames = 0
        """Connections closed for sending garbage."""
        self._accepted: dict[_Accepted, None] = {}
        self._snapshots = SnapshotReceiver(self.services.get, self._admit)

    def routes(self) -> list[web.RouteDef]:
        """What the listener must serve."""
        return [
            web.get("/raft/v1/{group}/{lane:control|data}", self._connect, allow_head=False),
            web.put("/raft/v1/{group}/snapshot/{id}", self._snapshots.handle),
        ]

    async def stop(self, group: str) -> None:
        """Close the connections of ``group``."""
        self.services.pop(group, None)
        await self._snapshots.stop(group)
        ending = [accepted for accepted in self._accepted if accepted.group == group]
        for accepted in ending:
            accepted.abort()
        if ending:
            await asyncio.wait([accepted.ended for accepted in ending], timeout=STOP_TIMEOUT)

    async def _connect(self, request: web.Request) -> web.StreamResponse:
        if "Origin" in request.headers:
            # Any web page in a browser on this machine could be the caller.
            return web.Response(status=403, text="peers do not come from browsers\n")
        if self.certified and not _certificate_of(request):
            return web.Response(status=403, text="peers must show a certificate\n")
        if request.headers.get("Raftkit-Frames") != UPGRADE_HEADERS["Raftkit-Frames"]:
            return web.Response(status=426, headers=UPGRADE_HEADERS, text="this is for the nodes of the cluster\n")
        if len(self._accepted) >= CONNECTIONS_MAX and not self._make_room():
            return web.Response(status=503, text="too many peer connections\n")
        accepted = _Accepted(request, self)
        self._accepted[accepted] = None
        try:
            return await accepted.run()
        finally:
            self._accepted.pop(accepted, None)
            if not accepted.ended.done():
                accepted.ended.set_result(None)

    def _make_room(self) -> bool:
        """Drop the oldest connection that has said no hello: a node of the cluster says it at once."""
        for accepted in self._accepted:
            if not accepted.is_greeted:
                accepted.abort()
                del self._accepted[accepted]
                return True
        return False

    def greeted(self, newest: _Accepted) -> None:
        """The peer of ``newest`` said hello there: its oldest connections make room."""
        same = [accepted for accepted in self._accepted if accepted.serves == newest.serves and accepted is not newest]
        for accepted in same[: max(0, len(same) + 1 - CONNECTIONS_PER_PEER_MAX)]:
            accepted.abort()

    def _admit(self, request: web.Request, peer: PeerIdentity, service: RaftService) -> None:
        """Whether a request beside the connection is of that peer too. Raises: AccessDenied."""
        PeerAdmission(request, certified=self.certified).check(peer.node_id, service)


class _Accepted:
    """One connection of one peer."""

    def __init__(self, request: web.Request, endpoint: PeerEndpoint) -> None:
        self.group = request.match_info["group"]
        self.serves: tuple[str, str, NodeId] | None = None
        """Group, lane and whose connection it is, once its hello was good."""
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._request = request
        self._endpoint = endpoint
        self._greeted_as: PeerIdentity | None = None
        self._lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting: asyncio.Task[None] | None = None
        self._lane = request.match_info["lane"]
        kinds, self._max_frame_bytes = LANES[self._lane]
        transport, former = request.transport, request.protocol
        assert transport is not None, "a request that is being handled has a connection"
        find: Callable[[], RaftService | None] = lambda: endpoint.services.get(self.group)  # noqa: E731
        self._served = ServedConnection(
            self.group,
            find,
            kinds,
            send=self._send,
            refused=self._end,
            offer=lambda message, peer: endpoint._snapshots.announce(self.group, message, peer),
            max_frame_bytes=self._max_frame_bytes,
            admission=PeerAdmission(request, certified=endpoint.certified),
        )
        self._frames = FrameProtocol(
            transport,
            former,
            max_frame_bytes=CONTROL_FRAME_BYTES,  # of a stranger nothing large is taken, not even to refuse it
            received=self._received,
            broken=self._broken,
            lost=self._connection_lost,
        )

    @property
    def is_greeted(self) -> bool:
        return self._served.peer is not None

    def _was_greeted(self, peer: PeerIdentity) -> None:
        self._greeted_as = peer
        self._frames.max_frame_bytes = self._max_frame_bytes
        self.serves = (self.group, self._lane, peer.node_id)
        self._endpoint.greeted(self)

    def abort(self) -> None:
        """Drop the connection at once."""
        self._frames.abort()

    async def run(self) -> web.StreamResponse:
        """Until the connection ends."""
        self._frames.transport.write(SWITCHING)
        hello_timer = asyncio.get_running_loop().call_later(HELLO_DEADLINE, self._end_unless_greeted)
        try:
            await asyncio.wait([self._lost])
        finally:
            hello_timer.cancel()
            self.abort()
            if self._waiting is not None:
                self._waiting.cancel()
                await asyncio.wait([self._waiting])
            await self._served.close()
        return web.Response(status=101)  # for whom it may concern: the connection is gone

    def _send(self, frame: bytes) -> None:
        peer = self._served.peer
        if peer is not self._greeted_as and peer is not None:
            self._was_greeted(peer)  # this answers its hello
        self._frames.send(frame)

    def _end(self) -> None:
        self._frames.close()

    def _received(self, frames: list[memoryview]) -> None:
        """Raises: FrameError."""
        self._served.received_many(frames)
        if self._waiting is None and (self._frames.is_full or not self._served.has_room) and not self._has_room:
            self._frames.transport.pause_reading()
            self._waiting = asyncio.get_running_loop().create_task(self._wait_for_room(), name="peer waits")

    @property
    def _has_room(self) -> bool:
        return self._served.has_room and self._frames.unsent_bytes <= UNSENT_BYTES_MAX

    async def _wait_for_room(self) -> None:
        """Read on once requests are answered, and the peer has read the answers."""
        while not self._has_room and not self._frames.is_over:
            await self._served.wait_for_room()
            if self._frames.unsent_bytes > UNSENT_BYTES_MAX:
                await self._frames.writable()
        self._waiting = None
        if not self._frames.is_over:
            self._frames.transport.resume_reading()

    def _broken(self, error: FrameError) -> None:
        self._endpoint.refused_frames += 1
        logger.warning("closing a connection of %s: %s", self._peer_name(), error)
        self.abort()

    def _connection_lost(self, error: Exception | None) -> None:
        if error is not None:
            logger.debug("the connection of %s broke: %s", self._peer_name(), error)
        if not self._lost.done():
            self._lost.set_result(None)

    def _end_unless_greeted(self) -> None:
        if self._served.peer is None:
            logger.info("a connection to group %s said no hello", self.group)
            self.abort()

    def _peer_name(self) -> str:
        return f"peer {self._served.peer.node_id}" if self._served.peer is not None else "an unknown peer"


def _certificate_of(request: web.Request) -> Mapping[str, Any] | None:
    connection = request.get_extra_info("ssl_object")
    if connection is not None and connection.session_reused:
        # A resumed session (TLS 1.2 can, without a ticket too) says what a certificate was worth when it began.
        return None
    certificate: Mapping[str, Any] | None = request.get_extra_info("peercert")
    return certificate
