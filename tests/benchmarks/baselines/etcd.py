"""etcd in three processes, driven by its Python client over gRPC from this process."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from raftkit_core.testing.ports import free_ports

from ..drive import closed_loop
from ..measure import Sample

CONNECTIONS = 8


class EtcdCluster:
    """``version`` is what the members say; writes and reads go to the leader."""

    def __init__(self, leader_port: int, version: str) -> None:
        self.version = version
        self._port = leader_port

    async def write(self, outstanding: int, seconds: float, payload: int) -> Sample:
        value = b"v" * (payload - 12)
        async with self._clients(outstanding) as clients:

            async def write(number: int) -> None:
                await clients[number % len(clients)].put(b"key%05d" % number, value)

            return await closed_loop(write, outstanding, seconds, every=True)

    async def read(self, outstanding: int, seconds: float) -> Sample:
        """Linearizable reads."""
        async with self._clients(outstanding) as clients:
            await clients[0].put(b"key00001", b"v")

            async def read(number: int) -> None:
                await clients[number % len(clients)].get(b"key00001")

            return await closed_loop(read, outstanding, seconds, every=True)

    @asynccontextmanager
    async def _clients(self, outstanding: int) -> AsyncIterator[list[Any]]:
        import aetcd

        async with AsyncExitStack() as stack:
            clients = []
            for _ in range(min(outstanding, CONNECTIONS)):
                client = aetcd.Client(host="127.0.0.1", port=self._port)
                await client.connect()
                stack.push_async_callback(client.close)
                clients.append(client)
            yield clients


@asynccontextmanager
async def etcd_cluster() -> AsyncIterator[EtcdCluster]:
    """Three members with their defaults: every write is synced."""
    import aetcd

    program = shutil.which("etcd")
    if program is None:
        raise FileNotFoundError("etcd is not installed (Debian: apt-get install etcd-server)")
    ports = free_ports(6)
    members = {f"m{number}": (ports[number], ports[number + 3]) for number in range(3)}
    initial = ",".join(f"{name}=http://127.0.0.1:{peer}" for name, (_, peer) in members.items())
    folder = Path(tempfile.mkdtemp(prefix="etcd-bench-"))
    processes: list[asyncio.subprocess.Process] = []
    try:
        for name, (client_port, peer_port) in members.items():
            client, peer = f"http://127.0.0.1:{client_port}", f"http://127.0.0.1:{peer_port}"
            arguments = ["--name", name, "--data-dir", str(folder / name), "--log-level", "error", "--logger", "zap"]
            arguments += ["--listen-client-urls", client, "--advertise-client-urls", client]
            arguments += ["--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer]
            arguments += ["--initial-cluster", initial, "--initial-cluster-state", "new"]
            nowhere = asyncio.subprocess.DEVNULL
            env = {**os.environ, "ETCDCTL_API": "3"}
            processes.append(
                await asyncio.create_subprocess_exec(program, *arguments, stdout=nowhere, stderr=nowhere, env=env)
            )
        for _ in range(100):
            await asyncio.sleep(0.2)
            for client_port, _ in members.values():
                client = aetcd.Client(host="127.0.0.1", port=client_port)
                try:
                    await client.connect()
                    status = await asyncio.wait_for(client.status(), 2)
                except Exception:
                    continue
                finally:
                    await client.close()
                if status.leader is not None and await _is_leader(client_port):
                    yield EtcdCluster(client_port, status.version)
                    return
        raise TimeoutError("etcd elected nobody")
    finally:
        for process in processes:
            if process.returncode is None:
                process.terminate()
            await process.wait()
        shutil.rmtree(folder, ignore_errors=True)


async def _is_leader(port: int) -> bool:
    """Whether the member at ``port`` leads, as its HTTP metrics say."""
    import urllib.request

    def look() -> bool:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=2) as answer:
            return b"\netcd_server_is_leader 1\n" in answer.read()

    return await asyncio.to_thread(look)
