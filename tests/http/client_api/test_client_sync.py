"""The client without an event loop: the same from any thread."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest
from library_nodes import cluster, encode, proxy

from raftkit_core.errors import ConfigError, OutcomeUnknown, RaftError
from raftkit_core.testing.counting import Add
from raftkit_core.types.kv import Put
from raftkit_http import SyncClient


async def test_the_sync_client_does_the_same_from_any_thread(tmp_path: Path) -> None:
    def program(url: str) -> list[Any]:
        seen: list[Any] = []
        with SyncClient([url]) as client:
            client.kv_put("k", b"1")
            found = client.kv_get("k", consistency="lease")
            seen.append(None if found is None else found.value)
            seen.append([item.key for item in client.kv_list("k")])
            with client.open_session() as session:
                seen.append((session.is_valid, session.seconds_left > 1, session.is_expired))
                writers = [
                    threading.Thread(target=lambda number=number: session.kv_put(f"t{number}", b"v"))
                    for number in range(8)
                ]
                for writer in writers:
                    writer.start()
                for writer in writers:
                    writer.join()
                seen.append(session.kv_cas("k", b"1", b"2").changed)
                seen.append(client.status().role)
                try:
                    session.kv_put("k", b"3", if_revision=0)
                except RaftError as error:
                    seen.append(error.code)
                seen.append(session.kv_delete("k").changed)
            seen.append(len(client.kv_list("t")))
            seen.append(client.write_many([Put("x", b""), Put("y", b"")])[1]["changed"])
        client.close()
        try:
            client.kv_get("k")
        except ConfigError as error:
            seen.append(error.code)
        return seen

    async with cluster(tmp_path, machine="kv") as nodes:
        seen = await asyncio.to_thread(program, nodes.urls["n1"])
    assert seen == [b"1", ["k"], (True, True, False), True, "leader", "PRECONDITION_FAILED", True, 8, True, "CONFIG"]
    assert not [thread for thread in threading.enumerate() if thread.name == "raftkit-client"]


async def test_the_sync_client_watches_until_its_loop_is_left(tmp_path: Path) -> None:
    def program(url: str) -> list[Any]:
        seen: list[Any] = []
        with SyncClient([url]) as client:
            for number in range(3):
                client.kv_put(f"k{number}", b"v")
            for change in client.watch("k", from_revision=1):
                seen.append(change.key)
                if len(seen) == 2:
                    break
            left = client.watch("k", from_revision=1)
            seen.append(next(left).key)
        left.close()
        return seen

    async with cluster(tmp_path, machine="kv") as nodes:
        assert await asyncio.to_thread(program, nodes.urls["n1"]) == ["k0", "k1", "k0"]


async def test_a_sync_client_that_is_closed_by_another_thread_leaves_nobody_waiting(tmp_path: Path) -> None:
    def program(url: str, hold: Any, arrived: Any) -> list[Any]:
        client = SyncClient([url], discover=False).__enter__()
        session = client.open_session()
        session.write(encode(Add(1)))
        hold()
        told: list[Any] = []

        def run(call: Any) -> None:
            try:
                told.append(call())
            except BaseException as error:
                told.append(type(error))

        calls = [lambda: session.write(encode(Add(1))), lambda: client.write(encode(Add(1)))]
        threads = [threading.Thread(target=run, args=(call,), daemon=True) for call in calls]
        for thread in threads:
            thread.start()
        arrived()
        client.close()
        for thread in threads:
            thread.join(60)
        return [*told, any(thread.is_alive() for thread in threads)]

    async with cluster(tmp_path) as nodes, proxy(nodes.urls["n1"]) as before:
        loop = asyncio.get_running_loop()
        told = await asyncio.to_thread(
            program,
            before.url,
            lambda: setattr(before, "hold", 2),
            lambda: asyncio.run_coroutine_threadsafe(nodes.total(3), loop).result(60),
        )
        assert told == [OutcomeUnknown, OutcomeUnknown, False]


async def test_a_sync_client_may_be_closed_while_another_thread_begins_a_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit = asyncio.run_coroutine_threadsafe

    def program(url: str) -> list[Any]:
        client = SyncClient([url]).__enter__()
        client.kv_put("k", b"v")
        closing = threading.Thread(target=client.close, daemon=True)
        told: list[Any] = []

        def interrupted(call: Any, loop: asyncio.AbstractEventLoop) -> Any:
            if threading.current_thread() is not closing and not closing.ident:
                closing.start()
                closing.join(0.1)
            return submit(call, loop)

        monkeypatch.setattr(asyncio, "run_coroutine_threadsafe", interrupted)
        try:
            client.kv_get("k")
        except RaftError as error:
            told.append(error.code)
        monkeypatch.setattr(asyncio, "run_coroutine_threadsafe", submit)
        closing.join(60)
        client.__enter__()  # and it opens again
        told.append(client.status().role)
        client.close()
        return told

    async with cluster(tmp_path, machine="kv") as nodes:
        told = await asyncio.wait_for(asyncio.to_thread(program, nodes.urls["n1"]), 60)
        assert told[-1] == "leader"


async def test_what_outlives_a_sync_client_troubles_nobody(tmp_path: Path) -> None:
    def program(url: str) -> Any:
        with SyncClient([url]) as client:
            client.kv_put("k", b"v")
            session = client.open_session()
            left = client.watch("k", from_revision=1)
            next(left)
            # The garbage collector may end a watch in any thread, also in the client's own one.
            assert client._loop is not None
            client._loop.call_soon_threadsafe(left.close)
            found = client.kv_get("k")
        session.close()
        return found

    async with cluster(tmp_path, machine="kv") as nodes:
        assert await asyncio.wait_for(asyncio.to_thread(program, nodes.urls["n1"]), 60)
