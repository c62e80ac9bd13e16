"""The client library on real nodes: pipelined writes, leaders found, outcomes told."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from library_nodes import cluster, encode, proxy

from raftkit_core.errors import OutcomeUnknown, Unreachable
from raftkit_core.testing.cluster import outcome
from raftkit_core.testing.counting import Add
from raftkit_core.testing.ports import free_urls
from raftkit_http import Client, pipeline


async def test_writes_side_by_side_share_one_connection_and_few_frames(tmp_path: Path) -> None:
    async with (
        cluster(tmp_path) as nodes,
        proxy(nodes.urls["n1"]) as before,
        Client([before.url], discover=False) as client,
    ):
        results = await client.write_many([encode(Add(1)) for _ in range(600)])
        assert sorted(results) == list(range(1, 601))
        [pipeline] = client._pipelines.values()
        assert pipeline._connection is not None
        assert pipeline._connection._frame_id <= 10
        assert before.connections <= 2, "the WebSocket, and a question who leads"
        refused = await client.write_many([encode(Add(-1)), b"\xc1", encode(Add(1))])
        assert [getattr(answer, "code", answer) for answer in refused] == ["COMMAND_REJECTED", "BAD_COMMAND", 601]


async def test_a_client_that_knows_one_follower_finds_the_leader(tmp_path: Path) -> None:
    async with cluster(tmp_path, 3) as nodes, Client([nodes.urls[nodes.followers[0]]]) as client:
        async with asyncio.timeout(20):
            while client._endpoints.order()[0] != nodes.urls[await nodes.leader()]:
                await client.write(encode(Add(1)))
        assert await client.write(encode(Add(0))) == nodes.rafts[await nodes.leader()].machine.value


async def test_a_write_that_was_sent_without_a_session_has_an_unknown_outcome_if_its_answer_is_lost(
    tmp_path: Path,
) -> None:
    async with (
        cluster(tmp_path) as nodes,
        proxy(nodes.urls["n1"]) as before,
        Client([before.url], discover=False) as client,
    ):
        await client.write(encode(Add(1)))
        before.swallow_answers = True
        with pytest.raises(OutcomeUnknown):
            await client.write(encode(Add(1)))
        before.swallow_answers = False
        assert await client.write(encode(Add(0))) == 2


async def test_a_write_that_nobody_took_did_not_happen(tmp_path: Path) -> None:
    (nowhere,) = free_urls(1)
    async with cluster(tmp_path) as nodes:
        async with Client([nowhere]) as client:
            with pytest.raises(Unreachable) as refused:
                await client.write(encode(Add(1)))
            assert refused.value.outcome == "not_applied"
        async with Client([nowhere, nodes.urls["n1"]]) as client:
            assert await client.write(encode(Add(1))) == 1


async def test_a_write_that_gives_up_breaks_no_other_one_on_its_connection(tmp_path: Path) -> None:
    async with (
        cluster(tmp_path) as nodes,
        proxy(nodes.urls["n1"]) as before,
        Client([before.url], discover=False) as client,
        client.open_session() as session,
    ):
        await session.write(encode(Add(1)))
        before.frozen.clear()
        patient = asyncio.ensure_future(client.write(encode(Add(1))))
        for timeout in (0.05, 1.1):
            assert isinstance(await outcome(session.write(encode(Add(0)), timeout=timeout)), OutcomeUnknown)
        before.frozen.set()
        assert await patient == 2
        assert await client.write(encode(Add(1))) == 3
        assert len([task for task in asyncio.all_tasks() if task.get_name().startswith("requests to")]) == 1


async def test_a_write_that_was_not_sent_yet_leaves_a_connection_that_went_silent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "WINDOW", 1)
    async with (
        cluster(tmp_path) as nodes,
        proxy(nodes.urls["n1"]) as before,
        Client([before.url], discover=False) as client,
        client.open_session() as session,
    ):
        await session.write(encode(Add(1)))
        before.hold = 2  # the WebSocket: the session was opened on the first one
        sent = asyncio.ensure_future(session.write(encode(Add(1))))
        await asyncio.sleep(0)
        queued = asyncio.ensure_future(client.write(encode(Add(1))))
        assert sorted(await asyncio.wait_for(asyncio.gather(sent, queued), 4)) == [2, 3]


async def test_a_command_that_is_too_large_is_refused_and_breaks_no_other_write(tmp_path: Path) -> None:
    async with (
        cluster(tmp_path) as nodes,
        Client([nodes.urls["n1"]]) as client,
        client.open_session() as session,
    ):
        writes = [client.write(encode(Add(1))), client.write(b"x" * 3_000_000), session.write(b"x" * 3_000_000)]
        writes += [session.write(encode({"type": "add", "amount": 1, "more": b"x" * 300_000})) for _ in range(2)]
        told = await asyncio.gather(*(outcome(write) for write in writes))
        assert [getattr(each, "code", "") for each in told[1:3]] == ["REQUEST_TOO_LARGE"] * 2
        assert sorted([told[0], *told[3:]]) == [1, 2, 3]
        assert nodes.rafts["n1"].machine.value == 3
    lingering = asyncio.all_tasks() - {asyncio.current_task()}
    if lingering:  # a server reads on for a second after it refused a body
        await asyncio.wait(lingering, timeout=5)
