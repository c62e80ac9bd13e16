"""Reads of the pipelined client: those side by side share frames, and each has its own answer."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from raftkit_core.errors import BadCommand, BadRequest, ConfigError, NotFound
from raftkit_core.testing.cluster import outcome
from raftkit_core.testing.ports import free_urls
from raftkit_core.types.kv import Put
from raftkit_http import Client
from raftkit_http.api import kv
from raftkit_http.pipeline import Pipeline


async def filled(raft: Any, count: int, value: bytes = b"") -> Any:
    for number in range(count):
        await raft.write(Put(f"k{number}", value or str(number).encode()))
    return raft


async def test_reads_side_by_side_share_frames_and_each_has_its_own_answer(api_node: Any, fake_raft: Any) -> None:
    raft = await filled(fake_raft(), 300)
    await raft.write(Put("binary", b"\x00\xff"))
    async with api_node(raft) as node, Client([node.url]) as client:
        names = [*(f"k{number}" for number in range(300)), "binary", "absent"]
        found = await asyncio.gather(*(client.kv_get(name) for name in names))
        assert [item and item.value for item in found] == [*(b"%d" % n for n in range(300)), b"\x00\xff", None]
        assert [item.key for item in found[:3]] == ["k0", "k1", "k2"]
        assert len(raft.reads) <= 3, "one round for all that are in a frame"
        assert node.api.metrics.registry.get_sample_value(
            "raftkit_http_requests_total", {"route": "/v1/read", "status": "200"}
        ) in (None, 0.0)


async def test_each_consistency_is_a_frame_of_its_own(api_node: Any, fake_raft: Any) -> None:
    raft = await filled(fake_raft(), 3)
    async with api_node(raft) as node, Client([node.url]) as client:
        policies = ("stale", "lease", "linearizable")
        await asyncio.gather(*(client.kv_get(f"k{n}", consistency=name) for n, name in enumerate(policies)))  # type: ignore[arg-type]
    assert [policy.value for _, policy in raft.reads] == list(policies)


async def test_reads_and_writes_share_a_connection_and_neither_waits_for_all_of_the_other(
    api_node: Any, fake_raft: Any
) -> None:
    async with api_node(await filled(fake_raft(), 1)) as node, Client([node.url]) as client:
        done: list[str] = []

        async def note(kind: str, call: Any) -> None:
            await call
            done.append(kind)

        calls = [note("write", client.kv_put(f"w{n}", b"v")) for n in range(1000)]
        calls += [note("read", client.kv_get("k0")) for _ in range(1000)]
        await asyncio.gather(*calls)
        assert len(client._pipelines) == 1
        assert "read" in done[:600]
        assert "write" in done[-1300:]


async def test_values_that_are_too_many_for_one_answer_come_all_the_same(
    api_node: Any, fake_raft: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kv, "MAX_LIST_BYTES", 1000)
    async with api_node(await filled(fake_raft(), 32, b"x" * 190)) as node, Client([node.url]) as client:
        for _ in range(6):
            found = await asyncio.gather(*(client.kv_get(f"k{n}") for n in range(32)))
            assert all(item is not None and item.value == b"x" * 190 for item in found)
        [pipeline] = client._pipelines.values()
        assert pipeline._connection is not None
        assert pipeline._connection._reads_max <= 16, "no frame asks for so many again"
        await node.raft.write(Put("large", b"x" * 2000))
        large = await client.kv_get("large")
        assert large is not None
        assert large.value == b"x" * 2000


async def test_a_refusal_is_that_of_every_read_in_its_frame(api_node: Any, fake_raft: Any) -> None:
    async with api_node(fake_raft(machine="echo")) as node, Client([node.url]) as client:
        told = await asyncio.gather(*(outcome(client.kv_get(f"k{n}")) for n in range(5)))
    assert {type(error) for error in told} == {NotFound}


async def test_what_is_no_key_is_refused_and_breaks_no_other_read(api_node: Any, fake_raft: Any) -> None:
    async with api_node(await filled(fake_raft(), 1)) as node, Client([node.url]) as client:
        broken, unknown, long, good = await asyncio.gather(
            outcome(client.kv_get("\ud800")),
            outcome(client.kv_get("k0", consistency="fast")),  # type: ignore[arg-type]
            client.kv_get("k" * 5000),
            client.kv_get("k0"),
        )
        assert isinstance(broken, BadCommand)
        assert isinstance(unknown, BadRequest)
        assert long is None
        assert good is not None


async def test_a_node_that_is_not_there_is_passed_over(api_node: Any, fake_raft: Any) -> None:
    dead = free_urls(1)[0]
    async with api_node(await filled(fake_raft(), 1)) as node, Client([dead, node.url], discover=False) as client:
        assert await client.kv_get("k0") is not None


async def test_a_node_that_goes_away_under_reads_is_left_for_another_one(api_node: Any, fake_raft: Any) -> None:
    """A read changes nothing, so it is asked again."""
    async with api_node(await filled(fake_raft(), 1)) as stays, api_node(await filled(fake_raft(), 1)) as goes:
        goes.raft.arrived.clear()
        goes.raft.hold = asyncio.Event()
        async with Client([goes.url, stays.url], discover=False) as client:
            reading = [asyncio.ensure_future(client.kv_get("k0")) for _ in range(5)]
            await goes.raft.arrived.wait()
            for socket in list(goes.api.sockets):
                await socket.close()
            assert all(item is not None for item in await asyncio.gather(*reading))
            goes.raft.hold.set()


async def test_a_client_that_is_closed_reads_nothing(api_node: Any) -> None:
    async with api_node() as node:
        client = Client([node.url])
        async with client:
            await client.kv_get("k")
        with pytest.raises(ConfigError):
            await client.kv_get("k")


def test_any_key_there_can_be_fits_into_a_frame() -> None:
    assert Pipeline.takes(b"k" * 4096)
