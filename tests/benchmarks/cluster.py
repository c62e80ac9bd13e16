"""Clusters of processes, ours and others', that a benchmark starts, asks and stops."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from raftkit_cli.cluster.layout import free_ports

TESTS = Path(__file__).resolve().parent.parent


class Worker:
    """A child process that answers each line of JSON with one."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    @classmethod
    async def start(cls, *arguments: str, cwd: Path = TESTS, env: dict[str, str] | None = None) -> Worker:
        process = await asyncio.create_subprocess_exec(
            *arguments,
            cwd=cwd,
            env=None if env is None else {**os.environ, **env},
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=2**22,
        )
        worker = cls(process)
        await worker._answer(30)
        return worker

    async def ask(self, order: dict[str, Any], timeout: float = 60) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(order).encode() + b"\n")
        answer = await self._answer(timeout)
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer

    async def _answer(self, timeout: float) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = await asyncio.wait_for(self.process.stdout.readline(), timeout)
        if not line:
            raise RuntimeError("the process ended")
        answer: dict[str, Any] = json.loads(line)
        return answer

    async def stop(self) -> None:
        if self.process.returncode is None:
            self.process.terminate()
        await self.process.wait()

    def kill(self) -> None:
        os.kill(self.process.pid, signal.SIGKILL)


class RaftkitCluster:
    """Nodes of ours, one process each."""

    def __init__(self, folder: Path, storage: str, machine: str, uvloop: bool, settings: dict[str, Any]) -> None:
        self.settings = settings
        self.folder = folder
        self.storage = storage
        self.machine = machine
        self.uvloop = uvloop
        self.addresses: dict[str, str] = {}
        self.workers: dict[str, Worker] = {}

    async def start(self, node_id: str) -> Worker:
        folder = self.folder / node_id
        folder.mkdir(exist_ok=True)
        storage = "memory:" if self.storage == "memory" else f"sqlite:{folder / 'log.db'}"
        arguments = [node_id, storage, self.addresses[node_id], self.machine, str(folder), json.dumps(self.settings)]
        worker = await Worker.start(
            sys.executable, "-m", "benchmarks.node_process", *arguments, *(["--uvloop"] if self.uvloop else [])
        )
        self.workers[node_id] = worker
        return worker

    async def add(self, node_id: str) -> Worker:
        """A new node, that no membership knows."""
        self.addresses[node_id] = f"http://127.0.0.1:{free_ports(1)[0]}"
        return await self.start(node_id)

    async def leader(self, timeout: float = 10) -> str:
        """Who leads, once all agree that run."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        while loop.time() < deadline:
            seen = {(await worker.ask({"do": "status"}))["leader"] for worker in self.workers.values()}
            if len(seen) == 1 and None not in seen:
                return str(seen.pop())
            await asyncio.sleep(0.05)
        raise TimeoutError("no leader")

    async def stop(self) -> None:
        for worker in self.workers.values():
            await worker.stop()


@asynccontextmanager
async def raftkit_cluster(
    storage: str, *, size: int = 3, machine: str = "kv", uvloop: bool = False, **settings: Any
) -> AsyncIterator[RaftkitCluster]:
    """``settings`` as in :class:`Config`, as JSON has them."""
    folder = Path(tempfile.mkdtemp(prefix="raftkit-bench-"))
    cluster = RaftkitCluster(folder, storage, machine, uvloop, settings)
    try:
        ports = free_ports(size)
        cluster.addresses = {f"n{number + 1}": f"http://127.0.0.1:{port}" for number, port in enumerate(ports)}
        for node_id in cluster.addresses:
            await cluster.start(node_id)
        await cluster.workers["n1"].ask({"do": "initialize", "members": cluster.addresses})
        await cluster.leader()
        yield cluster
    finally:
        await cluster.stop()
        shutil.rmtree(folder, ignore_errors=True)
