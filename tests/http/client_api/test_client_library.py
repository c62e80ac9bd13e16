"""The client library against running nodes: pipelined writes, sessions, lost answers, leaders that go."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from raftkit_core import Node, Raft, open_raft
from raftkit_core.errors import (
    BadCommand,
    BadRequest,
    CommandRejected,
    ConfigError,
    OutcomeUnknown,
    PreconditionFailed,
    RaftError,
    SessionExpired,
    Unreachable,
)
from raftkit_core.testing.cluster import outcome
from raftkit_core.testing.counting import Add, Counter
from raftkit_core.testing.ports import free_urls
from raftkit_core.types.kv import CompareAndSet, Put
from raftkit_http import Client, SyncClient, pipeline
from raftkit_http.api.schema import SessionAnswer
from raftkit_http.pipelined import HttpSession

LOCAL = "127.0.0.1"


COUNTER = f"import:{Counter.__module__}:Counter"
encode = msgspec.msgpack.encode


class Nodes:
    """Nodes of one cluster by id, each with a folder, so that they can be stopped and started again."""

    def __init__(self, folder: Path, count: int, machine: str) -> None:
        self.urls = dict(zip((f"n{number}" for number in range(1, count + 1)), free_urls(count), strict=True))
        self.rafts: dict[str, Raft] = {}
        self._folder = folder
        self._machine = machine
        self._stacks: dict[str, AsyncExitStack] = {}

    async def start(self, name: str) -> None:
        stack = self._stacks[name] = AsyncExitStack()
        self.rafts[name] = await stack.enter_async_context(
            open_raft(
                name,
                storage="sqlite:log.db",
                network=self.urls[name],
                state_machine=self._machine,
                data_dir=self._folder / name,
            )
        )

    async def stop(self, name: str) -> None:
        del self.rafts[name]
        await self._stacks.pop(name).aclose()

    async def leader(self) -> str:
        raft = next(iter(self.rafts.values()))
        metrics = await raft.wait(10).metrics(lambda m: m.current_leader in self.rafts, "a leader")
        return str(metrics.current_leader)

    async def total(self, value: int) -> None:
        raft = self.rafts["n1"]
        await raft.wait(10).metrics(lambda _: raft.machine.value >= value, f"a total of {value}")

    @property
    def followers(self) -> list[str]:
        return [name for name, raft in self.rafts.items() if not raft._core.engine.is_leader]


@asynccontextmanager
async def cluster(folder: Path, count: int = 1, machine: str = COUNTER) -> AsyncIterator[Nodes]:
    nodes = Nodes(folder, count, machine)
    try:
        for name in nodes.urls:
            await nodes.start(name)
        await nodes.rafts["n1"].initialize({name: Node(url) for name, url in nodes.urls.items()})
        await nodes.leader()
        yield nodes
    finally:
        for name in list(nodes.rafts):
            await nodes.stop(name)


class Proxy:
    """Stands before a node. It can swallow what the node answers, break connections, or stand still."""

    def __init__(self, target: str) -> None:
        self._host, _, port = target.removeprefix("http://").partition(":")
        self._port = int(port)
        self.url = ""
        self.swallow_answers = False
        self.frozen = asyncio.Event()
        self.frozen.set()
        self.hold = 0
        """Nothing of what the node answers on this connection goes on, until the end."""
        self.connections = 0
        self.swallowed = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._pumps: set[asyncio.Future[None]] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        number = self.connections
        up_reader, up_writer = await asyncio.open_connection(self._host, self._port)
        try:
            ways = [self._pump(reader, up_writer, False, number), self._pump(up_reader, writer, True, number)]
            pumps = [asyncio.ensure_future(way) for way in ways]
            self._pumps.update(pumps)
            try:
                await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for pump in pumps:
                    pump.cancel()
                await asyncio.gather(*pumps, return_exceptions=True)
                self._pumps.difference_update(pumps)
        finally:
            writer.close()
            up_writer.close()
            self._tasks.discard(task)

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, is_answer: bool, number: int
    ) -> None:
        while data := await reader.read(65536):
            await self.frozen.wait()
            if is_answer and number == self.hold:
                await asyncio.Event().wait()
            if is_answer and self.swallow_answers:
                self.swallowed.set()
                return  # and with it the connection
            writer.write(data)
            await writer.drain()

    async def close(self) -> None:
        for pump in list(self._pumps):
            pump.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


@asynccontextmanager
async def proxy(target: str) -> AsyncIterator[Proxy]:
    made = Proxy(target)
    server = await asyncio.start_server(made.serve, LOCAL, 0)
    made.url = f"http://{LOCAL}:{server.sockets[0].getsockname()[1]}"
    try:
        yield made
    finally:
        server.close()
        await made.close()
        await server.wait_closed()


# --- pipelining -------------------------------------------------------------------------------------------------------


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


# --- sessions ---------------------------------------------------------------------------------------------------------


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


# --- without an event loop --------------------------------------------------------------------------------------------


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
            thread.join(5)
        return [*told, any(thread.is_alive() for thread in threads)]

    async with cluster(tmp_path) as nodes, proxy(nodes.urls["n1"]) as before:
        loop = asyncio.get_running_loop()
        told = await asyncio.to_thread(
            program,
            before.url,
            lambda: setattr(before, "hold", 2),
            lambda: asyncio.run_coroutine_threadsafe(nodes.total(3), loop).result(5),
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
        closing.join(5)
        client.__enter__()  # and it opens again
        told.append(client.status().role)
        client.close()
        return told

    async with cluster(tmp_path, machine="kv") as nodes:
        told = await asyncio.wait_for(asyncio.to_thread(program, nodes.urls["n1"]), 10)
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
        assert await asyncio.wait_for(asyncio.to_thread(program, nodes.urls["n1"]), 10)
