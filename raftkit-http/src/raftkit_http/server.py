"""A listener of a node: an aiohttp application, for peers, for clients or for both.

Routes are added before :meth:`HttpServer.start` and then fixed. aiohttp's defaults are those of a web site; what is
changed here, and why, is said beside each setting. Nothing here knows about Raft.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import ssl
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from aiohttp import web

from raftkit_core.errors import AddressInUse, ConfigError
from raftkit_http.listener import GuardedHandler, Listener
from raftkit_http.settings import Address

logger = logging.getLogger(__name__)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

CLIENT_BODY_BYTES_MAX = 24 * 1024 * 1024
"""An entry of 16 MiB as base64 in JSON, and a little."""
BODY_DEADLINE = 20.0
"""Seconds a client may take to send a body: aiohttp has no deadline of its own on a slow one."""
KEEPALIVE_TIMEOUT = 60.0
"""Seconds a connection may idle between requests (aiohttp: 3630). Our clients idle shorter."""
SHUTDOWN_TIMEOUT = 2.0
"""Seconds for handlers under way at :meth:`HttpServer.close` (aiohttp: 60)."""
HEADERS_MAX = 64
HEADER_LINE_BYTES_MAX = 8190

STREAMED_PREFIX = ("/raft/", "/v1/")
"""Below these, handlers read their body themselves, chunk by chunk, each with its own deadline."""


class HttpServer:
    """A listener with routes.

    ``add_routes`` any number of times, then ``start`` once, then ``close``. ``on_close`` callbacks run first when
    closing, while the listener no longer accepts: the place to end long-lived responses.
    """

    def __init__(self, listen: Address, tls: ssl.SSLContext | None = None, *, listeners: int = 1) -> None:
        """``listeners``: how many the node has, with this one."""
        self.listen = listen
        self.app = web.Application(client_max_size=CLIENT_BODY_BYTES_MAX, middlewares=[_body_guard], logger=logger)
        self.listener: Listener | None = None
        self._tls = tls
        self._listeners = listeners
        self._runner: web.AppRunner | None = None
        self._on_close: list[Callable[[], Awaitable[None]]] = []
        self._port: int | None = None
        self._closed = False

    @property
    def started(self) -> bool:
        return self._runner is not None

    @property
    def port(self) -> int:
        """The port listened on; before ``start`` the one asked for (0: not chosen yet)."""
        return self.listen.port if self._port is None else self._port

    @property
    def url(self) -> str:
        return Address(self.listen.host, self.port, self.listen.scheme).url

    def add_routes(self, routes: Iterable[web.AbstractRouteDef]) -> None:
        """Add routes (``web.get("/v1/status", handler)``, …). Raises: ConfigError once the server has started."""
        if self.started or self._closed:
            raise ConfigError("routes must be added before the HTTP server starts")
        self.app.add_routes(list(routes))

    def on_close(self, callback: Callable[[], Awaitable[None]]) -> None:
        """Call ``callback`` at the beginning of ``close``."""
        self._on_close.append(callback)

    async def start(self) -> None:
        """Listen. Raises: AddressInUse naming the port; ConfigError if the host is not of this machine."""
        if self._closed:
            raise ConfigError("the HTTP server was closed and cannot start again")
        if self._runner is not None:
            return
        options: dict[str, Any] = {
            "access_log": None,  # a line per heartbeat would drown the log
            "keepalive_timeout": KEEPALIVE_TIMEOUT,
            "lingering_time": 1.0,  # reading on after a refused body only keeps slow senders busy
            "auto_decompress": False,  # a few KiB of gzip must not become GiB
            "max_headers": HEADERS_MAX,
            "max_line_size": HEADER_LINE_BYTES_MAX,
            "max_field_size": HEADER_LINE_BYTES_MAX,
        }
        runner = web.AppRunner(self.app, handle_signals=False, shutdown_timeout=SHUTDOWN_TIMEOUT, **options)
        await runner.setup()
        server = runner.server
        assert server is not None, "setup() makes the server"
        loop = asyncio.get_running_loop()
        listener = Listener(
            lambda: GuardedHandler(server, loop=loop, logger=logger, **options), self._tls, listeners=self._listeners
        )
        try:
            await listener.start(self.listen.host, self.listen.port)
        except OSError as error:
            await runner.cleanup()
            raise _listen_error(self.listen, error) from error
        self.listener = listener
        self._runner = runner
        self._port = listener.port

    async def close(self) -> None:
        """Stop accepting, run the ``on_close`` callbacks, give handlers ``SHUTDOWN_TIMEOUT``. Idempotent."""
        self._closed = True
        runner, self._runner = self._runner, None
        if runner is None:
            return
        assert self.listener is not None, "it was started with the runner"
        await self.listener.stop_accepting()
        for callback in self._on_close:
            await callback()
        await runner.cleanup()
        await self.listener.close()


def _listen_error(listen: Address, error: OSError) -> Exception:
    """A port in use is the commonest of all start errors: say which, and what to type."""
    if error.errno == errno.EADDRINUSE:
        return AddressInUse(
            f"port {listen.port} on {listen.host} is in use by another process",
            hint=f"stop what listens there (ss -ltnp 'sport = :{listen.port}' shows it) or choose another port",
        )
    if error.errno == errno.EACCES:
        return ConfigError(
            f"no permission to listen on port {listen.port} of {listen.host}", hint="choose a port above 1023"
        )
    return ConfigError(
        f"cannot listen on {listen.url}: {error.strerror or error}",
        hint="listen on an address of this machine, and put the name others use in ?advertise=",
    )


@web.middleware
async def _body_guard(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Read the body of an ordinary request under one deadline before its handler runs (handlers then get it at once).

    A compressed body is refused: nobody needs it here, and it hides its size.
    """
    if request.path.startswith(STREAMED_PREFIX) or not request.can_read_body:
        return await handler(request)
    if request.headers.get("Content-Encoding", "identity").lower() != "identity":
        return web.Response(status=415, text="compressed bodies are not accepted\n")
    try:
        async with asyncio.timeout(BODY_DEADLINE):
            await request.read()
    except TimeoutError:
        response = web.Response(status=408, text=f"the body did not arrive within {BODY_DEADLINE:g} s\n")
        response.force_close()
        return response
    return await handler(request)
