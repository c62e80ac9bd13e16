"""Getting back: the next commit after the leader was killed, and an empty node that catches up."""

from __future__ import annotations

import asyncio
import os
import random
import sqlite3
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec

from ..cluster import RaftkitCluster, raftkit_cluster
from ..measure import Row, percentile, single
from . import processes
from .snapshots import all_applied, wait_for

ELECTION_TIMEOUT_MAX = 1.0
NEVER: dict[str, Any] = {"snapshot_policy": {"type": "Never"}, "max_in_snapshot_log_to_keep": 0}


async def leader_killed(kills: int, progress: Callable[[str], None]) -> AsyncIterator[list[Row]]:
    """From SIGKILL of the leader to the next commit. The killed node comes back from its disk before the next kill."""
    waits: list[float] = []
    chance = random.Random(1)
    async with raftkit_cluster("sqlite") as cluster:
        for number in range(kills):
            leader = await cluster.leader()
            await all_applied(cluster, leader)
            await asyncio.sleep(chance.uniform(0.2, 0.5))  # anywhere between two heartbeats
            victim = cluster.workers.pop(leader)
            started = time.perf_counter()
            victim.kill()
            await _next_commit(cluster)
            waits.append((time.perf_counter() - started) / ELECTION_TIMEOUT_MAX)
            progress(f"kill {number + 1} of {kills}: {waits[-1] * 1000:.0f} ms")
            await victim.stop()
            await cluster.start(leader)
    setting = msgspec.structs.replace(
        processes.in_leader_setting("sqlite", 100, 0), client="a write at each survivor, again every 5 ms"
    )
    yield [
        Row(
            case="leader killed, next commit",
            contender=f"raftkit, {name} of {kills} kills",
            unit="of election_timeout_max",
            setting=setting,
            median=percentile(waits, share),
            lowest=min(waits),
            highest=max(waits),
            runs=len(waits),
            must=must,
            goal=goal,
            at_most=True,
        )
        for name, share, must, goal in (("p50", 0.5, 1.8, 1.0), ("p99", 0.99, 1.8, 1.5))
    ]


async def _next_commit(cluster: RaftkitCluster) -> None:
    while True:
        asked = (worker.ask({"do": "try write"}, timeout=20) for worker in cluster.workers.values())
        if any(answer["committed"] for answer in await asyncio.gather(*asked)):
            return
        await asyncio.sleep(0.005)


async def catching_up(entries: int, mib: int, progress: Callable[[str], None]) -> AsyncIterator[list[Row]]:
    """An empty node joins: by the log of so many entries of 100 B, and by a snapshot of so many MiB."""
    setting = msgspec.structs.replace(processes.in_leader_setting("sqlite", 100, 0), client="none; an empty node joins")
    async with raftkit_cluster("sqlite", size=1, **NEVER) as cluster:
        leader = cluster.workers["n1"]
        fill = {"do": "fill", "first": 0, "count": entries, "payload": 100, "keys": 1000, "batch": 1000}
        filled = await leader.ask(fill, timeout=300)
        progress(f"{entries:,} entries written in {filled['seconds']:.1f} s")
        seconds = await _join(cluster, progress)
    bare = await asyncio.to_thread(_copy_rows, entries)
    case = f"an empty node catches up by a log of {entries:,} entries"
    yield [
        single(
            case,
            "raftkit",
            "entries/s",
            setting,
            entries / seconds,
            against="rows copied and synced",
            ratio=bare / seconds,
            note=f"{seconds:.1f} s",
        ),
        single(
            case,
            "rows copied and synced",
            "entries/s",
            msgspec.structs.replace(setting, processes="one", transport="none", client="SQLite to SQLite, 4,096 rows"),
            entries / bare,
        ),
    ]
    keys = mib * 1024
    async with raftkit_cluster("sqlite", size=1, **NEVER) as cluster:
        leader = cluster.workers["n1"]
        fill = {"do": "fill", "first": 0, "count": keys, "payload": 1024 + 12, "keys": keys, "batch": 1000}
        filled = await leader.ask(fill, timeout=300)
        progress(f"{mib} MiB written in {filled['seconds']:.1f} s")
        applied = (await leader.ask({"do": "status"}))["applied"]
        await leader.ask({"do": "snapshot"})
        await wait_for(leader, "purged", applied, 120)
        seconds = await _join(cluster, progress)
        bare = await asyncio.to_thread(_copy_file, cluster.folder, mib)
    case = f"an empty node catches up by a snapshot of {mib} MiB"
    setting = msgspec.structs.replace(setting, payload="1 KiB")
    yield [
        single(
            case,
            "raftkit",
            "MiB/s",
            setting,
            mib / seconds,
            against="a file copied and synced",
            ratio=bare / seconds,
            note=f"{seconds:.1f} s: checked when read, sent, checked when received, restored",
        ),
        single(
            case,
            "a file copied and synced",
            "MiB/s",
            msgspec.structs.replace(setting, processes="one", transport="none", client="1 MiB at a time"),
            mib / bare,
        ),
    ]


async def _join(cluster: RaftkitCluster, progress: Callable[[str], None]) -> float:
    """Seconds until a new, empty node has applied all the leader had."""
    target = (await cluster.workers["n1"].ask({"do": "status"}))["applied"]
    fresh = await cluster.add("n2")
    started = time.perf_counter()
    await cluster.workers["n1"].ask({"do": "add learner", "id": "n2", "address": cluster.addresses["n2"]})
    await wait_for(fresh, "applied", target, 240)
    seconds = time.perf_counter() - started
    progress(f"caught up with {target:,} in {seconds:.1f} s")
    return seconds


def _copy_rows(entries: int) -> float:
    """The least a node must do to take a log over: read the rows of one file and write them to another, synced."""
    with tempfile.TemporaryDirectory(prefix="raftkit-bench-") as folder:
        source, target = (_log_file(Path(folder) / name) for name in ("source.db", "target.db"))
        payload = os.urandom(100)
        source.execute("BEGIN")
        source.executemany("INSERT INTO log VALUES (?, 1, ?)", ((number, payload) for number in range(entries)))
        source.execute("COMMIT")
        started = time.perf_counter()
        for start in range(0, entries, 4096):
            rows = source.execute("SELECT * FROM log WHERE idx >= ? AND idx < ?", (start, start + 4096)).fetchall()
            target.execute("BEGIN")
            target.executemany("INSERT INTO log VALUES (?, ?, ?)", rows)
            target.execute("COMMIT")
        seconds = time.perf_counter() - started
        source.close()
        target.close()
        return seconds


def _log_file(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None)
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "locking_mode=EXCLUSIVE"):
        connection.execute(f"PRAGMA {pragma}")
    connection.execute("CREATE TABLE log (idx INTEGER PRIMARY KEY, term INTEGER, payload BLOB)")
    return connection


def _copy_file(folder: Path, mib: int) -> float:
    source, target = folder / "source", folder / "target"
    block = os.urandom(1024 * 1024)
    with source.open("wb") as file:
        for _ in range(mib):
            file.write(block)
    started = time.perf_counter()
    with source.open("rb") as reader, target.open("wb") as writer:
        while data := reader.read(1024 * 1024):
            writer.write(data)
        writer.flush()
        os.fsync(writer.fileno())
    return time.perf_counter() - started
