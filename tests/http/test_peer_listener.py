"""The listener's own limits: what aiohttp leaves open is closed here."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from aiohttp import web

from raftkit_core.errors import ConfigError
from raftkit_http import server as server_module
from raftkit_http.server import HttpServer
from raftkit_http.settings import Address


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
        async with asyncio.timeout(5):
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
    monkeypatch.setattr(server_module, "KEEPALIVE_TIMEOUT", 0.05)
    async with listening() as server:
        assert await exchange(server, HEAD) == b""


async def test_a_compressed_body_is_refused() -> None:
    bomb = zlib.compress(bytes(1024))
    head = HEAD + b"Content-Encoding: deflate\r\nContent-Length: %d\r\n\r\n" % len(bomb)
    async with listening() as server:
        assert (await exchange(server, head, bomb)).startswith(b"HTTP/1.1 415")


async def test_a_body_beyond_the_limit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "CLIENT_BODY_BYTES_MAX", 10)
    async with listening() as server:
        assert (await exchange(server, HEAD + b"Content-Length: 11\r\n\r\n", bytes(11))).startswith(b"HTTP/1.1 413")


async def test_connections_beyond_the_limit_are_closed_as_they_arrive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "CONNECTIONS_MAX", 1)
    async with listening() as server:
        _, first = await asyncio.open_connection("127.0.0.1", server.port)
        try:
            reader, second = await asyncio.open_connection("127.0.0.1", server.port)
            try:
                assert await asyncio.wait_for(reader.read(), 5) == b""
            finally:
                second.close()
        finally:
            first.close()


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
