"""The client against running nodes: the Raft itself, its transport, and the client API together."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, aclosing

import pytest

from raftkit_core import Node, open_raft
from raftkit_core.errors import NotAllowed, PreconditionFailed
from raftkit_core.testing.ports import free_urls
from raftkit_core.types.kv import KeyValue
from raftkit_http.client import HttpClusterClient


async def test_one_node_is_initialized_written_and_read_by_every_consistency() -> None:
    (url,) = free_urls(1)
    async with open_raft("n1", storage="memory:", network=url), HttpClusterClient([url]) as client:
        assert (await client.status()).leader is None
        await client.initialize({"n1": Node(url)})
        written = await client.kv_put("k", b"\xff")
        expected = KeyValue(key="k", value=b"\xff", revision=written.revision)
        assert await client.kv_get("k") == expected
        assert await client.kv_get("k", consistency="lease") == expected
        assert await client.kv_get("k", consistency="stale") == expected
        with pytest.raises(PreconditionFailed):
            await client.kv_put("k", b"2", if_revision=0)
        with pytest.raises(NotAllowed):
            await client.initialize({"n1": Node(url)})
        status = await client.status(digest=True)
        assert (status.role, status.leader, len(status.digest or "")) == ("leader", "n1", 64)


async def test_any_node_takes_any_request_and_the_client_survives_the_loss_of_the_leader() -> None:
    urls = dict(zip(["n1", "n2", "n3"], free_urls(3), strict=True))
    async with AsyncExitStack() as stack:
        rafts = {
            name: await stack.enter_async_context(open_raft(name, storage="memory:", network=url))
            for name, url in urls.items()
        }
        client = await stack.enter_async_context(HttpClusterClient([urls["n1"]], timeout=10))
        await client.initialize({name: Node(url) for name, url in urls.items()})
        seen: list[str] = []
        watching = asyncio.ensure_future(_collect(client, seen))
        for name, url in urls.items():
            async with HttpClusterClient([url], timeout=10) as one:
                await one.kv_put(f"by-{name}", name.encode())
                assert len(await one.kv_list("by-")) >= 1, "a node reads what was written through it"
        leader = (await client.status()).leader
        assert leader is not None
        await rafts[leader].shutdown()
        await asyncio.gather(*(client.kv_put(f"after-{number}", b"v") for number in range(20)))
        assert len(await client.kv_list("after-")) == 20
        assert [item.key for item in await client.kv_list("by-")] == ["by-n1", "by-n2", "by-n3"]
        status = await client.status()
        assert status.leader not in (None, leader)
        await client.kv_delete("by-n1")
        await asyncio.wait_for(watching, 10)
        assert seen[:3] == ["by-n1", "by-n2", "by-n3"]
        assert sorted(seen[3:-1]) == sorted(f"after-{number}" for number in range(20))


async def _collect(client: HttpClusterClient, seen: list[str]) -> None:
    """The keys that change, up to the first delete."""
    async with aclosing(client.watch(from_revision=1)) as stream:
        async for event in stream:
            seen.append(event.key)
            if event.value is None:
                return
