"""What a large snapshot costs those who write meanwhile: the slowest commit in a thousand, against the same run
without.

The nodes hold a ``kv`` of so many bytes. Writes come at an even pace, in the leader, and are measured from when they
were due: while nothing else happens (before, between and after), while the leader builds a snapshot, while its log is
purged behind it, and while the snapshot is sent to a new node that installs it.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec

from ..cluster import RaftkitCluster, Worker, raftkit_cluster
from ..measure import Row
from . import processes

MUST, GOAL = 10.0, 3.0
VALUE_BYTES = 1024
FILL_BATCH = 1024
PHASE_LIMIT = 240.0


async def commits_beside(
    storage: str, mib: int, rate: int, base_seconds: float, progress: Callable[[str], None]
) -> AsyncIterator[list[Row]]:
    keys = mib * 1024 * 1024 // (VALUE_BYTES + len("key00000000"))
    settings: dict[str, Any] = {"snapshot_policy": {"type": "Never"}, "max_in_snapshot_log_to_keep": 0}
    async with raftkit_cluster(storage, **settings) as cluster:
        leader = cluster.workers[await cluster.leader()]
        order = {"do": "fill", "first": 0, "count": keys, "payload": VALUE_BYTES + 12, "keys": keys}
        filled = await leader.ask({**order, "batch": FILL_BATCH}, timeout=400)
        progress(f"{storage}, {mib} MiB: {keys:,} keys written in {filled['seconds']:.1f} s")
        name = await cluster.leader(timeout=60)  # it may have changed
        leader = cluster.workers[name]
        await all_applied(cluster, name)
        await asyncio.to_thread(os.sync)  # what the filling left for the disk is no part of it
        await leader.ask({"do": "load", "rate": rate, "payload": 100, "keys": keys})
        await asyncio.sleep(2)
        phases: dict[str, dict[str, Any]] = {}

        async def quiet(number: int) -> None:
            await leader.ask({"do": "taken"})
            await asyncio.sleep(base_seconds)
            phases[f"without, {number}"] = await leader.ask({"do": "taken"})
            progress(_told(f"{storage}: without", phases[f"without, {number}"], base_seconds))

        async def until(what: str, worker: Worker, figure: str) -> None:
            started = time.perf_counter()
            await wait_for(worker, figure, applied, PHASE_LIMIT)
            phases[what] = await leader.ask({"do": "taken"})
            phases[what]["seconds"] = time.perf_counter() - started
            progress(_told(f"{storage}: {what}", phases[what], phases[what]["seconds"]))

        await quiet(1)
        applied = (await leader.ask({"do": "status"}))["applied"]
        await leader.ask({"do": "taken"})
        await leader.ask({"do": "snapshot"})

        await until("built", leader, "snapshot")
        await until("purged from the log", leader, "purged")
        await quiet(2)
        fresh = await cluster.add("n4")
        await leader.ask({"do": "taken"})
        await leader.ask({"do": "add learner", "id": "n4", "address": cluster.addresses["n4"]})

        await until("sent and installed", fresh, "applied")
        await quiet(3)
        await leader.ask({"do": "load no more"})
    yield _rows(storage, mib, rate, phases)


async def all_applied(cluster: RaftkitCluster, leader: str) -> None:
    """Return when every node has applied what the leader has now."""
    target = (await cluster.workers[leader].ask({"do": "status"}))["applied"]
    for worker in cluster.workers.values():
        await wait_for(worker, "applied", target, 60)


async def wait_for(worker: Worker, figure: str, target: int, limit: float) -> None:
    """Return when ``figure`` of the worker's status is ``target`` or more. Raises: TimeoutError."""
    deadline = time.perf_counter() + limit
    while (found := (await worker.ask({"do": "status"}))[figure]) < target:
        if time.perf_counter() > deadline:
            raise TimeoutError(f"{figure} is {found} instead of {target} after {limit:g} s")
        await asyncio.sleep(0.05)


def _told(what: str, phase: dict[str, Any], seconds: float) -> str:
    return (
        f"{what}, {seconds:.1f} s: {phase['count']:,} commits, p50 {phase['p50_ms']:.2f}, p99 {phase['p99_ms']:.2f},"
        f" p99.9 {phase['p99.9_ms']:.2f}, slowest {phase['max_ms']:.1f} ms"
    )


def _rows(storage: str, mib: int, rate: int, phases: dict[str, dict[str, Any]]) -> list[Row]:
    base = [phase for name, phase in phases.items() if name.startswith("without")]
    p999s = [phase["p99.9_ms"] for phase in base]
    setting = msgspec.structs.replace(
        processes.in_leader_setting(storage, 100, 0),
        client=f"in the leader's loop, {rate} writes/s at an even pace",
    )
    case = f"commits beside a snapshot of {mib} MiB, {processes.SHORT[storage]}"
    common: dict[str, Any] = {"case": case, "unit": "ms, p99.9", "setting": setting}
    rows = [
        Row(
            contender="without a snapshot",
            median=statistics.median(p999s),
            lowest=min(p999s),
            highest=max(p999s),
            runs=len(p999s),
            p50_ms=statistics.median(phase["p50_ms"] for phase in base),
            p99_ms=statistics.median(phase["p99_ms"] for phase in base),
            **common,
        )
    ]
    for what, phase in phases.items():
        if what.startswith("without"):
            continue
        must, goal = (None, None) if "purged" in what else (MUST, GOAL)
        rows.append(
            Row(
                contender=f"while it is {what}",
                median=phase["p99.9_ms"],
                lowest=phase["p99.9_ms"],
                highest=phase["p99.9_ms"],
                runs=1,
                p50_ms=phase["p50_ms"],
                p99_ms=phase["p99_ms"],
                against="without a snapshot",
                ratio=phase["p99.9_ms"] / rows[0].median,
                must=must,
                goal=goal,
                at_most=True,
                note=f"{phase['seconds']:.1f} s, {phase['count']:,} commits, {phase['failed']} failed,"
                f" slowest {phase['max_ms']:.1f} ms",
                **common,
            )
        )
    return rows
