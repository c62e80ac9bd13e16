"""A durable cluster that nobody uses: share of a core, bytes written and syncs."""

from __future__ import annotations

import asyncio
import shutil
import statistics
import subprocess
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import msgspec

from ..cluster import raftkit_cluster
from ..measure import Row, Setting
from . import processes

SYNCS = "trace=fsync,fdatasync,sync_file_range,msync"


async def idle(seconds: float, progress: Callable[[str], None]) -> AsyncIterator[list[Row]]:
    """The share of a core first, alone; then what was synced, because whoever counts syncs slows the process down."""
    async with raftkit_cluster("sqlite") as cluster:
        await asyncio.sleep(3)
        before = {node: await worker.ask({"do": "status"}) for node, worker in cluster.workers.items()}
        await asyncio.sleep(seconds)
        after = {node: await worker.ask({"do": "status"}) for node, worker in cluster.workers.items()}
        progress(f"idle: {seconds:g} s watched")
        syncs = await _syncs([worker.process.pid for worker in cluster.workers.values()], seconds, progress)
    shares = [(after[node]["cpu"] - before[node]["cpu"]) / seconds * 100 for node in before]
    written = [(after[node]["written_bytes"] - before[node]["written_bytes"]) / seconds * 60 for node in before]
    setting = msgspec.structs.replace(processes.in_leader_setting("sqlite", 100, 0), client="none", payload="-")
    rows = [
        _row("raftkit, each node", "% of a core", setting, shares, goal=2.0),
        _row("raftkit, each node, disk", "bytes a minute", setting, written),
    ]
    if syncs:
        per_minute = [count / seconds * 60 for count in syncs]
        rows.append(_row("raftkit, each node, syncs", "syncs a minute", setting, per_minute, goal=0.0))
    yield rows


async def _syncs(pids: Sequence[int], seconds: float, progress: Callable[[str], None]) -> list[int]:
    """How often each process synced within ``seconds``; nothing where that cannot be seen."""
    if shutil.which("strace") is None:
        progress("strace is not installed: syncs are not counted")
        return []
    with tempfile.TemporaryDirectory(prefix="raftkit-bench-") as folder:
        told = [Path(folder) / str(pid) for pid in pids]
        tracers = [
            await asyncio.create_subprocess_exec(
                *("strace", "-f", "-q", "-e", SYNCS, "-o", str(path), "-p", str(pid)), stderr=subprocess.DEVNULL
            )
            for pid, path in zip(pids, told, strict=True)
        ]
        try:
            await asyncio.sleep(seconds)
            if any(tracer.returncode is not None for tracer in tracers):
                progress("strace may not look into these processes: syncs are not counted")
                return []
            return [sum("sync" in line for line in path.read_text().splitlines()) for path in told]
        finally:
            for tracer in tracers:
                if tracer.returncode is None:
                    tracer.terminate()
                await tracer.wait()


def _row(name: str, unit: str, setting: Setting, values: list[float], goal: float | None = None) -> Row:
    return Row(
        case="idle",
        contender=name,
        unit=unit,
        setting=setting,
        median=statistics.median(values),
        lowest=min(values),
        highest=max(values),
        runs=len(values),
        goal=goal,
        at_most=True,
    )
