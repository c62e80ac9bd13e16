"""A large snapshot written, sent and restored between real processes over HTTP: memory over idle, and loop stalls.

``uv run python tests/benchmarks/bench_snapshot_memory.py [--mib 1024] [--machine streaming|sqlite-kv]``

Target: at most 64 MiB over idle in each process, no stall of a loop above 20 ms. ``worked`` is the longest stretch of
the loop's own CPU time: what is above it in ``stall`` was waiting for a processor.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from raftkit_cli.cluster.layout import free_ports
from raftkit_core import load_plugins
from raftkit_core.errors import RaftError
from raftkit_core.network.client import ClusterClient
from raftkit_core.types.kv import Put
from raftkit_core.types.membership import Node

HERE = Path(__file__).parent
TARGET_MIB = 64
TARGET_STALL_MS = 20
CONFIG = """
[node]
id = "{id}"
data_dir = "{id}"
[storage]
url = "sqlite:raft.db"
[network]
url = "{url}"
[state_machine]
name = "{machine}"
[raft]
snapshot_policy = "never"
max_in_snapshot_log_to_keep = 0
purge_batch_size = 1
"""


class NodeProcess:
    def __init__(self, folder: Path, watch: Path, node_id: str, port: int, machine: str) -> None:
        self.id = node_id
        self.url = f"http://127.0.0.1:{port}"
        self.folder = watch / node_id
        self.peak_kib = 0
        self.idle_kib = 0
        config = folder / f"{node_id}.toml"
        config.write_text(CONFIG.format(id=node_id, url=self.url, machine=machine))
        environment = os.environ | {"PYTHONPATH": str(HERE), "BENCH_WATCH": str(watch)}
        self._log = (folder / f"{node_id}.log").open("wb")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "raftkit_cli", "node", "run", "-c", str(config)],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            env=environment,
        )

    def rss_kib(self) -> int:
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1])
        return 0

    def begin(self) -> None:
        """A phase begins: what is used now is idle."""
        self.idle_kib = self.peak_kib = self.rss_kib()
        (self.folder / "reset").touch()

    def sample(self) -> None:
        self.peak_kib = max(self.peak_kib, self.rss_kib())

    def report(self) -> dict[str, Any]:
        told = self.folder / "stall.json"
        stall = json.loads(told.read_text()) if told.exists() else {"stall_ms": 0.0, "cpu_ms": 0.0}
        return {"node": self.id, "over_idle_mib": (self.peak_kib - self.idle_kib) / 1024, **stall}

    def stop(self) -> None:
        self.process.kill()
        self.process.wait(10)
        self._log.close()


async def until_up(client: ClusterClient, node: NodeProcess) -> None:
    while True:
        try:
            await client.status_of(node.url)
            return
        except RaftError:
            assert node.process.poll() is None, "the node ended: look at its log"
            await asyncio.sleep(0.1)


async def phase(name: str, nodes: list[NodeProcess], done: Any, limit: float) -> list[dict[str, Any]]:
    """Sample until ``done()`` is true."""
    await asyncio.sleep(1.5)
    for node in nodes:
        node.begin()
    await asyncio.sleep(0.2)
    began = time.perf_counter()
    first = True
    while True:
        for _ in range(20):
            for node in nodes:
                node.sample()
            await asyncio.sleep(0.01)
        if await done(first):
            break
        first = False
        assert time.perf_counter() - began < limit, f"{name} took longer than {limit} s"
    seconds = time.perf_counter() - began
    return [{"phase": name, "seconds": seconds, **node.report()} for node in nodes]


async def run(folder: Path, watch: Path, mib: int, machine: str, limit: float) -> list[dict[str, Any]]:
    name = "import:snapshot_machines:" + ("Streaming" if machine == "streaming" else "sqlite_kv")
    ports = free_ports(2)
    one = NodeProcess(folder, watch, "n1", ports[0], name)
    two: NodeProcess | None = None
    rows: list[dict[str, Any]] = []
    try:
        async with load_plugins().client([one.url], {"timeout": 30.0}) as client:
            await until_up(client, one)
            await client.initialize({"n1": Node(one.url)})
            if machine == "streaming":
                await client.write(mib)
            else:
                block = os.urandom(512 * 1024)
                for number in range(0, mib * 2, 8):
                    await asyncio.gather(
                        *(
                            client.write(Put(f"k{number + offset:06}", block))
                            for offset in range(min(8, mib * 2 - number))
                        )
                    )
            applied = (await client.status_of(one.url)).applied or 0

            async def built(first: bool) -> bool:
                if first:
                    await client.trigger_snapshot(one.url)
                return ((await client.status_of(one.url)).snapshot or -1) >= applied

            rows += await phase("written", [one], built, limit)
            two = NodeProcess(folder, watch, "n2", ports[1], name)
            await until_up(client, two)
            begun = two

            async def installed(first: bool) -> bool:
                if first:
                    await client.add_learner("n2", Node(begun.url), blocking=False)
                return ((await client.status_of(begun.url)).applied or -1) > applied

            rows += await phase("sent and restored", [one, two], installed, limit)
            digests = [await client.status_of(node.url, digest=True) for node in (one, two)]
            assert digests[0].state_machine == digests[1].state_machine
    finally:
        one.stop()
        if two is not None:
            two.stop()
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--machine", choices=["streaming", "sqlite-kv"], default="streaming")
    parser.add_argument("--limit", type=float, default=200.0, help="seconds a phase may take")
    given = parser.parse_args()
    memory = "/dev/shm" if os.path.isdir("/dev/shm") else None
    with (
        tempfile.TemporaryDirectory(prefix="raftkit-snapshot-") as folder,
        tempfile.TemporaryDirectory(prefix="raftkit-watch-", dir=memory) as watch,
    ):
        rows = asyncio.run(run(Path(folder), Path(watch), given.mib, given.machine, given.limit))
    print(f"{given.machine}, {given.mib} MiB (target: {TARGET_MIB} MiB over idle, {TARGET_STALL_MS} ms)")
    print(f"{'phase':20} {'node':5} {'seconds':>8} {'over idle':>10} {'stall':>9} {'worked':>9}")
    met = True
    for row in rows:
        met = met and row["over_idle_mib"] <= TARGET_MIB and row["stall_ms"] <= TARGET_STALL_MS
        print(
            f"{row['phase']:20} {row['node']:5} {row['seconds']:8.1f} {row['over_idle_mib']:6.1f} MiB"
            f" {row['stall_ms']:6.1f} ms {row['cpu_ms']:6.1f} ms"
        )
    print("met" if met else "NOT met")
    return 0


if __name__ == "__main__":
    sys.exit(main())
