"""The calling side of a peer connection: an HTTP request that becomes a connection of frames."""

from __future__ import annotations

import asyncio
import ssl
from http import HTTPStatus

import aiohttp

from raftkit_core.errors import NetworkError, Unreachable
from raftkit_core.network.calls import Connection, Link
from raftkit_core.network.wire import FrameError
from raftkit_http.exchange import reason_of
from raftkit_http.frames import UPGRADE_HEADERS, FrameProtocol
from raftkit_http.tls import certified_ids

HELLO_ANSWER_BYTES_MAX = 64 * 1024
"""Until a peer has answered the hello it may be anybody."""


class FrameLink(Link):
    """A lane's connection. What it brings in is handed over in the step of the event loop that reads it."""

    def __init__(
        self, response: aiohttp.ClientResponse, connection: Connection, name: str, max_frame_bytes: int
    ) -> None:
        assert response.connection is not None, "the dial checked it"
        transport, former = response.connection.transport, response.connection.protocol
        assert transport is not None, "the dial checked it"
        assert former is not None, "an open connection has one"
        self._response = response
        self._connection = connection
        self._name = name
        self._aborted = False
        self._ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._reason = "closed the connection"
        self._max_frame_bytes = max_frame_bytes
        self._frames = FrameProtocol(
            transport,
            former,
            max_frame_bytes=min(max_frame_bytes, HELLO_ANSWER_BYTES_MAX),
            received=connection.received_many,
            broken=self._broken,
            lost=self._lost,
        )

    def send(self, frame: bytes, request_id: int) -> None:
        if request_id and self._frames.max_frame_bytes != self._max_frame_bytes:
            self._frames.max_frame_bytes = self._max_frame_bytes  # its hello was good
        self._frames.send(frame)

    def send_parts(self, head: bytes, body: bytes, request_id: int) -> None:
        self._frames.send(head, body)

    def abort(self) -> None:
        if not self._aborted:
            self._aborted = True
            self._frames.abort()
            self._response.close()

    @property
    def unsent_bytes(self) -> int:
        return self._frames.unsent_bytes if self._frames.is_full else 0

    @property
    def finished(self) -> bool:
        return self._ended.done()

    async def wait_closed(self) -> None:
        if not self._ended.done():
            await asyncio.wait([self._ended])

    def _broken(self, error: FrameError) -> None:
        self._reason = f"broke the connection: {error}"
        self._frames.abort()

    def _lost(self, error: Exception | None) -> None:
        if not self._ended.done():
            self._ended.set_result(None)
        self._response.close()
        if not self._aborted:
            self._aborted = True
            reason = self._reason if error is None else f"broke the connection: {error}"
            self._connection.lost(NetworkError(f"{self._name} {reason}"))


async def dial_frames(
    session: aiohttp.ClientSession,
    url: str,
    connection: Connection,
    name: str,
    *,
    max_frame_bytes: int,
    tls: ssl.SSLContext | None = None,
) -> FrameLink:
    """Open a connection to the peer ``name``; with ``tls`` only if its certificate is that of ``name``.

    Raises: Unreachable.
    """
    try:
        response = await session.get(
            url,
            headers={**UPGRADE_HEADERS, "Accept-Encoding": "identity"},
            ssl=True if tls is None else tls,
            allow_redirects=False,
            read_until_eof=False,
        )
    except aiohttp.ClientSSLError as error:
        raise Unreachable(
            f"no TLS with {name} at {url}: {error}", hint="one CA must have signed both certificates, for these hosts"
        ) from error
    except (aiohttp.ClientError, OSError) as error:
        is_name = isinstance(error, aiohttp.ClientConnectorDNSError)  # our resolver's own words say more
        raise Unreachable(f"cannot connect to {name} at {url}: {error if is_name else reason_of(error)}") from error
    held = response.connection
    if (
        response.status != HTTPStatus.SWITCHING_PROTOCOLS
        or response.headers.get("Raftkit-Frames") != UPGRADE_HEADERS["Raftkit-Frames"]
        or held is None
        or held.transport is None
    ):
        response.close()
        raise Unreachable(
            f"{name} at {url} answered with HTTP status {response.status}", hint="is this the peer address of a node?"
        )
    known = certified_ids(held.transport.get_extra_info("peercert"))
    if tls is not None and name not in known:
        response.close()
        raise Unreachable(
            f"the certificate at {url} is that of {', '.join(sorted(known)) or 'no node'}, not of {name}",
            hint="check the addresses: raftkit member list",
        )
    return FrameLink(response, connection, name, max_frame_bytes)
