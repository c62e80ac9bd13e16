"""Three nodes in one process, memory storage and network: what the Python of the write path costs."""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

import msgspec

from raftkit_core import Config, Node, Raft, open_raft
from raftkit_core.instrument import Instrument
from raftkit_core.types.kv import Put

from ..baselines.bare_replicator import BareCluster
from ..drive import closed_loop
from ..measure import Contender, Sample, Setting

TARGETS = {1: (0.35, 0.5), 64: (None, None), 256: (0.4, 0.6), 1024: (None, None)}
NATIVE = "RAFTKIT_BENCH_NATIVE"
"""Variable: a Python with the native wheel, to be measured beside this one (``--native``)."""
_hubs = itertools.count()


@asynccontextmanager
async def memory_cluster(
    size: int = 3, config: Config | None = None, instruments: Sequence[Instrument] = ()
) -> AsyncIterator[list[Raft]]:
    """``size`` nodes on one hub; the first of the list leads."""
    hub = f"bench-{next(_hubs)}"
    ids = [f"n{number}" for number in range(1, size + 1)]
    async with AsyncExitStack() as stack:
        rafts = [
            await stack.enter_async_context(
                open_raft(
                    id,
                    storage="memory:",
                    network=f"memory:{hub}",
                    state_machine="kv",
                    config=config or Config(),
                    instruments=instruments,
                )
            )
            for id in ids
        ]
        await rafts[0].initialize({id: Node(f"memory:{hub}/{id}") for id in ids})
        await rafts[0].wait(5).current_leader("n1")
        await rafts[0].client_write(Put("ready", b""))
        yield rafts


def value_of(size_bytes: int) -> bytes:
    return b"v" * (size_bytes - 12)


async def _watch(raft: Raft) -> None:
    """Whoever looks at the metrics, ten times a second."""
    while True:
        raft.metrics().value  # noqa: B018
        await asyncio.sleep(0.1)


async def raftkit_run(
    outstanding: int,
    seconds: float,
    payload: int = 100,
    size: int = 3,
    instruments: Sequence[Instrument] = (),
    watch: bool = False,
) -> Sample:
    commands = [Put(f"key{number:05d}", value_of(payload)) for number in range(1000)]
    async with memory_cluster(size, instruments=instruments) as rafts:
        leader = rafts[0]
        watching = [asyncio.create_task(_watch(raft)) for raft in rafts] if watch else []

        async def write(number: int) -> None:
            await leader.client_write(commands[number % 1000])

        await closed_loop(write, outstanding, min(0.2, seconds))
        result = await closed_loop(write, outstanding, seconds)
        for task in watching:
            task.cancel()
        if watching:
            await asyncio.wait(watching)
        return result


async def bare_run(outstanding: int, seconds: float, payload: int = 100) -> Sample:
    payloads = [b"key%05d" % number + value_of(payload) for number in range(1000)]
    cluster = BareCluster()

    async def write(number: int) -> None:
        await cluster.client_write(payloads[number % 1000])

    return await closed_loop(write, outstanding, seconds)


async def native_run(python: str, outstanding: int, seconds: float, payload: int = 100) -> Sample:
    """:func:`raftkit_run` in a process of another Python, whose raftkit-core is native code."""
    from ..bench_native import command

    words = command(python, "raftkit", "asyncio", outstanding, seconds, payload)
    process = await asyncio.create_subprocess_exec(*words, stdout=asyncio.subprocess.PIPE)
    said, _ = await process.communicate()
    assert process.returncode == 0, words
    return msgspec.json.decode(said, type=Sample)


def contenders(outstanding: int, seconds: float, payload: int = 100) -> list[Contender]:
    must, goal = TARGETS.get(outstanding, (None, None)) if payload == 100 else (None, None)
    setting = Setting(
        durability="none (memory)",
        processes="one, three nodes",
        transport="memory:",
        payload=f"{payload} B",
        client="in the leader's loop",
        outstanding=outstanding,
    )
    natives = []
    if (python := os.environ.get(NATIVE)) is not None:
        natives.append(
            Contender(
                name="raftkit, native wheel",
                setting=setting,
                run=lambda: native_run(python, outstanding, seconds, payload),
                against="bare replicator",
            )
        )
    return [
        Contender(
            name="raftkit",
            setting=setting,
            run=lambda: raftkit_run(outstanding, seconds, payload),
            against="bare replicator",
            must=must,
            goal=goal,
        ),
        Contender(name="bare replicator", setting=setting, run=lambda: bare_run(outstanding, seconds, payload)),
        *natives,
    ]
