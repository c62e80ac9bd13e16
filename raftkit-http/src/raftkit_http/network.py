"""The transport ``http://…``: two WebSockets per pair of peers, and a PUT per snapshot."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from urllib.parse import quote

import aiohttp

from raftkit_core.errors import ConfigError
from raftkit_core.network.calls import CallLane, Connection, Link
from raftkit_core.network.interface import RaftNetworkFactory, RaftService
from raftkit_core.network.lanes import LaneNetwork
from raftkit_core.network.wire import AppendEncoder, SnapshotOffer
from raftkit_core.types.ids import NodeId
from raftkit_core.types.membership import Node
from raftkit_core.types.messages import InstallSnapshotRequest, InstallSnapshotResponse
from raftkit_core.types.snapshot import SnapshotSource
from raftkit_http.peers import LANES, PeerEndpoint
from raftkit_http.server import HttpServer
from raftkit_http.settings import Address, HttpSettings, parse_peer_address
from raftkit_http.snapshots import send_snapshot
from raftkit_http.sockets import PeerSocket, dial_socket

DIAL_TIMEOUT = 1.0
"""Seconds to connect and be greeted: below the shortest time a peer may be missed."""


class HttpNetwork(LaneNetwork):
    """One peer at ``http://host:port``."""

    def __init__(self, factory: HttpNetworkFactory, target: NodeId, address: Address, service: RaftService) -> None:
        self._factory = factory
        self._base = f"{address.url}/raft/v1/{quote(service.group, safe='')}"

        def lane(name: str) -> CallLane:
            max_frame_bytes = LANES[name][1]

            async def dial(connection: Connection) -> Link:
                return await dial_socket(
                    factory.session, f"{self._base}/{name}", connection, target, max_message_bytes=max_frame_bytes
                )

            return CallLane(
                f"{name} connection",
                target,
                service,
                dial,
                dial_timeout=DIAL_TIMEOUT,
                max_frame_bytes=max_frame_bytes,
            )

        super().__init__(lane("control"), lane("data"), factory.encoder)

    async def stream_snapshot(
        self,
        request: InstallSnapshotRequest,
        source: SnapshotSource,
        offer: SnapshotOffer,
        progressed: Callable[[], None],
    ) -> InstallSnapshotResponse:
        url = f"{self._base}/snapshot/{quote(request.meta.snapshot_id, safe='')}"
        return await send_snapshot(self._factory.session, url, self.target, source, offer, progressed)


class HttpNetworkFactory(RaftNetworkFactory):
    """A node's HTTP transport. ``server`` also takes the routes of the client API, before the first ``serve``."""

    def __init__(self, settings: HttpSettings) -> None:
        self.settings = settings
        self.server = HttpServer(settings.listen)
        self.encoder = AppendEncoder()
        self._endpoint = PeerEndpoint()
        self._networks: list[HttpNetwork] = []
        self._session: aiohttp.ClientSession | None = None
        self._attached = False
        self._closed = False
        self.server.add_routes(self._endpoint.routes())

    @property
    def session(self) -> aiohttp.ClientSession:
        """What connects to peers, made on first use. Raises: ConfigError once the factory is closed."""
        if self._closed:
            raise ConfigError("the HTTP transport is closed")
        if self._session is None:
            self._session = _peer_session()
        return self._session

    def attach(self, raft: object) -> None:
        """Serve the client API of the first node that is attached; further groups share the peer side only."""
        if self._attached:
            return
        from raftkit_http.api import attach

        self._attached = True
        attach(self.server, raft)  # type: ignore[arg-type]

    async def serve(self, group: str, service: RaftService) -> None:
        """Raises: AddressInUse, ConfigError (the host is not of this machine, or the group is served already)."""
        if group in self._endpoint.services:
            raise ConfigError(f"group {group!r} is served already")
        await self.server.start()
        self._endpoint.services[group] = service

    def connect(self, target: NodeId, node: Node, service: RaftService) -> HttpNetwork:
        network = HttpNetwork(self, target, parse_peer_address(node.peer), service)
        self._networks = [known for known in self._networks if not known.is_closed]
        self._networks.append(network)
        return network

    def advertised(self) -> Node:
        """Raises: ConfigError while port 0 has not become a port."""
        if self.settings.advertise is not None:
            return Node(self.settings.advertise.url)
        if self.server.port == 0:
            raise ConfigError("the port is not known before the node listens", hint="name a port instead of 0")
        return Node(self.server.url)

    def validate_address(self, peer: str) -> None:
        parse_peer_address(peer)

    async def stop_serving(self, group: str) -> None:
        await self._endpoint.stop(group)

    async def close(self) -> None:
        self._closed = True
        for network in self._networks:
            await network.close()
        self._networks.clear()
        for group in list(self._endpoint.services):
            await self._endpoint.stop(group)
        session, self._session = self._session, None
        if session is not None:
            await session.close()
        await self.server.close()
        self.encoder.clear()


def _peer_session() -> aiohttp.ClientSession:
    """aiohttp's defaults are a browser's: here no redirect, proxy, cookie, pool or decompression is wanted."""
    trace = aiohttp.TraceConfig()
    trace.on_request_redirect.append(_refuse_redirect)
    return aiohttp.ClientSession(
        # A fresh connection per request: aiohttp would silently send a PUT twice on a stale pooled one.
        connector=aiohttp.TCPConnector(limit=0, force_close=True, ttl_dns_cache=10),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=DIAL_TIMEOUT),
        cookie_jar=aiohttp.DummyCookieJar(),
        trust_env=False,
        auto_decompress=False,
        requote_redirect_url=False,
        ws_response_class=PeerSocket,
        trace_configs=[trace],
    )


async def _refuse_redirect(
    session: aiohttp.ClientSession, context: SimpleNamespace, params: aiohttp.TraceRequestRedirectParams
) -> None:
    """A peer must not be able to send us elsewhere."""
    raise aiohttp.ClientConnectionError(f"{params.url.origin()} answered with a redirect")
