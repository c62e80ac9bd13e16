"""State machines for ``bench_snapshot_memory``: they tell how long the node's loop stood still.

``Streaming`` has a state of any size without holding it: chunks are made from the position, and checked by it.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

from raftkit_core.errors import StorageCorrupt
from raftkit_core.plugins.url import AdapterUrl
from raftkit_core.state_machine.interface import ApplyBatch, MsgspecCodec, RaftStateMachine
from raftkit_core.types.adapter import AdapterContext
from raftkit_core.types.snapshot import SnapshotMeta

CHUNK = 256 * 1024
LOOK_EVERY = 0.002


class LoopWatch:
    """The longest time the loop did nothing else, into a file the benchmark reads; a file ``reset`` begins anew.

    In memory where that is possible: a watch that waits for a busy disk would see itself.
    """

    def __init__(self, node_id: str) -> None:
        self._folder = Path(os.environ["BENCH_WATCH"]) / node_id
        self._folder.mkdir(exist_ok=True)
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._watch())

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def _watch(self) -> None:
        """CPU time tells a loop that worked from a process that had to wait for a processor."""
        worst = worst_cpu = 0.0
        reset, told = self._folder / "reset", self._folder / "stall.json"
        while True:
            began, cpu = time.perf_counter(), time.thread_time()
            await asyncio.sleep(LOOK_EVERY)
            stalled, worked = time.perf_counter() - began - LOOK_EVERY, time.thread_time() - cpu
            if reset.exists():
                reset.unlink()
                worst = worst_cpu = 0.0
                told.unlink(missing_ok=True)
            if stalled > worst or worked > worst_cpu:
                worst, worst_cpu = max(worst, stalled), max(worst_cpu, worked)
                told.write_text(json.dumps({"stall_ms": worst * 1000, "cpu_ms": worst_cpu * 1000}))


class Streaming(RaftStateMachine):
    """A command is the new size of the state in MiB."""

    name = "streaming/1"

    def __init__(self, url: AdapterUrl, context: AdapterContext) -> None:
        self.codec = MsgspecCodec(int, int)
        self._watch = LoopWatch(context.node_id)
        self._size_mib = 0
        self._block = b"".join(hashlib.sha256(b"%d" % number).digest() for number in range(CHUNK // 32 - 1))

    async def open(self, context: AdapterContext) -> None:
        self._watch.start()

    async def close(self) -> None:
        await self._watch.stop()

    def apply(self, batch: ApplyBatch) -> Sequence[int]:
        for entry in batch.entries:
            self._size_mib = entry.command
        return [self._size_mib] * len(batch.entries)

    def _chunk(self, number: int) -> bytes:
        return number.to_bytes(32, "big") + self._block

    async def snapshot(self) -> AsyncIterator[bytes]:  # type: ignore[override]
        for number in range(self._size_mib * 1024 * 1024 // CHUNK):
            yield self._chunk(number)

    async def restore(self, meta: SnapshotMeta, chunks: AsyncIterator[bytes]) -> None:
        number = 0
        async for chunk in chunks:
            if chunk != self._chunk(number):
                raise StorageCorrupt(f"chunk {number} is another one", subject="state machine", verb="restore")
            number += 1
        self._size_mib = number * CHUNK // 1024 // 1024

    def query(self, query: Any) -> Any:
        return self._size_mib


def sqlite_kv(url: AdapterUrl, context: AdapterContext) -> RaftStateMachine:
    """``sqlite-kv`` with the watch."""
    from raftkit_sqlite.kv_machine import SqliteKvStateMachine

    watch = LoopWatch(context.node_id)

    class Watched(SqliteKvStateMachine):
        async def open(self, context: AdapterContext) -> None:
            await super().open(context)
            watch.start()

        async def close(self) -> None:
            await watch.stop()
            await super().close()

    return Watched("kv.db")
