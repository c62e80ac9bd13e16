"""Accepting connections: bounded in number and in every stage of their life, whoever opens them.

aiohttp's own sites leave that to asyncio, which accepts what comes. Here a connection has a record as soon as it is
accepted, before TLS has said a word. When there are too many, the address that holds most loses its oldest idle one; a
connection whose peer has proved who it is, is never taken for that. So a flood displaces itself, and a peer that comes
back always finds a place.

=============  ===============================  ======================================================
stage          ends after                       then
=============  ===============================  ======================================================
TLS handshake  :data:`HANDSHAKE_DEADLINE`       closed
header         :data:`HEADER_DEADLINE`          closed
body           its handler's deadline           408
answer         :data:`STALL_DEADLINE` with less closed
               than :data:`ANSWER_RATE_MIN`
               taken of it (a peer: nothing)
message        :data:`MESSAGE_DEADLINE` (on a   closed
               WebSocket)
idle           aiohttp's keep-alive timeout     closed
=============  ===============================  ======================================================
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
import ssl
import sys
from asyncio.sslproto import SSLProtocol
from collections.abc import Callable
from typing import Any, cast

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.web_protocol import RequestHandler

from raftkit_http.descriptors import connections_allowed
from raftkit_http.frames import bytes_unsent

logger = logging.getLogger(__name__)

HANDSHAKE_DEADLINE = 5.0
HEADER_DEADLINE = 5.0
"""Seconds from the first byte of a request (or from the connection's beginning) to the end of its header."""
HEADER_BYTES_MAX = 64 * 1024
STALL_DEADLINE = 30.0
"""Seconds an answer may lie here without the other side taking any of it, or as much as it must."""
ANSWER_RATE_MIN = 8 * 1024
"""Bytes a second that a client takes of an answer that does not fit into the sockets, on average."""
UNSENT_BYTES_MAX = 128 * 1024
"""What the system takes at most of an answer beyond what is on its way: where it takes megabytes, it says that there
is room when a third of them have gone, and a slow reader looks like one that does not read."""
MESSAGE_DEADLINE = 20.0
"""Seconds from the first byte of a message on a WebSocket to its last, give or take a sweep."""
SWEEP_INTERVAL = 5.0
CONNECTIONS_MAX = 4096
"""Open connections, if the process may have that many descriptors: some remain for storage, and for calling peers."""
CONNECTIONS_PER_ADDRESS_MAX = 1024
BACKLOG = 512
ACCEPT_PAUSE = 0.2
"""Seconds without accepting after the system refused another descriptor."""
ACCEPT_FAILURES_AT_ONCE = 16
_OUT_OF_DESCRIPTORS = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_IDLE_LOOKED_AT = 64
_TCP_NOTSENT_LOWAT = getattr(socket, "TCP_NOTSENT_LOWAT", 25 if sys.platform == "linux" else None)


class GuardedHandler(RequestHandler):
    """aiohttp's protocol of one connection, with a deadline and a limit for headers."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.is_peer = False
        """Whether a node of this cluster has said hello here: such a connection is never dropped for others."""
        self.received_bytes = 0
        self.messages: int | None = None
        """How many have come in whole, once this is a WebSocket: see :meth:`message_arrived`."""
        self._whole_bytes = 0
        self._has_begun = False
        self._header_timer: asyncio.TimerHandle | None = None
        self._header_bytes = 0
        self._on_lost: Callable[[], None] | None = None
        self._on_malformed: Callable[[], None] | None = None
        self._held: asyncio.Transport | None = None  # aiohttp forgets its own as soon as it begins to close it

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._held = cast(asyncio.Transport, transport)
        self._start_header_timer()

    async def start(self) -> None:
        self._has_begun = True
        await super().start()

    def connection_lost(self, exc: BaseException | None) -> None:
        self._header_ended()
        self._held = None
        answered = self._task_handler if self._current_request is None else None
        super().connection_lost(exc)
        if answered is not None:
            answered.cancel()  # aiohttp would go on waiting for the rest of a body that was refused
        if self._on_lost is not None:
            self._on_lost()

    def data_received(self, data: bytes) -> None:
        self.received_bytes += len(data)
        super().data_received(data)
        if self.is_idle and data:
            # Still waiting for a request although something came: the header is not complete.
            self._header_bytes += len(data)
            if self._header_bytes > HEADER_BYTES_MAX:
                self.drop()
            elif self._header_timer is None:
                self._start_header_timer()
        elif self._header_timer is not None:
            self._header_ended()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """aiohttp logs what is no HTTP with a traceback and sends it back: a stranger could fill the log."""
        if not isinstance(exc, HttpProcessingError):
            return super().handle_error(request, status, exc, message)
        if self._on_malformed is not None:
            self._on_malformed()
        response = web.Response(status=400, text="this is no valid HTTP request\n")
        response.force_close()
        return response

    @property
    def is_idle(self) -> bool:
        """Whether no request is under way."""
        waiter = self._waiter
        if waiter is None:
            # The first bytes may come in the turn in which the connection is made, before aiohttp's task has begun.
            return not self._has_begun and not self._messages
        return not waiter.done()

    def message_arrived(self) -> None:
        """Whoever reads messages here says so of the upgrade and of each of them, pings and pongs too."""
        self.messages = 0 if self.messages is None else self.messages + 1
        self._whole_bytes = self.received_bytes

    @property
    def is_amid_message(self) -> bool:
        """Whether more has come in since the last whole message."""
        return self.messages is not None and self.received_bytes != self._whole_bytes

    def drop(self) -> None:
        """Close at once."""
        if self._held is not None:
            self._held.abort()

    @property
    def unread_bytes(self) -> int:
        """Written, and not taken by the other side yet."""
        return 0 if self._held is None else bytes_unsent(self._held)

    def _start_header_timer(self) -> None:
        self._header_timer = asyncio.get_running_loop().call_later(HEADER_DEADLINE, self.drop)

    def _header_ended(self) -> None:
        self._header_bytes = 0
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None


class _Accepted:
    """One connection from its first moment: a socket, then a handler."""

    def __init__(self, host: str, handler: GuardedHandler, sock: socket.socket) -> None:
        self.host = host
        self.handler = handler
        self.socket = sock
        self.opening: asyncio.Task[None] | None = None
        self._unread = 0
        self._patience = 0.0
        self._messages: int | None = None
        self._message_since = 0.0

    @property
    def is_idle(self) -> bool:
        return self.opening is not None or self.handler.is_idle

    def is_stalled(self, elapsed: float) -> bool:
        """Whether the other side takes too little of what was written for it, asked every ``elapsed`` seconds.

        What is written meanwhile hides some of what is taken: the true minimum is up to twice the one that is named.
        """
        former, self._unread = self._unread, self.handler.unread_bytes
        if not former or not self._unread:
            self._patience = STALL_DEADLINE
            return False
        taken = max(former - self._unread, 0)
        if taken and self.handler.is_peer:  # its calls have deadlines, and a slow line between members is no attack
            self._patience = STALL_DEADLINE
        else:
            self._patience = min(self._patience - elapsed + taken / ANSWER_RATE_MIN, STALL_DEADLINE)
        return self._patience <= 0

    def is_dripping(self, now: float) -> bool:
        """Whether a message takes too long to come in."""
        if not self.handler.is_amid_message or self.handler.messages != self._messages:
            self._messages = self.handler.messages
            self._message_since = now
            return False
        return now - self._message_since >= MESSAGE_DEADLINE

    def drop(self) -> None:
        if self.opening is not None:
            self.opening.cancel()
        self.handler.drop()


async def next_connection(listening: socket.socket) -> tuple[socket.socket, Any]:
    """As ``loop.sock_accept``, but a caller that is cancelled leaves a connection that comes just then to the system,
    which ends it, and holds it no more than the caller does. Raises: OSError."""
    loop = asyncio.get_running_loop()
    while True:
        try:
            return listening.accept()
        except (BlockingIOError, InterruptedError):
            pass
        came: asyncio.Future[None] = loop.create_future()
        try:
            loop.add_reader(listening, _wake, came)
        except NotImplementedError:
            # The usual loop of Windows has no readers. A connection that comes just when its accept is cancelled may
            # stay open there until the process ends.
            return await loop.sock_accept(listening)
        try:
            await came
        finally:
            loop.remove_reader(listening)


def _wake(came: asyncio.Future[None]) -> None:
    if not came.done():
        came.set_result(None)


async def _take_over(sock: socket.socket, handler: GuardedHandler, tls: ssl.SSLContext | None) -> None:
    """Have ``handler`` speak on ``sock``, behind ``tls``. Raises: OSError, TimeoutError."""
    loop = asyncio.get_running_loop()
    if tls is None:
        await loop.connect_accepted_socket(lambda: handler, sock)
        return
    limits: dict[str, Any] = {"ssl_handshake_timeout": HANDSHAKE_DEADLINE, "ssl_shutdown_timeout": 1.0}
    if isinstance(loop, asyncio.BaseEventLoop):
        await loop.connect_accepted_socket(lambda: handler, sock, ssl=tls, **limits)
        return
    # uvloop's own TLS passes on all that is written and does not say how much of it lies here: who reads nothing would
    # never be found out. asyncio's TLS works on any loop's transports.
    shaken: asyncio.Future[None] = loop.create_future()
    protocol = SSLProtocol(loop, handler, tls, shaken, server_side=True, **limits)
    transport, _ = await loop.connect_accepted_socket(lambda: protocol, sock)
    try:
        await shaken
    except BaseException:
        transport.abort()
        raise


class Listener:
    """Sockets that accept for ``make_handler`` (aiohttp's ``web.Server`` with our handlers)."""

    def __init__(
        self, make_handler: Callable[[], GuardedHandler], tls: ssl.SSLContext | None, *, listeners: int = 1
    ) -> None:
        """``listeners`` share what descriptors the process may have."""
        self._make_handler = make_handler
        self._tls = tls
        self._connections_max = connections_allowed(CONNECTIONS_MAX, listeners)
        # Whoever takes all the places of one address leaves some to the others.
        self._per_address_max = min(CONNECTIONS_PER_ADDRESS_MAX, self._connections_max - self._connections_max // 4)
        self._sockets: list[socket.socket] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._open: dict[_Accepted, None] = {}
        self._by_host: dict[str, dict[_Accepted, None]] = {}
        self.dropped = 0
        """Connections closed to make room for others."""
        self.malformed = 0
        """Requests that were no valid HTTP."""

    @property
    def port(self) -> int:
        return int(self._sockets[0].getsockname()[1])

    @property
    def connections(self) -> int:
        return len(self._open)

    async def start(self, host: str, port: int) -> None:
        """Listen on every address of ``host``. Raises: OSError."""
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        try:
            for family, kind, protocol, _, address in dict.fromkeys(found):
                sock = socket.socket(family, kind, protocol)
                self._sockets.append(sock)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                sock.setblocking(False)
                if port == 0 and len(self._sockets) > 1:
                    address = (address[0], self.port, *address[2:])
                sock.bind(address)
                sock.listen(BACKLOG)
        except OSError:
            self._close_sockets()
            raise
        self._tasks = [loop.create_task(self._accept(sock), name="accept") for sock in self._sockets]
        self._tasks.append(loop.create_task(self._sweep(), name="sweep connections"))

    async def stop_accepting(self) -> None:
        """Close the sockets that listen. Idempotent."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        self._close_sockets()

    async def close(self) -> None:
        """Drop what is still open: handlers had their time. Idempotent."""
        await self.stop_accepting()
        opening = [accepted.opening for accepted in self._open if accepted.opening is not None]
        for accepted in list(self._open):
            accepted.drop()
        if opening:
            await asyncio.wait(opening)

    def _close_sockets(self) -> None:
        for sock in self._sockets:
            sock.close()
        self._sockets = self._sockets[:0]

    async def _accept(self, sock: socket.socket) -> None:
        complained = False
        failures = 0
        while True:
            try:
                connection, address = await next_connection(sock)
            except OSError as error:
                if error.errno not in _OUT_OF_DESCRIPTORS:
                    # That connection was gone before it was accepted. What fails again and again must not spin.
                    failures += 1
                    await asyncio.sleep(0 if failures < ACCEPT_FAILURES_AT_ONCE else ACCEPT_PAUSE)
                    continue
                if not complained:
                    logger.error("cannot accept connections: %s", error.strerror)
                    complained = True
                self._make_room(self._busiest_host())
                await asyncio.sleep(ACCEPT_PAUSE)
                continue
            complained = False
            failures = 0
            self._arrived(connection, str(address[0]))

    def _arrived(self, connection: socket.socket, host: str) -> None:
        if len(self._by_host.get(host, ())) >= self._per_address_max:
            self._make_room(host)
        elif len(self._open) >= self._connections_max:
            self._make_room(self._busiest_host())
        connection.setblocking(False)
        if _TCP_NOTSENT_LOWAT is not None:
            with contextlib.suppress(OSError):
                connection.setsockopt(socket.IPPROTO_TCP, _TCP_NOTSENT_LOWAT, UNSENT_BYTES_MAX)
        accepted = _Accepted(host, self._make_handler(), connection)
        self._open[accepted] = None
        self._by_host.setdefault(host, {})[accepted] = None
        accepted.handler._on_lost = lambda: self._forget(accepted)
        accepted.handler._on_malformed = self._count_malformed
        taking_over = _take_over(connection, accepted.handler, self._tls)
        accepted.opening = asyncio.get_running_loop().create_task(taking_over, name="open connection")
        accepted.opening.add_done_callback(lambda task: self._opened(accepted, task))

    def _opened(self, accepted: _Accepted, opening: asyncio.Task[None]) -> None:
        """Not a part of the task: one that is cancelled before its first step runs none of its code."""
        accepted.opening = None
        error = None
        if not opening.cancelled():
            error = opening.exception()
            if error is None:
                return
            if not isinstance(error, OSError | TimeoutError):  # ssl.SSLError is an OSError
                logger.error("a connection from %s could not be opened", accepted.host, exc_info=error)
            else:
                logger.debug("a connection from %s was not opened: %s", accepted.host, error)
        accepted.socket.close()
        self._forget(accepted)

    def _forget(self, accepted: _Accepted) -> None:
        self._open.pop(accepted, None)
        same = self._by_host.get(accepted.host)
        if same is not None:
            same.pop(accepted, None)
            if not same:
                del self._by_host[accepted.host]

    def _busiest_host(self) -> str:
        return max(self._by_host, key=lambda known: len(self._by_host[known]), default="")

    def _make_room(self, host: str) -> None:
        """Drop the oldest idle connection of ``host``, or its oldest if all are at work; peers stay."""
        oldest: _Accepted | None = None
        looked_at = 0
        for accepted in self._by_host.get(host, ()):
            if accepted.handler.is_peer:
                continue
            oldest = accepted if oldest is None else oldest
            looked_at += 1
            if accepted.is_idle or looked_at >= _IDLE_LOOKED_AT:
                oldest = accepted if accepted.is_idle else oldest
                break
        if oldest is not None:
            self.dropped += 1
            oldest.drop()
            self._forget(oldest)

    def _count_malformed(self) -> None:
        self.malformed += 1

    async def _sweep(self) -> None:
        """Drop connections whose other side does not read what was written for it, or does not end what it says."""
        loop = asyncio.get_running_loop()
        swept_at = loop.time()
        while True:
            await asyncio.sleep(SWEEP_INTERVAL)
            now = loop.time()
            for accepted in list(self._open):
                if accepted.is_stalled(now - swept_at) or accepted.is_dripping(now):
                    accepted.drop()
            swept_at = now
