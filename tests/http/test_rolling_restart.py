"""Three real nodes are stopped and started one after the other under writers: nobody sees an error, nothing is lost."""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from raftkit_cli.cluster.layout import free_ports
from raftkit_core.errors import RaftError
from raftkit_core.testing.cluster import outcome
from raftkit_core.types.kv import Put, WriteResult
from raftkit_http import Client

pytestmark = [pytest.mark.process, pytest.mark.timeout(180)]

WRITES = 1000
WRITERS = 8
STOP_SECONDS = 10.0


class Nodes:
    """Processes of ``raftkit node run``, each with a folder and a log file."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.urls = {
            name: f"http://127.0.0.1:{port}" for name, port in zip(("n1", "n2", "n3"), free_ports(3), strict=True)
        }
        self.processes: dict[str, asyncio.subprocess.Process] = {}

    async def start(self, name: str) -> None:
        everyone = ",".join(f"{node}={url}" for node, url in self.urls.items())
        arguments = ["node", "run", "--id", name, "--data-dir", str(self.folder / name), "--network", self.urls[name]]
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "raftkit_cli",
                *arguments,
                "--initial-cluster",
                everyone,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.folder,
            )

    async def stop(self, name: str) -> float:
        """SIGTERM; gives the seconds it took."""
        process = self.processes.pop(name)
        started = time.monotonic()
        process.send_signal(signal.SIGTERM)
        code = await asyncio.wait_for(process.wait(), STOP_SECONDS)
        assert code == 0, (self.folder / f"{name}.log").read_text()
        return time.monotonic() - started

    async def kill(self, name: str) -> None:
        process = self.processes.pop(name)
        process.kill()
        await process.wait()

    async def caught_up(self, client: Client, name: str) -> None:
        """Wait until ``name`` follows, has applied what the leader had committed, and a leader serves."""
        async with asyncio.timeout(60):
            while True:
                status = await outcome(client.status_of(self.urls[name]))
                leader = None if isinstance(status, RaftError) else status.leader
                if leader in self.processes:
                    told = await outcome(client.status_of(self.urls[str(leader)]))
                    if not isinstance(told, RaftError) and (status.applied or 0) >= (told.committed or 0) - 50:
                        return
                await asyncio.sleep(0.05)


@asynccontextmanager
async def cluster(folder: Path) -> AsyncIterator[Nodes]:
    nodes = Nodes(folder)
    try:
        for name in nodes.urls:
            await nodes.start(name)
        yield nodes
    finally:
        for process in nodes.processes.values():
            if process.returncode is None:
                process.kill()
        for process in nodes.processes.values():
            await process.wait()


class Writers:
    """Write keys of their own, one after the other, until they are told to stop and 1 000 are written."""

    def __init__(self, put: Callable[[str], Awaitable[Any]]) -> None:
        self._put = put
        self.written: dict[str, int] = {}
        self.errors: list[str] = []
        self.slowest = 0.0
        self.may_stop = asyncio.Event()

    async def run(self, number: int) -> None:
        count = 0
        while not self.may_stop.is_set() or len(self.written) < WRITES:
            key = f"w{number}/{count:05}"
            count += 1
            started = time.monotonic()
            done = await outcome(self._put(key))
            self.slowest = max(self.slowest, time.monotonic() - started)
            if isinstance(done, RaftError):
                self.errors.append(f"{key}: {done.code} {done}")
            else:
                assert done.previous_revision == 0, f"{key} was written twice"
                self.written[key] = done.revision
            await asyncio.sleep(0.005)


@pytest.mark.parametrize("how", ["session", "plain"])
async def test_a_rolling_restart_under_writers_shows_no_error_and_loses_nothing(tmp_path: Path, how: str) -> None:
    async with cluster(tmp_path) as nodes, Client(list(nodes.urls.values()), timeout=20) as client:
        for name in nodes.urls:
            await nodes.caught_up(client, name)
        async with client.open_session() as session:

            async def put_once(key: str) -> Any:
                return await session.kv_put(key, key.encode())

            async def put_plainly(key: str) -> Any:
                return await client.kv_put(key, key.encode())

            writers = Writers(put_once if how == "session" else put_plainly)
            writing = [asyncio.ensure_future(writers.run(number)) for number in range(WRITERS)]
            seconds: dict[str, float] = {}
            leader = (await client.status()).leader
            for name in sorted(nodes.urls, key=lambda node: node != leader):
                seconds[name] = await nodes.stop(name)
                await nodes.start(name)
                await nodes.caught_up(client, name)
            writers.may_stop.set()
            await asyncio.gather(*writing)
            print(f"{how}: {len(writers.written)} writes, slowest {writers.slowest:.2f} s, stops {seconds}")
            assert writers.errors == []
            assert max(seconds.values()) < 5, "closing is bounded"
            held = {item.key: item.revision for item in await client.kv_list("w", limit=100_000)}
            assert held == writers.written


async def test_kill_9_of_leaders_shows_a_session_no_error_and_writes_nothing_twice(tmp_path: Path) -> None:
    async with cluster(tmp_path) as nodes, Client(list(nodes.urls.values()), timeout=20) as client:
        for name in nodes.urls:
            await nodes.caught_up(client, name)
        async with client.open_session() as session:

            async def put_once(key: str) -> Any:
                done = await session.write(Put(key, key.encode(), if_revision=0), timeout=30)
                return WriteResult(**done)

            writers = Writers(put_once)
            writing = [asyncio.ensure_future(writers.run(number)) for number in range(WRITERS)]
            for _ in range(3):
                leader = str((await client.status()).leader)
                await nodes.kill(leader)
                await asyncio.sleep(1.5)
                await nodes.start(leader)
                await nodes.caught_up(client, leader)
            writers.may_stop.set()
            await asyncio.gather(*writing)
            print(f"kill -9: {len(writers.written)} writes, slowest {writers.slowest:.2f} s")
            # A second effect would be a PreconditionFailed: every key is written only if it does not exist.
            assert writers.errors == []
            held = {item.key: item.revision for item in await client.kv_list("w", limit=100_000)}
            assert held == writers.written
