"""PySyncObj in three processes."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from raftkit_core.testing.ports import free_ports

from ..cluster import Worker
from ..measure import Sample

BATCHED = {"batch": True, "period": 0.005, "tick": 0.001}
"""Its best rate: a batch every 5 ms, ticked every millisecond."""
LOW_LATENCY = {"batch": False, "period": 0.1, "tick": 0.05}


class SyncObjCluster:
    def __init__(self, leader: Worker) -> None:
        self._leader = leader

    async def write(self, outstanding: int, seconds: float, payload: int) -> Sample:
        order = {"do": "write", "outstanding": outstanding, "seconds": seconds, "payload": payload}
        return Sample(**await self._leader.ask(order, timeout=seconds + 40))


@asynccontextmanager
async def syncobj_cluster(options: dict[str, Any]) -> AsyncIterator[SyncObjCluster]:
    """Three nodes; what is written, is written in the leader's process."""
    addresses = [f"127.0.0.1:{port}" for port in free_ports(3)]
    workers: dict[str, Worker] = {}
    async with AsyncExitStack() as stack:
        for address in addresses:
            others = ",".join(other for other in addresses if other != address)
            module = "benchmarks.baselines.pysyncobj_node"
            worker = await Worker.start(sys.executable, "-m", module, address, others, json.dumps(options))
            stack.push_async_callback(worker.stop)
            workers[address] = worker
        for _ in range(100):
            await asyncio.sleep(0.2)
            seen = {(await worker.ask({"do": "status"}))["leader"] for worker in workers.values()}
            if len(seen) == 1 and None not in seen:
                break
        yield SyncObjCluster(workers[seen.pop()])
