"""The pipelined client where no WebSocket can be had: a proxy refuses it, or a node sends us elsewhere."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from raftkit_core.errors import AccessDenied, OutcomeUnknown, Unreachable
from raftkit_core.network.tokens import new_token
from raftkit_core.types.kv import Put
from raftkit_core.types.security import Security
from raftkit_http import Client, pipeline
from raftkit_http.access import Access


class Proxy:
    """Passes requests on to a node, and answers upgrades itself. Knows what came."""

    def __init__(self, target: str, upgrade_status: int | None) -> None:
        self.url = ""
        self.target = target
        self.upgrade_status = upgrade_status
        self.breaks = False
        self.is_silent = False
        self.over = asyncio.Event()
        self.seen: list[str] = []

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.seen.append(f"{request.method} {request.path}")
        if self.is_silent or (request.path == "/v1/ws" and self.upgrade_status == 0):
            await self.over.wait()  # without a word
        if request.path == "/v1/ws" and self.upgrade_status:
            return web.Response(status=self.upgrade_status, headers={"Location": self.target + "/v1/ws"})
        headers = {
            name: value
            for name, value in request.headers.items()
            if name.lower() not in ("host", "upgrade", "connection")
        }
        async with (
            aiohttp.ClientSession(auto_decompress=False) as session,
            session.request(
                request.method,
                self.target + request.path_qs,
                headers=headers,
                data=await request.read(),
                allow_redirects=False,
            ) as answer,
        ):
            body = await answer.read()
            if self.breaks and request.method == "POST":
                assert request.transport is not None
                request.transport.abort()
            return web.Response(status=answer.status, body=body, content_type=answer.content_type)


@asynccontextmanager
async def proxy(target: str, upgrade_status: int | None) -> AsyncIterator[Proxy]:
    made = Proxy(target, upgrade_status)
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", made.handle)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    made.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield made
    finally:
        made.over.set()
        await runner.cleanup()


@pytest.mark.parametrize("status", [None, 400, 403, 404, 426, 502], ids=lambda status: str(status or "stripped"))
async def test_writes_go_by_post_where_no_websocket_can_be_had(api_node: Any, status: int | None) -> None:
    async with api_node() as node, proxy(node.url, status) as between:
        async with Client([between.url], discover=False) as client:
            for number in range(3):
                await client.kv_put(f"k{number}", b"v")
            assert all(await asyncio.gather(*(client.kv_get("k0") for _ in range(20))))
            assert all(
                not isinstance(done, Exception)
                for done in await client.write_many([Put(f"m{n}", b"v") for n in range(20)])
            )
        assert len(node.raft.written) == 23, "each once"
        assert between.seen.count("GET /v1/ws") == 1, "it is not asked before every write"
        assert between.seen.count("POST /v1/write") == 23
        assert between.seen.count("POST /v1/read") == 20


@pytest.mark.parametrize("first", ["write", "read", "once"])
async def test_a_proxy_that_holds_an_upgrade_without_a_word_is_no_node_that_is_gone(
    first: str, api_node: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "HANDSHAKE_SECONDS", 0.05)
    async with api_node() as node, proxy(node.url, 0) as between:
        await node.raft.write(Put("a", b"1"))
        async with Client([between.url], discover=False) as client:
            if first == "write":
                await client.kv_put("a", b"2")
            elif first == "read":
                assert (await client.kv_get("a")).value == b"1"
            else:
                session = await client.open_session()
                await session.kv_put("a", b"2")
            assert (await client.kv_get("a")) is not None
            await client.kv_put("a", b"3")
            assert between.seen.count("GET /v1/ws") == 1
            assert between.seen.count("GET /livez") == 1


async def test_a_node_that_says_nothing_at_all_is_gone_and_asked_again(
    api_node: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "HANDSHAKE_SECONDS", 0.05)
    monkeypatch.setattr(pipeline, "ASKED_SECONDS", 0.05)
    monkeypatch.setattr(pipeline, "CONNECT_SECONDS", 0.15)
    async with api_node() as node, proxy(node.url, None) as between:
        between.is_silent = True
        async with Client([between.url], discover=False, timeout=0.5) as client:
            with pytest.raises(Unreachable):
                await client.kv_put("a", b"1")
            assert not node.raft.written


async def test_a_websocket_is_tried_again_after_a_while(api_node: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "REFUSED_SECONDS", 0.0)
    async with api_node() as node, proxy(node.url, 502) as between, Client([between.url], discover=False) as client:
        await client.kv_put("a", b"1")
        await client.kv_put("b", b"2")
        assert between.seen.count("GET /v1/ws") == 2


async def test_an_answer_that_is_lost_on_the_way_is_unknown_there_too(api_node: Any) -> None:
    async with api_node() as node, proxy(node.url, 502) as between, Client([between.url], discover=False) as client:
        await client.kv_put("a", b"1")
        between.breaks = True
        with pytest.raises(OutcomeUnknown):
            await client.kv_put("b", b"2")
        assert len(node.raft.written) == 2


async def test_a_token_that_may_not_is_refused_as_that(api_node: Any, tmp_path: Any) -> None:
    """Not as a node that cannot be reached."""
    tokens = tmp_path / "tokens"
    new_token(tokens, "app", "write")
    async with api_node(access=Access(Security(tokens=tokens))) as node:
        for token, word in ((None, "valid token"), ("wrong", "valid token")):
            async with Client([node.url], token=token) as client:
                with pytest.raises(AccessDenied, match=word):
                    await client.kv_put("a", b"1")


async def test_a_node_that_redirects_the_websocket_is_not_followed(api_node: Any) -> None:
    async with api_node() as elsewhere, proxy(elsewhere.url, 302) as between:
        async with Client([between.url], discover=False, timeout=1) as client:
            with pytest.raises(Unreachable, match="redirect"):
                await client.kv_put("a", b"1")
        assert elsewhere.raft.written == []
