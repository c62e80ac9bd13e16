"""The transport ``http://…``: two connections of frames per pair of peers, and a PUT per snapshot."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import ssl
from collections.abc import Callable
from urllib.parse import quote

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import ThreadedResolver

from raftkit_core.errors import ConfigError
from raftkit_core.network.calls import CallLane, Connection, Link
from raftkit_core.network.interface import RaftNetworkFactory, RaftService
from raftkit_core.network.lanes import LaneNetwork
from raftkit_core.network.wire import AppendEncoder, SnapshotOffer
from raftkit_core.types.ids import NodeId
from raftkit_core.types.membership import Node
from raftkit_core.types.messages import InstallSnapshotRequest, InstallSnapshotResponse
from raftkit_core.types.snapshot import SnapshotSource
from raftkit_http.access import Access
from raftkit_http.exchange import no_redirects
from raftkit_http.peers import LANES, PeerEndpoint
from raftkit_http.server import HttpServer
from raftkit_http.settings import Address, HttpSettings, IpNetwork, parse_peer_address, why_refused
from raftkit_http.snapshots import Pace, send_snapshot
from raftkit_http.sockets import dial_frames
from raftkit_http.tls import TlsContexts

logger = logging.getLogger(__name__)

DIAL_TIMEOUT = 1.0
"""Seconds to connect and be greeted: below the shortest time a peer may be missed."""


RELOAD_INTERVAL = 2.0
"""Seconds between looks at the files of certificates and tokens."""


class HttpNetwork(LaneNetwork):
    """One peer at ``http://host:port``."""

    def __init__(self, factory: HttpNetworkFactory, target: NodeId, address: Address, service: RaftService) -> None:
        self._factory = factory
        self._base = f"{address.url}/raft/v1/{quote(service.group, safe='')}"

        def lane(name: str) -> CallLane:
            max_frame_bytes = LANES[name][1]

            async def dial(connection: Connection) -> Link:
                return await dial_frames(
                    factory.session,
                    f"{self._base}/{name}",
                    connection,
                    target,
                    max_frame_bytes=max_frame_bytes,
                    tls=factory.calling_tls,
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
        return await send_snapshot(
            self._factory.session,
            url,
            self.target,
            source,
            offer,
            progressed,
            tls=self._factory.calling_tls,
            pace=self._factory.pace,
        )


class HttpNetworkFactory(RaftNetworkFactory):
    """A node's HTTP transport. ``server`` also takes the routes of the client API, before the first ``serve``."""

    def __init__(self, settings: HttpSettings) -> None:
        """Reads certificates and tokens. Raises: ConfigError."""
        self.settings = settings
        security = settings.security
        self._tls = None if security.cert is None else TlsContexts(security)
        self.access = Access(security, names=_own_names(settings))
        peers_tls = settings.listen.scheme == "https"
        # One listener for both: a peer is asked for its certificate, a client has none and shows a token.
        verify = ssl.CERT_OPTIONAL if settings.clients is None else ssl.CERT_REQUIRED
        listeners = 1 if settings.clients is None else 2
        self.server = HttpServer(settings.listen, self._served(verify) if peers_tls else None, listeners=listeners)
        self.clients = self.server
        if settings.clients is not None:
            tls = self._served(ssl.CERT_NONE) if settings.clients.scheme == "https" else None
            self.clients = HttpServer(settings.clients, tls, listeners=listeners)
        self.encoder = AppendEncoder()
        self.pace = Pace(settings.snapshot_rate)
        self._endpoint = PeerEndpoint(certified=peers_tls)
        self._networks: list[HttpNetwork] = []
        self._session: aiohttp.ClientSession | None = None
        self._attached = False
        self._closed = False
        self._watching: asyncio.Task[None] | None = None
        self.server.add_routes(self._endpoint.routes())

    def _served(self, verify: ssl.VerifyMode) -> ssl.SSLContext:
        assert self._tls is not None, "settings check that certificates are given"
        return self._tls.server(verify)

    @property
    def calling_tls(self) -> ssl.SSLContext | None:
        """For the next connection to a peer; None where peers speak plain text."""
        return self._tls.client if self._tls is not None and self.settings.listen.scheme == "https" else None

    @property
    def session(self) -> aiohttp.ClientSession:
        """What connects to peers, made on first use. Raises: ConfigError once the factory is closed."""
        if self._closed:
            raise ConfigError("the HTTP transport is closed")
        if self._session is None:
            self._session = _peer_session(self.settings.peer_networks)
        return self._session

    def attach(self, raft: object) -> None:
        """Serve the client API of the first node that is attached; further groups share the peer side only."""
        if self._attached:
            return
        from raftkit_http.api import attach

        self._attached = True
        attach(self.clients, raft, access=self.access)  # type: ignore[arg-type]

    def reload(self) -> None:
        """Read certificates and tokens again if their files changed. A file that cannot be used is not: it is logged,
        and what was read before stays in force."""
        for what, refresh in (
            ("certificates", None if self._tls is None else self._tls.refresh),
            ("tokens", self.access.refresh),
        ):
            if refresh is None:
                continue
            try:
                if refresh():
                    logger.info("read new %s", what)
            except ConfigError as error:
                logger.error("the former %s stay in use: %s", what, error.message)

    async def _watch_files(self) -> None:
        while True:
            await asyncio.sleep(RELOAD_INTERVAL)
            self.reload()

    async def serve(self, group: str, service: RaftService) -> None:
        """Raises: AddressInUse, ConfigError (the host is not of this machine, or the group is served already)."""
        if group in self._endpoint.services:
            raise ConfigError(f"group {group!r} is served already")
        await self.server.start()
        if self.clients is not self.server:
            await self.clients.start()
        if self._watching is None and (self._tls is not None or self.settings.security.tokens is not None):
            self._watching = asyncio.get_running_loop().create_task(self._watch_files(), name="watch certificates")
        self._endpoint.services[group] = service

    def connect(self, target: NodeId, node: Node, service: RaftService) -> HttpNetwork:
        network = HttpNetwork(self, target, self._peer_address(node.peer), service)
        self._networks = [known for known in self._networks if not known.is_closed]
        self._networks.append(network)
        return network

    def advertised(self) -> Node:
        """Raises: ConfigError while port 0 has not become a port."""
        peer = _advertised(self.settings.advertise, self.server)
        if self.clients is self.server:
            return Node(peer)
        return Node(peer, client=_advertised(self.settings.advertise_clients, self.clients))

    def validate_address(self, peer: str) -> None:
        self._peer_address(peer)

    def _peer_address(self, peer: str) -> Address:
        return parse_peer_address(peer, scheme=self.settings.listen.scheme, networks=self.settings.peer_networks)

    async def stop_serving(self, group: str) -> None:
        await self._endpoint.stop(group)

    async def close(self) -> None:
        self._closed = True
        for network in self._networks:
            await network.close()
        self._networks.clear()
        for group in list(self._endpoint.services):
            await self._endpoint.stop(group)
        watching, self._watching = self._watching, None
        if watching is not None:
            watching.cancel()
            await asyncio.wait([watching])
        session, self._session = self._session, None
        if session is not None:
            await session.close()
        if self.clients is not self.server:
            await self.clients.close()
        await self.server.close()
        self.encoder.clear()


def _advertised(said: Address | None, server: HttpServer) -> str:
    if said is not None:
        return said.url
    if server.port == 0:
        raise ConfigError("the port is not known before the node listens", hint="name a port instead of 0")
    return server.url


def _own_names(settings: HttpSettings) -> frozenset[str]:
    """Host names by which this node may be addressed."""
    addresses = (settings.listen, settings.advertise, settings.clients, settings.advertise_clients)
    return frozenset(address.host for address in addresses if address is not None)


class _PeerResolver(AbstractResolver):
    """Names become addresses that a member may have, or none: a name must not lead to a machine's metadata service."""

    def __init__(self, networks: tuple[IpNetwork, ...]) -> None:
        self._networks = networks
        self._resolver = ThreadedResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        found = await self._resolver.resolve(host, port, family)
        allowed = [address for address in found if why_refused(address["host"], self._networks) is None]
        if not allowed:
            raise OSError(errno.EACCES, f"{host} has no address that a member may have")
        return allowed

    async def close(self) -> None:
        await self._resolver.close()


def _peer_session(networks: tuple[IpNetwork, ...]) -> aiohttp.ClientSession:
    """aiohttp's defaults are a browser's: here no redirect, proxy, cookie, pool or decompression is wanted."""
    return aiohttp.ClientSession(
        # A fresh connection per request: aiohttp would silently send a PUT twice on a stale pooled one.
        connector=aiohttp.TCPConnector(limit=0, force_close=True, ttl_dns_cache=10, resolver=_PeerResolver(networks)),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=DIAL_TIMEOUT),
        cookie_jar=aiohttp.DummyCookieJar(),
        trust_env=False,
        auto_decompress=False,
        requote_redirect_url=False,
        trace_configs=[no_redirects()],
    )
