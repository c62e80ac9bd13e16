"""200 kills of random nodes of ``raftkit local`` at seeded random moments, under writers.

Resumable; prints as it goes; about 20 minutes.

    uv run pytest -m soak tests/soak/test_200_kills.py -n 0 -s

A round: wait a random moment, ``raftkit local kill`` a random node, measure how long until a write that was *sent
after* the kill is acknowledged, wait another random moment, ``raftkit local restart``. Every 10 rounds, and at the end,
every acknowledged key must be there with its value, and all nodes must hold one digest. A write whose outcome is
unknown is never counted as acknowledged. One seed per batch of 10 rounds, so that a resumed run repeats nothing.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from ledger import Ledger, percentile, say

from raftkit_core.errors import RaftError
from raftkit_http.client import HttpClusterClient

KILLS = 200
BATCH = 10
SEED = 20261123
WRITERS = 4
NODES = ("n1", "n2", "n3")
P99_SECONDS = 3.0
SETTLE_SECONDS = 30.0


def raftkit(folder: Path, *arguments: str, timeout: float = 60.0) -> dict[str, Any]:
    """Run the command as a user would; gives its JSON document."""
    done = subprocess.run(
        [sys.executable, "-m", "raftkit_cli", *arguments, "--json"],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        cwd=folder,
        env={**os.environ, "RAFTKIT_CONFIG_DIR": str(folder / "config")},
    )
    assert done.returncode == 0, f"raftkit {' '.join(arguments)} gave {done.returncode}:\n{done.stdout}\n{done.stderr}"
    document: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return document


@contextmanager
def local_cluster(folder: Path, base_port: int) -> Iterator[list[str]]:
    """A persistent cluster of three real processes on loopback; gives its addresses."""
    place = ("--dir", str(folder / "cluster"))
    raftkit(folder, "local", "up", *place, "--nodes", "3", "--base-port", str(base_port))
    try:
        yield [f"http://127.0.0.1:{base_port + number}" for number in range(3)]
    finally:
        subprocess.run(
            [sys.executable, "-m", "raftkit_cli", "local", "down", *place],
            capture_output=True,
            timeout=60,
            check=False,
            cwd=folder,
            env={**os.environ, "RAFTKIT_CONFIG_DIR": str(folder / "config")},
        )


class Writers:
    """Clients that write unique keys for ever; what was acknowledged is remembered, with when it was sent."""

    def __init__(self, addresses: list[str], prefix: str) -> None:
        self._addresses = addresses
        self._prefix = prefix
        self.acknowledged: dict[str, bytes] = {}
        self.unknown = 0
        self.refused = 0
        self.last_served = 0.0
        """When the last acknowledged write had been sent."""
        self.served = asyncio.Condition()

    async def write_for_ever(self, number: int) -> None:
        count = 0
        async with HttpClusterClient(self._addresses, timeout=2.0) as client:
            while True:
                count += 1
                key, value = f"{self._prefix}/{number}/{count:06d}", f"{number}-{count}".encode()
                sent_at = time.monotonic()
                try:
                    await client.kv_put(key, value)
                except RaftError as error:
                    if error.outcome == "unknown":
                        self.unknown += 1
                    else:
                        self.refused += 1
                    await asyncio.sleep(0.02)
                    continue
                self.acknowledged[key] = value
                async with self.served:
                    self.last_served = max(self.last_served, sent_at)
                    self.served.notify_all()
                await asyncio.sleep(0.005)

    async def served_since(self, moment: float) -> float:
        """Seconds from ``moment`` until a write sent after it was acknowledged."""
        async with self.served:
            await self.served.wait_for(lambda: self.last_served >= moment)
        return time.monotonic() - moment


async def missing_keys(addresses: list[str], acknowledged: dict[str, bytes], prefix: str) -> list[str]:
    """Acknowledged keys that a linearizable read does not find with their value."""
    async with HttpClusterClient(addresses, timeout=10.0) as client:
        found = {pair.key: pair.value for pair in await client.kv_list(prefix + "/", limit=10_000_000)}
    return sorted(key for key, value in acknowledged.items() if found.get(key) != value)


async def digests_agree(addresses: list[str]) -> bool:
    """Whether all nodes hold one digest at one applied index, within a while."""
    async with HttpClusterClient(addresses, timeout=5.0) as client:
        deadline = time.monotonic() + SETTLE_SECONDS
        while time.monotonic() < deadline:
            try:
                seen = [await client.status_of(address, digest=True) for address in addresses]
            except RaftError:
                await asyncio.sleep(0.2)
                continue
            if len({(status.applied, status.digest) for status in seen}) == 1:
                return True
            await asyncio.sleep(0.2)
    return False


async def kill_batch(folder: Path, addresses: list[str], first: int, count: int) -> list[dict[str, Any]]:
    """``count`` kills under load, then the books."""
    chance = random.Random(SEED + first)
    prefix = f"batch{first:04d}"
    writers = Writers(addresses, prefix)
    tasks = [asyncio.create_task(writers.write_for_ever(number)) for number in range(WRITERS)]
    rounds: list[dict[str, Any]] = []
    place = ("--dir", str(folder / "cluster"))
    try:
        await asyncio.wait_for(writers.served_since(time.monotonic()), SETTLE_SECONDS)
        for number in range(first, first + count):
            await asyncio.sleep(chance.uniform(0.1, 1.0))
            victim = chance.choice(NODES)
            killed = await asyncio.to_thread(raftkit, folder, "local", "kill", victim, *place)
            seconds = await asyncio.wait_for(writers.served_since(time.monotonic()), SETTLE_SECONDS)
            await asyncio.sleep(chance.uniform(0.0, 0.5))
            await asyncio.to_thread(raftkit, folder, "local", "restart", victim, *place)
            rounds.append({"kill": number, "victim": victim, "seconds": round(seconds, 3)})
            say(f"kill {number + 1}/{KILLS}: {victim}, next served write after {seconds:.2f} s")
            assert killed["ok"]
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    missing = await missing_keys(addresses, writers.acknowledged, prefix)
    assert not missing, f"{len(missing)} acknowledged writes are lost: {missing[:10]}"
    assert await digests_agree(addresses), "the nodes hold different states"
    rounds[-1] |= {
        "acknowledged": len(writers.acknowledged),
        "lost": len(missing),
        "unknown": writers.unknown,
        "refused": writers.refused,
    }
    say(
        f"after kill {first + count}: {len(writers.acknowledged)} writes acknowledged, {len(missing)} lost,"
        f" {writers.unknown} unknown; one digest on all nodes"
    )
    return rounds


@pytest.mark.soak
@pytest.mark.timeout(7200)
def test_200_kills_lose_no_acknowledged_write(tmp_path: Path) -> None:
    ledger = Ledger("kills")
    chance = random.Random(SEED + len(ledger.rounds))
    if len(ledger.rounds) < KILLS:
        with local_cluster(tmp_path, base_port=chance.randrange(20000, 40000, 10)) as addresses:
            while len(ledger.rounds) < KILLS:
                first = len(ledger.rounds)
                for entry in asyncio.run(kill_batch(tmp_path, addresses, first, min(BATCH, KILLS - first))):
                    ledger.add(entry)
    seconds = [entry["seconds"] for entry in ledger.rounds]
    acknowledged = sum(entry.get("acknowledged", 0) for entry in ledger.rounds)
    lost = sum(entry.get("lost", 0) for entry in ledger.rounds)
    p99 = percentile(seconds, 0.99)
    say(
        f"kills: {len(ledger.rounds)}; {acknowledged} writes acknowledged, {lost} lost;"
        f" next served write: median {percentile(seconds, 0.5):.2f} s, p99 {p99:.2f} s, longest {max(seconds):.2f} s\n"
    )
    assert lost == 0
    assert p99 <= P99_SECONDS
