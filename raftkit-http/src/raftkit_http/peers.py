"""The serving side of peer connections: ``GET /raft/v1/{group}/control`` and ``…/data``, upgraded to WebSockets."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Any

import aiohttp
from aiohttp import web

from raftkit_core.errors import AccessDenied
from raftkit_core.network.interface import RaftService
from raftkit_core.network.serving import ServedConnection
from raftkit_core.network.wire import CONTROL_KINDS, DATA_KINDS, FrameError
from raftkit_core.types.identity import PeerIdentity
from raftkit_core.types.ids import MAX_FRAME_BYTES, NodeId
from raftkit_http.listener import GuardedHandler
from raftkit_http.snapshots import SnapshotReceiver
from raftkit_http.sockets import FrameWriter
from raftkit_http.tls import certified_ids

logger = logging.getLogger(__name__)

CONTROL_FRAME_BYTES = 4096
"""The control lane carries nothing large, so that nothing on it ever waits for something large."""
CONNECTIONS_MAX = 512
"""Peer connections: far more than a cluster has, far fewer than would hurt."""
HELLO_DEADLINE = 5.0
"""Seconds a new connection may take to say hello."""
PING_INTERVAL = 30.0
"""Seconds between pings: a connection whose peer vanished without a word is closed."""
CLOSE_TIMEOUT = 0.5
"""Seconds for the closing handshake of WebSockets: nobody waits for a peer that is gone."""
UNSENT_BYTES_MAX = 2 * MAX_FRAME_BYTES
"""Answers a peer has not read; reading its requests stops there."""
STOP_TIMEOUT = 2.0

LANES = {"control": (CONTROL_KINDS, CONTROL_FRAME_BYTES), "data": (DATA_KINDS, MAX_FRAME_BYTES)}


class PeerAdmission:
    """Judges hellos and requests for votes on one connection. With ``certified`` a name is worth what its certificate
    says; without, it is what was claimed, and listening beyond this machine was somebody's explicit wish."""

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
            # WebSockets know no same-origin rule: any web page in a browser on this machine could be the caller.
            return web.Response(status=403, text="peers do not come from browsers\n")
        if self.certified and not _certificate_of(request):
            return web.Response(status=403, text="peers must show a certificate\n")
        if len(self._accepted) >= CONNECTIONS_MAX:
            return web.Response(status=503, text="too many peer connections\n")
        accepted = _Accepted(request, self)
        self._accepted[accepted] = None
        try:
            return await accepted.run()
        finally:
            del self._accepted[accepted]
            if not accepted.ended.done():
                accepted.ended.set_result(None)

    def _admit(self, request: web.Request, peer: PeerIdentity, service: RaftService) -> None:
        """Whether a request beside the connection is of that peer too. Raises: AccessDenied."""
        PeerAdmission(request, certified=self.certified).check(peer.node_id, service)


class _Accepted:
    """One WebSocket of one peer."""

    def __init__(self, request: web.Request, endpoint: PeerEndpoint) -> None:
        self.group = request.match_info["group"]
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._request = request
        self._endpoint = endpoint
        kinds, max_frame_bytes = LANES[request.match_info["lane"]]
        self._socket = web.WebSocketResponse(
            timeout=CLOSE_TIMEOUT,
            heartbeat=PING_INTERVAL,
            compress=False,
            max_msg_size=max_frame_bytes + 1,  # aiohttp refuses from this size on
        )
        self._writer = FrameWriter(self._socket.send_bytes)
        find: Callable[[], RaftService | None] = lambda: endpoint.services.get(self.group)  # noqa: E731
        self._served = ServedConnection(
            self.group,
            find,
            kinds,
            send=self._writer.push,
            refused=self._writer.end,
            offer=lambda message, peer: endpoint._snapshots.announce(self.group, message, peer),
            max_frame_bytes=max_frame_bytes,
            admission=PeerAdmission(request, certified=endpoint.certified),
        )

    def abort(self) -> None:
        """Drop the connection at once."""
        if self._request.transport is not None:
            self._request.transport.abort()

    async def run(self) -> web.StreamResponse:
        await self._socket.prepare(self._request)
        writing = asyncio.get_running_loop().create_task(self._writer.run(), name="peer answers")
        writing.add_done_callback(self._written)
        hello_timer = asyncio.get_running_loop().call_later(HELLO_DEADLINE, self._end_unless_greeted)
        try:
            await self._read()
        except FrameError as error:
            self._endpoint.refused_frames += 1
            logger.warning("closing a connection of %s: %s", self._peer_name(), error)
            await self._socket.close(code=aiohttp.WSCloseCode.POLICY_VIOLATION, message=_reason(error))
        finally:
            hello_timer.cancel()
            writing.cancel()
            await asyncio.wait([writing])
            await self._served.close()
            self.abort()
        return self._socket

    async def _read(self) -> None:
        """Until the connection ends. Raises: FrameError."""
        while True:
            message = await self._socket.receive()
            if message.type is not aiohttp.WSMsgType.BINARY:
                return
            self._served.received(message.data)
            if not self._served.has_room:
                await self._served.wait_for_room()
            await self._writer.wait_until_below(UNSENT_BYTES_MAX)

    def _end_unless_greeted(self) -> None:
        if self._served.peer is None:
            logger.info("a connection to group %s said no hello", self.group)
            self.abort()

    def _written(self, writing: asyncio.Task[None]) -> None:
        """The writer ended: after a refusal, or because the peer is gone or does not read."""
        if not writing.cancelled() and (error := writing.exception()) is not None:
            logger.debug("answering %s failed: %s", self._peer_name(), error)
            self.abort()
        elif self._request.transport is not None:
            self._request.transport.close()  # what was written still leaves

    def _peer_name(self) -> str:
        return f"peer {self._served.peer.node_id}" if self._served.peer is not None else "an unknown peer"


def _certificate_of(request: web.Request) -> Mapping[str, Any] | None:
    certificate: Mapping[str, Any] | None = request.get_extra_info("peercert")
    return certificate


def _reason(error: FrameError) -> bytes:
    """A close frame holds 123 bytes."""
    return str(error).encode("utf-8", "replace")[:100]
