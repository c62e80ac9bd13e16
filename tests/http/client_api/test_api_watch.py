"""``/v1/watch``: what is said, in what order, and how it ends for the reader that is late, gone or too many."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import aiohttp
import pytest

from raftkit_core.errors import Compacted, NotFound, Unreachable
from raftkit_core.state_machine.kv_watch import ChangeRing
from raftkit_core.types.kv import Delete, KvEvent, Put
from raftkit_http.api.guard import ApiLimits
from raftkit_http.client import HttpClusterClient
from raftkit_http.exchange import MAX_ANSWER_BYTES, Lost
from raftkit_http.watching import SseDecoder


async def events(response: aiohttp.ClientResponse) -> AsyncIterator[tuple[str, Any]]:
    decoder = SseDecoder()
    async for chunk in response.content.iter_any():
        for name, payload in decoder.feed(chunk):
            yield name, json.loads(payload)


async def some(response: aiohttp.ClientResponse, count: int) -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    async with aclosing(events(response)) as stream:
        async for event in stream:
            found.append(event)
            if len(found) == count:
                break
    return found


async def no_watches(node: Any) -> None:
    for _ in range(500):
        if not node.api.watches:
            return
        await asyncio.sleep(0.02)
    raise AssertionError("a watch is still held")


async def test_changes_come_as_events_behind_the_revision_it_begins_with(api_node: Any) -> None:
    async with api_node() as node:
        await node.raft.write(Put("a/1", b"one"))
        await node.raft.write(Put("b", b"other"))
        async with node.http.get(f"{node.url}/v1/watch?prefix=a/&from_revision=1") as response:
            assert response.status == 200
            assert response.headers["Content-Type"] == "text/event-stream"
            assert response.headers["Cache-Control"] == "no-store"
            await node.raft.write(Put("a/2", b"\xff"))
            await node.raft.write(Delete("a/1"))
            assert await some(response, 4) == [
                ("progress", {"revision": 0}),
                ("put", {"type": "put", "key": "a/1", "revision": 1, "value": "one", "previous_revision": 0}),
                ("put", {"type": "put", "key": "a/2", "revision": 3, "value_b64": "/w==", "previous_revision": 0}),
                ("delete", {"type": "delete", "key": "a/1", "revision": 4, "previous_revision": 1}),
            ]


async def test_a_browser_that_comes_back_goes_on_behind_its_last_event(api_node: Any) -> None:
    async with api_node() as node:
        for number in (1, 2, 3):
            await node.raft.write(Put(str(number), b""))
        url = f"{node.url}/v1/watch?from_revision=1"
        async with node.http.get(url, headers={"Last-Event-ID": "2"}) as response:
            assert [event[1]["revision"] for event in await some(response, 2)] == [2, 3]
        status, document = await node.ask("GET", "/v1/watch", headers={"Last-Event-ID": "-1"})
        assert (status, document["error"]["code"]) == (400, "BAD_REQUEST")


async def test_where_nothing_changes_it_says_how_far_it_is(api_node: Any) -> None:
    limits = ApiLimits(watch_progress_seconds=0.05)
    async with api_node(limits=limits) as node, node.http.get(f"{node.url}/v1/watch?prefix=a") as response:
        await node.raft.write(Put("b", b""))
        assert await some(response, 2) == [("progress", {"revision": 0}), ("progress", {"revision": 1})]


async def test_below_the_ring_is_410_with_the_oldest(api_node: Any, fake_raft: Any) -> None:
    raft = fake_raft()
    raft.changes = ChangeRing(max_entries=2)
    async with api_node(raft) as node:
        for number in range(5):
            await raft.write(Put(str(number), b""))
        status, document = await node.ask("GET", "/v1/watch?from_revision=3")
        assert status == 410
        assert document["error"]["code"] == "COMPACTED"
        assert document["error"]["oldest"] == 4
        assert document["error"]["hint"]


async def test_a_watch_that_cannot_go_on_says_why(api_node: Any) -> None:
    async with api_node() as node, node.http.get(f"{node.url}/v1/watch") as response:
        assert (await some(response, 1))[0][0] == "progress"
        node.raft.changes.continue_after(100)
        ((name, error),) = await some(response, 1)
        assert (name, error["code"], error["oldest"]) == ("end", "COMPACTED", 101)
        assert await response.content.read() == b""
    async with api_node() as node, node.http.get(f"{node.url}/v1/watch") as response:
        assert (await some(response, 1))[0][0] == "progress"
        node.raft.changes.close()
        ((name, error),) = await some(response, 1)
        assert (name, error["code"]) == ("end", "STOPPED")


async def test_a_reader_that_does_not_read_is_cut_off_and_holds_no_place(api_node: Any, fake_raft: Any) -> None:
    limits = ApiLimits(watch_write_seconds=0.2, max_watches=1)
    raft = fake_raft()
    raft.changes = ChangeRing(max_bytes=64 * 1024 * 1024)
    async with api_node(raft, limits=limits) as node:
        reader, writer = await asyncio.open_connection("127.0.0.1", node.server.port)
        writer.write(b"GET /v1/watch?from_revision=1 HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await reader.readuntil(b"progress")
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        for number in range(60):
            await node.raft.write(Put(str(number), b"x" * 500_000))
        status, document = await node.ask("GET", "/v1/watch")
        assert (status, document["error"]["code"]) == (503, "OVERLOADED")
        await no_watches(node)
        writer.close()


async def test_a_reader_that_goes_away_is_noticed_without_a_change(api_node: Any) -> None:
    async with api_node() as node:
        async with node.http.get(f"{node.url}/v1/watch") as response:
            await some(response, 1)
            assert len(node.api.watches) == 1
            response.close()
        await no_watches(node)
        assert node.raft.changes._waiters == []


async def test_another_machine_has_no_keys_to_watch(api_node: Any, fake_raft: Any) -> None:
    async with api_node(fake_raft(machine="echo/1")) as node:
        status, document = await node.ask("GET", "/v1/watch")
        assert (status, document["error"]["code"]) == (404, "NOT_FOUND")


async def test_a_list_says_the_revision_a_watch_can_go_on_from(api_node: Any) -> None:
    async with api_node() as node:
        await node.raft.write(Put("a", b""))
        _, document = await node.ask("GET", "/v1/kv?prefix=")
        assert document["data"]["revision"] == 1


# --- The client -----------------------------------------------------------------------------------------------------


async def next_of(stream: AsyncIterator[KvEvent]) -> KvEvent:
    async with asyncio.timeout(10):
        return await anext(stream)


async def test_the_client_goes_on_at_another_node_behind_what_it_has_seen(api_node: Any, fake_raft: Any) -> None:
    one, two = fake_raft("n1"), fake_raft("n2")
    for number in range(6):
        await one.write(Put(str(number), b"v"))
        await two.write(Put(str(number), b"v"))
    async with (
        api_node(one) as first,
        api_node(two) as second,
        HttpClusterClient([first.url, second.url]) as client,
    ):
        async with aclosing(client.watch(from_revision=3)) as stream:
            seen = [(await next_of(stream)).revision for _ in range(3)]
            one.changes.close()
            await first.server.close()
            seen.append((await next_of(stream)).revision)
            await two.write(Delete("0"))
            last = await next_of(stream)
        assert seen == [3, 4, 5, 6]
        assert last == KvEvent(key="0", value=None, revision=7, previous_revision=1)


async def test_the_client_leaves_a_node_that_no_longer_keeps_it_for_one_that_does(
    api_node: Any, fake_raft: Any
) -> None:
    one, two = fake_raft("n1"), fake_raft("n2")
    for number in range(4):
        await one.write(Put(str(number), b"v"))
        await two.write(Put(str(number), b"v"))
    one.changes.continue_after(4)
    async with (
        api_node(one) as first,
        api_node(two) as second,
        HttpClusterClient([first.url, second.url]) as client,
    ):
        async with aclosing(client.watch(from_revision=1)) as stream:
            assert (await next_of(stream)).revision == 1
        two.changes.continue_after(3)
        with pytest.raises(Compacted) as caught:
            await next_of(client.watch(from_revision=1))
        assert caught.value.oldest == 4


async def test_the_client_raises_what_no_other_node_would_answer_differently(api_node: Any, fake_raft: Any) -> None:
    async with api_node(fake_raft(machine="echo/1")) as node, HttpClusterClient([node.url]) as client:
        with pytest.raises(NotFound):
            await next_of(client.watch())
    async with HttpClusterClient(["http://127.0.0.1:9"], timeout=0.3) as client:
        with pytest.raises(Unreachable, match="connection refused"):
            await next_of(client.watch())


def test_events_are_found_whatever_the_pieces_and_none_grows_without_bound() -> None:
    text = b"id: 1\nevent: put\ndata: {}\n\n: comment\n\nevent:x\ndata:1\n\n"
    whole = list(SseDecoder().feed(text))
    assert whole == [("put", b"{}"), ("message", b""), ("x", b"1")]
    decoder = SseDecoder()
    assert [event for at in range(len(text)) for event in decoder.feed(text[at : at + 1])] == whole
    with pytest.raises(Lost, match="larger"):
        list(decoder.feed(b"x" * (MAX_ANSWER_BYTES + 1)))
