"""The listener's own limits: what aiohttp leaves open is closed here."""

from __future__ import annotations

import asyncio
import errno
import gc
import logging
import resource
import socket
import ssl
import zlib
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp import web

from raftkit_core.errors import ConfigError
from raftkit_http import descriptors
from raftkit_http import listener as listener_module
from raftkit_http import server as server_module
from raftkit_http.descriptors import connections_allowed
from raftkit_http.server import HttpServer
from raftkit_http.settings import Address
from raftkit_http.tls import TlsContexts

AMPLE = 40.0
"""Seconds for what ends by itself."""


async def echo(request: web.Request) -> web.Response:
    return web.Response(body=await request.read())


@asynccontextmanager
async def listening() -> AsyncIterator[HttpServer]:
    server = HttpServer(Address("127.0.0.1", 0))
    server.add_routes([web.post("/echo", echo)])
    await server.start()
    try:
        yield server
    finally:
        await server.close()


async def exchange(server: HttpServer, *parts: bytes) -> bytes:
    """Send ``parts``, then give everything that comes back until the server closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    try:
        for part in parts:
            writer.write(part)
        async with asyncio.timeout(AMPLE):
            return await reader.read()
    finally:
        writer.close()


HEAD = b"POST /echo HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"


async def test_a_body_within_the_limits_is_served() -> None:
    async with listening() as server:
        answer = await exchange(server, HEAD + b"Content-Length: 2\r\n\r\n", b"hi")
        assert answer.startswith(b"HTTP/1.1 200")
        assert answer.endswith(b"hi")


async def test_a_body_that_does_not_arrive_ends_in_408(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "BODY_DEADLINE", 0.05)
    async with listening() as server:
        assert (await exchange(server, HEAD + b"Content-Length: 9\r\n\r\n", b"slow")).startswith(b"HTTP/1.1 408")


async def test_half_a_header_does_not_hold_a_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener_module, "HEADER_DEADLINE", 0.2)
    async with listening() as server:
        assert await exchange(server, HEAD) == b""
        assert await exchange(server) == b""
        # Bytes one by one move no deadline, and a request that was answered before buys no second one.
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nhi")
        await asyncio.wait_for(reader.readuntil(b"hi"), AMPLE)
        trickling = asyncio.create_task(trickle(writer))
        with suppress(ConnectionResetError):  # bytes that arrive after the close are answered by a reset
            await asyncio.wait_for(reader.read(), AMPLE)
        trickling.cancel()
        await asyncio.wait([trickling])
        writer.close()


async def test_half_a_header_in_the_turn_of_the_connection_has_the_deadline_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """TLS, and loops other than asyncio's, hand over the first bytes before aiohttp waits for a request."""
    monkeypatch.setattr(listener_module, "HEADER_DEADLINE", 0.2)
    made = listener_module.GuardedHandler.connection_made
    loop = asyncio.get_running_loop()

    def at_once(handler: listener_module.GuardedHandler, transport: asyncio.BaseTransport) -> None:
        made(handler, transport)
        handler.data_received(first)

    monkeypatch.setattr(listener_module.GuardedHandler, "connection_made", at_once)
    async with listening() as server:
        began = loop.time()
        first = HEAD
        assert await exchange(server) == b""
        assert loop.time() - began < 2
        first = HEAD + b"Content-Length: 2\r\n\r\nhi"
        assert (await exchange(server)).endswith(b"hi")


async def trickle(writer: asyncio.StreamWriter) -> None:
    for byte in HEAD * 100:
        writer.write(bytes([byte]))
        await writer.drain()
        await asyncio.sleep(0.005)


async def test_an_idle_connection_is_closed_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "KEEPALIVE_TIMEOUT", 0.05)
    async with listening() as server:
        kept = HEAD.replace(b"Connection: close\r\n", b"") + b"Content-Length: 2\r\n\r\nhi"
        assert (await exchange(server, kept)).endswith(b"hi")


async def test_a_header_is_bounded_in_lines_and_bytes(caplog: pytest.LogCaptureFixture) -> None:
    async with listening() as server:
        for lines in (b"A: " + b"x" * 9000 + b"\r\n", b"A: b\r\n" * 65):
            assert (await exchange(server, HEAD + lines + b"Content-Length: 0\r\n\r\n")).startswith(b"HTTP/1.0 400")
        assert b"GGG" not in await exchange(server, b"G" * 100_000)
        assert server.listener is not None
        assert server.listener.malformed == 3
    assert not caplog.records, "a stranger must not be able to fill the log"


