"""One node in a process of its own, driven by lines of JSON on its standard input.

``python -m benchmarks.node_process ID STORAGE NETWORK MACHINE DATA_DIR SETTINGS [--uvloop]``, the settings being those
of :class:`Config` as JSON. Orders are ``{"do": "initialize", "members": {id: address}}``, ``status``, ``write`` or
``read`` with ``outstanding``, ``seconds`` and so on, and ``quit``; each gets one line of JSON as answer.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import resource
import sys
import time
from typing import Any

import msgspec

from raftkit_core import Config, Node, Raft, ReadPolicy, open_raft
from raftkit_core.errors import RaftError
from raftkit_core.types.kv import Get, Put

from .drive import PacedWrites, closed_loop

FILL_ATTEMPTS = 10
_paced: list[PacedWrites] = []


async def carry_out(raft: Raft, order: dict[str, Any]) -> dict[str, Any]:
    match order["do"]:
        case "initialize":
            await raft.initialize({node_id: Node(address) for node_id, address in order["members"].items()})
            return {}
        case "status":
            metrics = raft.metrics().value
            times = os.times()
            return {
                "leader": metrics.current_leader,
                "applied": -1 if metrics.last_applied is None else metrics.last_applied.index,
                "snapshot": -1 if metrics.snapshot is None else metrics.snapshot.index,
                "purged": -1 if metrics.purged is None else metrics.purged.index,
                "cpu": times.user + times.system,
                "written_bytes": _written_bytes(),
                "resident_bytes": resident_bytes(),
            }
        case "write":
            value = b"v" * (order["payload"] - 12)
            commands = [Put(f"key{number:05d}", value) for number in range(1000)]

            async def write(number: int) -> None:
                await raft.client_write(commands[number % 1000])

            return msgspec.to_builtins(await closed_loop(write, order["outstanding"], order["seconds"]))
        case "try write":
            try:
                await raft.client_write(Put("key", b"v"), timeout=1.0)
            except RaftError:
                return {"committed": False}
            return {"committed": True}
        case "read":
            query = Get("key00001")
            policy = ReadPolicy(order["policy"])

            async def read(number: int) -> None:
                await raft.read(query, policy)

            return msgspec.to_builtins(await closed_loop(read, order["outstanding"], order["seconds"]))
        case "fill":
            return await fill(raft, order["first"], order["count"], order["payload"], order["keys"], order["batch"])
        case "load":
            _paced.append(PacedWrites(raft, order["rate"], order["payload"], order["keys"]))
            return {}
        case "taken":
            return _paced[0].take()
        case "load no more":
            await _paced.pop().stop()
            return {}
        case "snapshot":
            raft.trigger().snapshot()
            return {}
        case "add learner":
            await raft.add_learner(order["id"], Node(order["address"]), blocking=False)
            return {}
        case other:
            raise ValueError(other)


async def fill(raft: Raft, first: int, count: int, payload: int, keys: int, batch: int) -> dict[str, Any]:
    """``count`` writes to ``keys`` keys, many a call, two calls under way. On a busy machine a leader may be deposed
    meanwhile: a call that failed is made again, which changes nothing that counts."""
    value = os.urandom(max(payload - 12, 1))
    started = time.perf_counter()
    under_way: set[asyncio.Task[Any]] = set()
    for start in range(first, first + count, batch):
        commands = [Put(f"key{number % keys:08d}", value) for number in range(start, min(start + batch, first + count))]
        under_way.add(asyncio.create_task(_write_all(raft, commands)))
        if len(under_way) == 2:
            done, under_way = await asyncio.wait(under_way, return_when=asyncio.FIRST_COMPLETED)
            for call in done:
                call.result()
    await asyncio.gather(*under_way)
    return {"seconds": time.perf_counter() - started}


async def _write_all(raft: Raft, commands: list[Put]) -> None:
    for attempt in range(FILL_ATTEMPTS):
        failed = [answer for answer in await raft.write_many(commands, timeout=20) if isinstance(answer, RaftError)]
        if not failed:
            return
        if attempt + 1 == FILL_ATTEMPTS:
            raise failed[0]
        await asyncio.sleep(0.5)


def resident_bytes() -> int:
    with open("/proc/self/statm", encoding="ascii") as sizes:
        return int(sizes.read().split()[1]) * resource.getpagesize()


def _written_bytes() -> int:
    """What this process had written to disks, by the kernel's count."""
    with open("/proc/self/io", encoding="ascii") as counts:
        return next(int(line.split()[1]) for line in counts if line.startswith("write_bytes"))


async def main(node_id: str, storage: str, network: str, machine: str, data_dir: str, settings: str) -> None:
    loop = asyncio.get_running_loop()
    lines = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    config = msgspec.json.decode(settings, type=Config)
    async with open_raft(
        node_id, storage=storage, network=network, state_machine=machine, data_dir=data_dir, config=config
    ) as raft:
        gc.collect()
        gc.freeze()
        print(json.dumps({"ready": time.time()}), flush=True)
        while line := await lines.readline():
            order = json.loads(line)
            if order["do"] == "quit":
                return
            try:
                answer = await carry_out(raft, order)
            except Exception as error:
                answer = {"error": f"{type(error).__name__}: {error}"}
            print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    if "--uvloop" in sys.argv:
        import uvloop

        uvloop.run(main(*sys.argv[1:7]))
    else:
        asyncio.run(main(*sys.argv[1:7]))
