"""Frames over one WebSocket: a queue that writes in order, and the calling side's link."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections import deque
from collections.abc import Awaitable, Callable

import aiohttp

from raftkit_core.errors import NetworkError, Unreachable
from raftkit_core.network.calls import Connection, Link
from raftkit_http.exchange import reason_of
from raftkit_http.tls import certified_ids

logger = logging.getLogger(__name__)

WRITE_TIMEOUT = 30.0
"""Seconds one frame may wait for a peer that does not read."""


class FrameWriter:
    """Sends what is pushed, in order, from one task. ``pending_bytes`` is what has not left the queue yet."""

    def __init__(
        self, send: Callable[[bytes], Awaitable[None]], is_wanted: Callable[[int], bool] | None = None
    ) -> None:
        self._send = send
        self._is_wanted = is_wanted
        self._queue: deque[tuple[bytes, int]] = deque()
        self._wake: asyncio.Future[None] | None = None
        self._drained: asyncio.Future[None] | None = None
        self._ending = False
        self._stopped = False
        self.pending_bytes = 0

    def push(self, frame: bytes, request_id: int = 0) -> None:
        """Queue a frame. Who pushes bounds the queue: a lane by its calls, a server by what it reads."""
        self._queue.append((frame, request_id))
        self.pending_bytes += len(frame)
        self._wake_up()

    def end(self) -> None:
        """``run`` returns once the queue is empty."""
        self._ending = True
        self._wake_up()

    async def wait_until_below(self, limit: int) -> None:
        """Return when at most ``limit`` bytes are pending, or nothing is sent any more."""
        while self.pending_bytes > limit and not self._stopped:
            self._drained = asyncio.get_running_loop().create_future()
            await self._drained

    async def run(self) -> None:
        """Send until ``end``. Raises: what the socket raises, and TimeoutError for a peer that does not read."""
        try:
            await self._run()
        finally:
            self._stopped = True
            self._tell_drained()

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            if self._queue:
                moved_at = loop.time()
                async with asyncio.timeout(WRITE_TIMEOUT) as deadline:
                    while self._queue:
                        frame, request_id = self._queue.popleft()
                        if self._is_wanted is None or self._is_wanted(request_id):
                            await self._send(frame)
                            now = loop.time()
                            if now > moved_at + 1.0:  # not per frame: it costs as much as sending a small one
                                deadline.reschedule(now + WRITE_TIMEOUT)
                                moved_at = now
                        self.pending_bytes -= len(frame)
                        self._tell_drained()
            if self._ending:
                return
            self._wake = loop.create_future()
            await self._wake

    def _tell_drained(self) -> None:
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)

    def _wake_up(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)


class PeerSocket(aiohttp.ClientWebSocketResponse):
    """A WebSocket that can be dropped at once: aiohttp's ``close`` waits for the other side."""

    def abort(self) -> None:
        connection = self._response.connection
        if connection is not None and connection.transport is not None:
            connection.transport.abort()
        self._response.close()


class SocketLink(Link):
    """A lane's connection: one task reads, one writes; either ending ends the other."""

    def __init__(self, socket: PeerSocket, connection: Connection, name: str) -> None:
        self._socket = socket
        self._connection = connection
        self._name = name
        self._writer = FrameWriter(socket.send_bytes, connection.is_wanted)
        self._aborted = False
        self._task = asyncio.get_running_loop().create_task(self._run(), name=f"link {name}")

    def send(self, frame: bytes, request_id: int) -> None:
        if not self._aborted:
            self._writer.push(frame, request_id)

    def abort(self) -> None:
        if not self._aborted:
            self._aborted = True
            self._socket.abort()
            self._task.cancel()

    @property
    def finished(self) -> bool:
        return self._task.done()

    async def wait_closed(self) -> None:
        if not self._task.done():
            await asyncio.wait([self._task])

    async def _run(self) -> None:
        writing = asyncio.get_running_loop().create_task(self._writer.run())
        writing.add_done_callback(self._written)
        reason = "closed the connection"
        try:
            while True:
                message = await self._socket.receive()
                if message.type is not aiohttp.WSMsgType.BINARY:
                    if message.type is aiohttp.WSMsgType.ERROR:
                        reason = f"broke the connection: {message.data}"
                    elif message.type is aiohttp.WSMsgType.CLOSE and message.extra:
                        reason = f"closed the connection: {message.extra}"
                    break
                self._connection.received(message.data)
        finally:
            writing.cancel()
            await asyncio.wait([writing])
            self._socket.abort()
        if not self._aborted:
            self._aborted = True
            self._connection.lost(NetworkError(f"{self._name} {reason}"))

    def _written(self, writing: asyncio.Task[None]) -> None:
        """The writer ends first only when the connection is broken or the peer does not read: end the reader too."""
        if not writing.cancelled() and (error := writing.exception()) is not None:
            logger.debug("writing to %s failed: %s", self._name, error)
            self._socket.abort()


async def dial_socket(
    session: aiohttp.ClientSession,
    url: str,
    connection: Connection,
    name: str,
    *,
    max_message_bytes: int,
    tls: ssl.SSLContext | None = None,
) -> SocketLink:
    """Open a WebSocket to the peer ``name``; with ``tls`` only if its certificate is that of ``name``.

    Raises: Unreachable.
    """
    try:
        socket = await session.ws_connect(
            url,
            compress=0,
            ssl=True if tls is None else tls,
            autoclose=False,
            max_msg_size=max_message_bytes + 1,  # aiohttp refuses from this size on
            headers={"Accept-Encoding": "identity"},
        )
    except aiohttp.WSServerHandshakeError as error:
        raise Unreachable(
            f"{name} at {url} answered with HTTP status {error.status}", hint="is this the peer address of a node?"
        ) from error
    except aiohttp.ClientSSLError as error:
        raise Unreachable(
            f"no TLS with {name} at {url}: {error}", hint="one CA must have signed both certificates, for these hosts"
        ) from error
    except (aiohttp.ClientError, OSError) as error:
        is_name = isinstance(error, aiohttp.ClientConnectorDNSError)  # our resolver's own words say more
        raise Unreachable(f"cannot connect to {name} at {url}: {error if is_name else reason_of(error)}") from error
    assert isinstance(socket, PeerSocket), "the session makes PeerSockets"
    if tls is not None and name not in (known := certified_ids(socket.get_extra_info("peercert"))):
        socket.abort()
        raise Unreachable(
            f"the certificate at {url} is that of {', '.join(sorted(known)) or 'no node'}, not of {name}",
            hint="check the addresses: raftkit member list",
        )
    return SocketLink(socket, connection, name)
