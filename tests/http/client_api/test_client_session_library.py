"""Sessions of the client library on real nodes: one effect, whatever breaks."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from library_nodes import cluster, encode, proxy

from raftkit_core.errors import (
    BadCommand,
    BadRequest,
    CommandRejected,
    ConfigError,
    OutcomeUnknown,
    PreconditionFailed,
    SessionExpired,
)
from raftkit_core.testing.cluster import outcome
from raftkit_core.testing.counting import Add
from raftkit_core.types.kv import CompareAndSet, Put
from raftkit_http import Client
from raftkit_http.api.schema import SessionAnswer
from raftkit_http.pipelined import HttpSession


@pytest.mark.parametrize("encoded", [True, False])
async def test_a_write_whose_answer_is_lost_has_one_effect_under_a_session(tmp_path: Path, encoded: bool) -> None:
    async with (
        cluster(tmp_path) as nodes,
        proxy(nodes.urls["n1"]) as before,
        Client([before.url], discover=False) as client,
        client.open_session() as session,
    ):
        command = encode(Add(5)) if encoded else {"type": "add", "amount": 5}
        assert await session.write(command) == 5
        before.swallow_answers = True
        writing = asyncio.ensure_future(session.write(command, timeout=10))
        await before.swallowed.wait()
        before.swallow_answers = False
        assert await writing == 10
        assert nodes.rafts["n1"].machine.value == 10
        refused = await outcome(session.write(encode(Add(-1))))
        assert isinstance(refused, CommandRejected)


async def test_many_writes_of_a_session_among_breaking_connections_have_one_effect_each(tmp_path: Path) -> None:
    async with (
        cluster(tmp_path) as nodes,
        proxy(nodes.urls["n1"]) as before,
        Client([before.url], discover=False) as client,
        client.open_session() as session,
    ):

        async def disturb() -> None:
            for _ in range(8):
                before.swallowed.clear()
                before.swallow_answers = True
                await before.swallowed.wait()
                before.swallow_answers = False
                await asyncio.sleep(0.02)

        disturbing = asyncio.ensure_future(disturb())
        written = 0
        while not disturbing.done():
            results = await asyncio.gather(*(session.write(encode(Add(1)), timeout=20) for _ in range(50)))
            written += 50
            assert max(results) == written
        assert nodes.rafts["n1"].machine.value == written


async def test_a_node_that_stands_still_is_left_for_another_one(tmp_path: Path) -> None:
    async with (
        cluster(tmp_path, 3) as nodes,
        proxy(nodes.urls[nodes.followers[0]]) as before,
        Client([before.url, nodes.urls[nodes.followers[1]]], discover=False) as client,
        client.open_session() as session,
    ):
        assert await session.write(encode(Add(1))) == 1
        client._endpoints.prefer(before.url)
        before.frozen.clear()
        assert await session.write(encode(Add(1)), timeout=20) == 2
        before.frozen.set()


async def test_a_session_outlives_every_leader_of_its_cluster(tmp_path: Path) -> None:
    async with (
        cluster(tmp_path, 3) as nodes,
        Client(list(nodes.urls.values())) as client,
        client.open_session() as session,
    ):
        done = asyncio.Event()
        total = 0

        async def writer() -> None:
            nonlocal total
            while not done.is_set():
                await session.write(encode(Add(1)), timeout=20)
                total += 1

        writing = [asyncio.ensure_future(writer()) for _ in range(10)]
        for _ in range(3):
            leader = await nodes.leader()
            await nodes.stop(leader)
            await nodes.start(leader)
        done.set()
        await asyncio.gather(*writing)
        assert total >= 10, "each writer at least once"
        assert await session.write(encode(Add(0)), timeout=20) == total


async def test_a_session_that_expired_says_so_and_an_uncertain_write_stays_unknown(tmp_path: Path) -> None:
    async with (
        cluster(tmp_path) as nodes,
        proxy(nodes.urls["n1"]) as before,
        Client([before.url], discover=False) as client,
    ):
        session = await client.open_session(ttl=1)
        raft = nodes.rafts["n1"]
        await session.write(encode(Add(0)))
        before.swallow_answers = True
        writing = asyncio.ensure_future(outcome(session.write(encode(Add(5)), timeout=20)))
        await before.swallowed.wait()
        before.frozen.clear()
        await raft.wait(10).metrics(lambda m: session.id not in raft._core.worker.system.sessions, "its expiry")
        assert not session.is_valid
        before.swallow_answers = False
        before.frozen.set()
        told = await writing
        assert isinstance(told, OutcomeUnknown)
        assert isinstance(told.__cause__, SessionExpired)
        with pytest.raises(SessionExpired):
            await session.write(encode(Add(5)))
        assert raft.machine.value == 5
        await session.close()


async def test_a_session_of_kv_has_its_own_verbs(tmp_path: Path) -> None:
    async with cluster(tmp_path, machine="kv") as nodes, Client([nodes.urls["n1"]]) as client:
        async with client.open_session() as session:
            first = await session.kv_put("k", b"1")
            second = await session.kv_put("k", b"2", if_revision=first.revision)
            assert second.previous_revision == first.revision
            assert isinstance(await outcome(session.kv_cas("k", b"?", b"3")), PreconditionFailed)
            assert (await session.kv_delete("k")).changed
            assert (await client.write(Put("j", b"1")))["changed"]
            assert isinstance(await outcome(client.write(CompareAndSet("j", None, b"1"))), PreconditionFailed)
            assert isinstance(await outcome(client.write(Put("", b""))), BadCommand)
            assert await client.kv_get("k") is None
        assert session.is_closed


async def test_closing_a_client_ends_what_it_began(tmp_path: Path) -> None:
    async with cluster(tmp_path) as nodes:
        client = await Client([nodes.urls["n1"]]).__aenter__()
        session = await client.open_session()
        await session.write(encode(Add(1)))
        await client.__aexit__()
        assert session.is_closed
        assert len(nodes.rafts["n1"]._core.worker.system.sessions) == 0
        with pytest.raises(ConfigError):
            await client.write(encode(Add(1)))


async def test_a_client_that_is_closed_under_a_write_does_not_say_that_it_did_nothing(tmp_path: Path) -> None:
    async with cluster(tmp_path) as nodes, proxy(nodes.urls["n1"]) as before:
        client = await Client([before.url], discover=False, timeout=3).__aenter__()
        session = await client.open_session()
        await session.write(encode(Add(1)))
        before.hold = 2  # the WebSocket: the session was opened on the first one
        writing = [asyncio.ensure_future(outcome(session.write(encode(Add(1))))) for _ in range(3)]
        writing += [asyncio.ensure_future(outcome(client.write(encode(Add(1))))) for _ in range(3)]
        async with asyncio.timeout(10):
            await nodes.total(7)
            closing = asyncio.ensure_future(client.__aexit__())
            told = await asyncio.gather(*writing)
            await closing
        assert [type(each) for each in told] == [OutcomeUnknown] * 6, told
        assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("requests to")]


@pytest.mark.parametrize(("ttl_ms", "valid_ms"), [(0, 0), (1000, 0), (1000, 1001), (-1000, -900), (10**12, 10**12)])
async def test_a_session_that_no_node_can_give_is_not_believed(ttl_ms: int, valid_ms: int) -> None:
    client = Client(["http://127.0.0.1:1"])
    with pytest.raises(BadRequest):
        HttpSession(client, SessionAnswer(session=f"{'0' * 32}-1", ttl_ms=ttl_ms, valid_ms=valid_ms), 0.0)
