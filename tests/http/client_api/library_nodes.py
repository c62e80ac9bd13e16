"""Nodes in this process and a proxy that breaks connections, for the tests of the client library."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import msgspec

from raftkit_core import Node, Raft, open_raft
from raftkit_core.testing.counting import Counter
from raftkit_core.testing.ports import free_urls

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
