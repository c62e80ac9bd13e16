"""A log that only grows: what an entry takes of memory, and whether the last ones cost more than the first."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable

import msgspec

from ..cluster import raftkit_cluster
from ..measure import Row, single
from . import processes
from .recovery import NEVER

PARTS = 20
BATCH = 1000


async def growing(
    storage: str, entries: int, limit: float, progress: Callable[[str], None]
) -> AsyncIterator[list[Row]]:
    """One node, 1 000 keys, so that the log alone grows. Stops early after ``limit`` seconds, and then says how far it
    came: the row's name is what was measured."""
    part = entries // PARTS
    rates: list[float] = []
    async with raftkit_cluster(storage, size=1, **NEVER) as cluster:
        node = cluster.workers["n1"]
        fill = {"do": "fill", "count": part, "payload": 100, "keys": 1000, "batch": BATCH}
        await node.ask({**fill, "first": 0, "count": 10 * BATCH}, timeout=60)
        before = (await node.ask({"do": "status"}))["resident_bytes"]
        started = time.perf_counter()
        for number in range(PARTS):
            if time.perf_counter() - started > limit and number > 1:
                break
            seconds = (await node.ask({**fill, "first": number * part}, timeout=limit))["seconds"]
            rates.append(part / seconds)
            progress(f"{storage}: {(number + 1) * part:,} entries, {rates[-1]:,.0f}/s")
        grown = (await node.ask({"do": "status"}))["resident_bytes"] - before
    reached = len(rates) * part
    setting = msgspec.structs.replace(
        processes.in_leader_setting(storage, 100, 2 * BATCH),
        processes="one node, one process",
        transport="none",
        client=f"in the node's loop, {BATCH} writes a call, two calls under way",
    )
    case = f"a log of {reached:,} entries, {processes.SHORT[storage]}"
    note = "" if reached == entries else f"of {entries:,}: the others would have taken longer than {limit:g} s"
    yield [
        single(case, "raftkit, the first twentieth", "writes/s", setting, rates[0]),
        single(
            case,
            "raftkit, the last twentieth",
            "writes/s",
            setting,
            rates[-1],
            against="raftkit, the first twentieth",
            ratio=rates[-1] / rates[0],
            note=note,
        ),
        single(case, "raftkit, memory", "MiB per million entries", setting, grown / reached * 1e6 / 2**20),
    ]


async def keys(count: int, progress: Callable[[str], None]) -> AsyncIterator[list[Row]]:
    """One node whose ``kv`` grows, its log in SQLite: what a key takes of memory."""
    async with raftkit_cluster("sqlite", size=1, **NEVER) as cluster:
        node = cluster.workers["n1"]
        fill = {"do": "fill", "first": 0, "payload": 100, "batch": BATCH}
        await node.ask({**fill, "count": 10 * BATCH, "keys": 1}, timeout=60)
        before = (await node.ask({"do": "status"}))["resident_bytes"]
        seconds = (await node.ask({**fill, "count": count, "keys": count}, timeout=200))["seconds"]
        grown = (await node.ask({"do": "status"}))["resident_bytes"] - before
        progress(f"{count:,} keys in {seconds:.1f} s")
    setting = msgspec.structs.replace(
        processes.in_leader_setting("sqlite", 100, 0), processes="one node, one process", transport="none"
    )
    case = f"kv with {count:,} keys of 11 B, values of 88 B"
    yield [single(case, "raftkit, memory", "MiB per million keys", setting, grown / count * 1e6 / 2**20)]