async def test_a_compressed_body_is_refused() -> None:
    bomb = zlib.compress(bytes(1024))
    head = HEAD + b"Content-Encoding: deflate\r\nContent-Length: %d\r\n\r\n" % len(bomb)
    async with listening() as server:
        assert (await exchange(server, head, bomb)).startswith(b"HTTP/1.1 415")


async def test_a_body_beyond_the_limit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "CLIENT_BODY_BYTES_MAX", 10)
    async with listening() as server:
        assert (await exchange(server, HEAD + b"Content-Length: 11\r\n\r\n", bytes(11))).startswith(b"HTTP/1.1 413")


async def opened(server: HttpServer, stack: AsyncExitStack) -> asyncio.StreamReader:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    stack.callback(writer.close)
    assert server.listener is not None
    seen = server.listener.connections + server.listener.dropped
    async with asyncio.timeout(AMPLE):
        while server.listener.connections + server.listener.dropped <= seen - 1:  # noqa: ASYNC110 (plain data)
            await asyncio.sleep(0)
    return reader


@pytest.mark.parametrize("limit", ["CONNECTIONS_MAX", "CONNECTIONS_PER_ADDRESS_MAX"])
async def test_a_connection_beyond_the_limit_displaces_the_oldest_idle_one_of_whoever_has_most_but_never_a_peer(
    monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    monkeypatch.setattr(listener_module, limit, 3)
    async with listening() as server, AsyncExitStack() as stack:
        assert server.listener is not None
        first = await opened(server, stack)
        await until(lambda: server.listener and server.listener.connections == 1)
        for accepted in server.listener._open:
            accepted.handler.is_peer = True
        second = await opened(server, stack)
        await opened(server, stack)
        await opened(server, stack)
        await until(lambda: server.listener and server.listener.dropped == 1)
        assert await asyncio.wait_for(second.read(), AMPLE) == b""
        assert not first.at_eof()
        assert server.listener.connections == 3
        # The one that came last is served.
        assert (await exchange(server, HEAD + b"Content-Length: 2\r\n\r\n", b"hi")).endswith(b"hi")


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(AMPLE):
        while not condition():  # noqa: ASYNC110 (what is waited for is plain data)
            await asyncio.sleep(0)


@pytest.mark.parametrize("secure", [False, True], ids=["plain", "tls"])
async def test_a_client_that_does_not_read_its_answer_is_dropped(
    monkeypatch: pytest.MonkeyPatch, authority: Any, secure: bool
) -> None:
    monkeypatch.setattr(listener_module, "SWEEP_INTERVAL", 0.02)
    monkeypatch.setattr(listener_module, "STALL_DEADLINE", 0.05)

    asked = asyncio.Event()

    async def much(request: web.Request) -> web.Response:
        asked.set()
        return web.Response(body=bytes(16 * 1024 * 1024))

    def ask() -> socket.socket:
        """On a thread, and not through the loop: some loops read more than they are asked for."""
        sock = socket.create_connection(("127.0.0.1", server.port), timeout=5)
        asking = trusted.wrap_socket(sock, server_hostname="127.0.0.1") if trusted else sock
        asking.sendall(b"GET /much HTTP/1.1\r\nHost: x\r\n\r\n")
        return asking

    security = authority.node("n1")
    trusted = ssl.create_default_context(cafile=authority.ca_file) if secure else None
    server = HttpServer(Address("127.0.0.1", 0), TlsContexts(security).server(ssl.CERT_NONE) if secure else None)
    server.add_routes([web.get("/much", much)])
    await server.start()
    try:
        with await asyncio.to_thread(ask):
            await asyncio.wait_for(asked.wait(), AMPLE)
            await until(lambda: server.listener and server.listener.connections == 0)
    finally:
        await server.close()


@pytest.mark.parametrize("rate", [0, 200_000, 4_000_000])
async def test_an_answer_is_taken_at_a_minimum_rate(monkeypatch: pytest.MonkeyPatch, rate: int) -> None:
    """Some bytes now and then are progress, and hold a large answer in memory for a day."""
    monkeypatch.setattr(listener_module, "SWEEP_INTERVAL", 0.02)
    monkeypatch.setattr(listener_module, "STALL_DEADLINE", 0.6)
    monkeypatch.setattr(listener_module, "ANSWER_RATE_MIN", 1_000_000)
    loop = asyncio.get_running_loop()

    async def much(request: web.Request) -> web.Response:
        return web.Response(body=bytes(8 * 1024 * 1024))

    server = HttpServer(Address("127.0.0.1", 0))
    server.add_routes([web.get("/much", much)])
    await server.start()
    try:
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 * 1024)
            sock.setblocking(False)
            await loop.sock_connect(sock, ("127.0.0.1", server.port))
            await loop.sock_sendall(sock, b"GET /much HTTP/1.1\r\nHost: x\r\n\r\n")
            assert server.listener is not None
            began = loop.time()
            taken = 0
            fast = rate > 1_000_000
            while loop.time() - began < (1.2 if fast else AMPLE):
                await asyncio.sleep(0.01)
                if server.listener.connections == 0 and taken:
                    break
                while rate and taken < rate * (loop.time() - began):  # what it could not take in time, it makes up for
                    taken += len(await loop.sock_recv(sock, rate // 100))
                taken += not rate
            dropped = server.listener.connections == 0
        assert dropped == (rate < 1_000_000)
    finally:
        await server.close()


@pytest.mark.parametrize("drips", [True, False])
async def test_a_message_on_a_websocket_does_not_come_in_drop_by_drop(
    monkeypatch: pytest.MonkeyPatch, drips: bool
) -> None:
    """Whole messages and pongs may be few and far between, but each that has begun ends soon."""
    monkeypatch.setattr(listener_module, "SWEEP_INTERVAL", 0.02)
    monkeypatch.setattr(listener_module, "MESSAGE_DEADLINE", 0.1)
    taken: list[bytes] = []

    async def echo(request: web.Request) -> web.WebSocketResponse:
        made = web.WebSocketResponse(autoping=False)
        await made.prepare(request)
        handler = request.protocol
        assert isinstance(handler, listener_module.GuardedHandler)
        handler.message_arrived()
        async for message in made:
            handler.message_arrived()
            taken.append(message.data)
        return made

    server = HttpServer(Address("127.0.0.1", 0))
    server.add_routes([web.get("/ws", echo)])
    await server.start()
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(
            b"GET /ws HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
        )
        await reader.readuntil(b"\r\n\r\n")
        frame = b"\x82\xa8" + bytes(4) + bytes(40)
        for byte in frame if drips else range(0, 4 * len(frame), len(frame)):
            if not writer.is_closing():
                writer.write(bytes([byte]) if drips else frame)
            await asyncio.sleep(0.015 if drips else 0.13)
        dropped = server.listener is not None and server.listener.connections == 0
        assert (dropped, len(taken)) == ((True, 0) if drips else (False, 4))
        writer.close()
    finally:
        await server.close()


async def test_without_descriptors_the_listener_waits_and_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener_module, "ACCEPT_PAUSE", 0.01)
    accept = listener_module.next_connection
    refusals = [errno.EMFILE, errno.ENFILE, *([errno.ECONNABORTED] * 30)]

    async def short_of_descriptors(sock: socket.socket) -> Any:
        if refusals:
            raise OSError(refusals.pop(), "no")
        return await accept(sock)

    monkeypatch.setattr(listener_module, "next_connection", short_of_descriptors)
    async with listening() as server:
        assert (await exchange(server, HEAD + b"Content-Length: 2\r\n\r\n", b"hi")).endswith(b"hi")
    assert not refusals


@pytest.mark.parametrize(
    ("soft", "listeners", "allowed"),
    [
        (20_000, 1, 4096),
        (-1, 2, 4096),
        (4096 + 256, 1, 4096),
        (1024, 1, 768),
        (1024, 2, 384),
        (4096 + 256, 2, 2048),
        (100, 1, 64),
    ],
)
async def test_a_listener_keeps_within_the_descriptors_of_the_process(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, soft: int, listeners: int, allowed: int
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(resource, "getrlimit", lambda what: (soft, 50_000))
    assert connections_allowed(4096, listeners) == allowed
    told = [record.getMessage() for record in caplog.records]
    assert bool(told) == (allowed < 4096)
    assert all("ulimit -n" in text and str(soft) in text for text in told)


async def test_a_flood_leaves_descriptors_for_storage_and_peers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda what: (descriptors.RESERVED + 8, 50_000))
    monkeypatch.setattr(descriptors, "CONNECTIONS_MIN", 1)
    async with listening() as server, AsyncExitStack() as stack:
        assert server.listener is not None
        for _ in range(30):
            await opened(server, stack)
        assert server.listener.connections <= 8
        assert server.listener.dropped >= 22
        assert (await exchange(server, HEAD + b"Content-Length: 2\r\n\r\n", b"hi")).endswith(b"hi")


async def test_a_connection_that_comes_while_accepting_stops_is_ended() -> None:
    """The loop has seen that it is there, and the task that would take it is cancelled before its turn."""
    async with listening() as server:
        assert server.listener is not None
        await asyncio.sleep(0.01)
        (accepting, _) = server.listener._tasks
        with socket.create_connection(("127.0.0.1", server.port)) as caller:
            asyncio.get_running_loop().call_later(0, accepting.cancel)  # timers come behind what the selector gives
            await asyncio.wait([accepting])
            await server.listener.stop_accepting()
            caller.settimeout(2)
            with suppress(ConnectionResetError):
                assert await asyncio.to_thread(caller.recv, 1) == b""
            gc.collect()  # a socket that nobody closed would be warned of


async def test_a_connection_dropped_before_its_task_begins_is_closed() -> None:
    async with listening() as server:
        listener = server.listener
        assert listener is not None
        here, there = socket.socketpair()
        listener._arrived(there, "10.0.0.9")
        listener._make_room("10.0.0.9")
        await asyncio.sleep(0.01)
        assert there.fileno() == -1
        assert listener.connections == 0
        here.close()


async def test_a_loop_without_readers_accepts_in_its_own_way(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = asyncio.get_running_loop()

    class WithoutReaders:
        """As the usual loop of Windows is."""

        create_future, sock_accept = loop.create_future, loop.sock_accept

        def add_reader(self, *args: Any) -> None:
            raise NotImplementedError

    with socket.create_server(("127.0.0.1", 0)) as listening_socket, socket.socket() as caller:
        listening_socket.setblocking(False)
        caller.setblocking(False)
        monkeypatch.setattr(listener_module, "asyncio", SimpleNamespace(get_running_loop=WithoutReaders))
        async with asyncio.timeout(5):
            accepting = asyncio.ensure_future(listener_module.next_connection(listening_socket))
            await asyncio.sleep(0)  # nobody calls yet: it has to wait
            await loop.sock_connect(caller, listening_socket.getsockname())
            connection, address = await accepting
        assert address == caller.getsockname()
        connection.close()


async def test_an_accept_that_keeps_failing_does_not_spin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener_module, "ACCEPT_PAUSE", 0.05)
    asked = 0

    async def broken(sock: socket.socket) -> Any:
        nonlocal asked
        asked += 1
        raise OSError(errno.EPERM, "the firewall says no")

    monkeypatch.setattr(listener_module, "next_connection", broken)
    async with listening():
        await asyncio.sleep(0.12)
        assert asked <= listener_module.ACCEPT_FAILURES_AT_ONCE + 4


async def test_without_descriptors_whoever_holds_most_loses_one_also_if_peers_came_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(listener_module, "ACCEPT_PAUSE", 0.01)
    accept = listener_module.next_connection
    refusals: list[int] = []

    async def short_of_descriptors(sock: socket.socket) -> Any:
        if refusals:
            raise OSError(refusals.pop(), "no")
        return await accept(sock)

    monkeypatch.setattr(listener_module, "next_connection", short_of_descriptors)
    async with listening() as server, AsyncExitStack() as stack:
        assert server.listener is not None
        for _ in range(3):
            await opened(server, stack)
        await until(lambda: server.listener and server.listener.connections == 3)
        peer, *_ = server.listener._open
        peer.handler.is_peer = True
        del server.listener._by_host["127.0.0.1"][peer]
        server.listener._by_host = {"10.0.0.1": {peer: None}, **server.listener._by_host}
        refusals.append(errno.EMFILE)
        await opened(server, stack)  # what was waiting for a connection gets this one, the next is refused
        await until(lambda: server.listener and server.listener.dropped == 1)
        assert peer in server.listener._open


async def test_a_handshake_that_is_not_finished_ends(authority: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener_module, "HANDSHAKE_DEADLINE", 0.05)
    tls = TlsContexts(authority.node("n1")).server(ssl.CERT_NONE)
    server = HttpServer(Address("127.0.0.1", 0, "https"), tls)
    await server.start()
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        assert await asyncio.wait_for(reader.read(), AMPLE) == b""
        writer.close()
        assert server.listener is not None
        assert server.listener.connections == 0
    finally:
        await server.close()


async def test_closing_runs_the_callbacks_once_and_is_idempotent() -> None:
    ended: list[str] = []

    async def end() -> None:
        ended.append("x")

    server = HttpServer(Address("127.0.0.1", 0))
    server.on_close(end)
    await server.start()
    await server.close()
    await server.close()
    assert ended == ["x"]
    with pytest.raises(ConfigError, match="was closed"):
        await server.start()


async def test_an_address_of_another_machine_is_an_error_with_a_hint() -> None:
    server = HttpServer(Address("192.0.2.1", 7401))
    with pytest.raises(ConfigError, match=r"192\.0\.2\.1") as caught:
        await server.start()
    assert "advertise" in (caught.value.hint or "")
    await server.close()
