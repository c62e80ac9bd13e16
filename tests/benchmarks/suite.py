"""Which cases there are, and how each is measured. A case holds its clusters open while its contenders take turns."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AsyncExitStack
from typing import Any

import msgspec

from .baselines.etcd import EtcdCluster, etcd_cluster
from .baselines.pysyncobj import BATCHED, LOW_LATENCY, syncobj_cluster
from .baselines.pysyncobj_one_thread import QUICK, TUNED, OneThread
from .cases import growth, idle, in_process, processes, reading, recovery, snapshots
from .cluster import raftkit_cluster
from .measure import Contender, Row, Sample, Setting, measure

Progress = Callable[[str], None]
Loads = tuple[tuple[int, int], ...]
"""Writes outstanding, and bytes of each."""

USUAL: Loads = ((1, 100), (64, 100), (256, 100))
LARGE: Loads = ((1024, 100), (1, 4096), (64, 4096), (256, 4096))


class Pace(msgspec.Struct, frozen=True, kw_only=True):
    """How long each run takes, how many count, and how much of what is slow is done."""

    name: str
    seconds: float
    runs: int
    large: Loads
    kills: int
    snapshot_mib: int
    base_seconds: float
    grown_entries: int
    grown_seconds: float
    caught_up: tuple[int, int]
    """Entries by the log, MiB by a snapshot."""
    idle_seconds: float
    observed: tuple[int, float]
    """Runs, and seconds of each."""


FULL = Pace(
    name="full",
    seconds=1.5,
    runs=5,
    large=LARGE,
    kills=50,
    snapshot_mib=1024,
    base_seconds=8.0,
    grown_entries=10_000_000,
    grown_seconds=240.0,
    caught_up=(500_000, 512),
    idle_seconds=60.0,
    observed=(15, 1.0),
)
QUICK_PACE = Pace(
    name="quick",
    seconds=0.7,
    runs=3,
    large=((1024, 100), (64, 4096)),
    kills=4,
    snapshot_mib=48,
    base_seconds=2.0,
    grown_entries=100_000,
    grown_seconds=20.0,
    caught_up=(20_000, 32),
    idle_seconds=8.0,
    observed=(9, 0.5),
)


def _has(module: str) -> bool:
    from importlib.util import find_spec

    return find_spec(module) is not None


def _contender(name: str, made: tuple[Setting, Callable[[], Any]], **targets: Any) -> Contender:
    setting, run = made
    return Contender(name=name, setting=setting, run=run, **targets)


async def memory_one_process(pace: Pace, progress: Progress, loads: Loads = USUAL) -> AsyncIterator[list[Row]]:
    for outstanding, payload in loads:
        contenders = in_process.contenders(outstanding, pace.seconds, payload)
        yield await measure(f"in process, {outstanding}, {payload} B", contenders, pace.runs, progress)


async def memory_one_process_peer(pace: Pace, progress: Progress) -> AsyncIterator[list[Row]]:
    if not _has("pysyncobj"):
        progress("PySyncObj is not installed: uv run --group bench …")
        return
    for outstanding, options, must, goal in ((1, QUICK, None, None), (256, TUNED, 2.5, 4.0)):
        peer = await asyncio.to_thread(OneThread, options)

        async def run_peer(peer: OneThread = peer, outstanding: int = outstanding) -> Sample:
            return await asyncio.to_thread(peer.write, outstanding, pace.seconds, 100)

        ours = in_process.contenders(outstanding, pace.seconds)[0]
        name = "PySyncObj, one thread, " + ("5 ms batches" if options is TUNED else "no batches")
        setting = msgspec.structs.replace(ours.setting, transport="TCP, loopback", client="in the thread, callbacks")
        contenders = [
            msgspec.structs.replace(ours, against=name, must=must, goal=goal),
            Contender(name=name, setting=setting, run=run_peer),
        ]
        try:
            yield await measure(f"in process against PySyncObj, {outstanding}", contenders, pace.runs, progress)
        finally:
            peer.close()


async def memory_processes(pace: Pace, progress: Progress, loads: Loads = USUAL) -> AsyncIterator[list[Row]]:
    """A client in the leader, and a remote one, against PySyncObj at its best for each."""
    async with AsyncExitStack() as stack:
        ours = await stack.enter_async_context(raftkit_cluster("memory"))
        batched = quick = None
        if _has("pysyncobj"):
            batched = await stack.enter_async_context(syncobj_cluster(BATCHED))
            quick = await stack.enter_async_context(syncobj_cluster(LOW_LATENCY))
        for outstanding, payload in loads:
            local = processes.in_leader(ours, "memory", outstanding, pace.seconds, payload)
            contenders = [_contender("raftkit", local)]
            peer, mode = (quick, "no batches") if outstanding == 1 else (batched, "5 ms batches")
            if peer is not None:
                other = processes.syncobj(peer, mode, outstanding, pace.seconds, payload)
                target = {1: (1.1, 1.5), 256: (1.5, 2.5)}.get(outstanding) if payload == 100 else None
                must, goal = target or (None, None)
                contenders = [_contender("raftkit", local, against=other.name, must=must, goal=goal), other]
            distant = processes.remote(ours, "memory", outstanding, pace.seconds, payload)
            contenders.append(_contender("raftkit, remote client", distant))
            yield await measure(f"processes, memory, {outstanding}, {payload} B", contenders, pace.runs, progress)


async def durable_processes(pace: Pace, progress: Progress, loads: Loads = USUAL) -> AsyncIterator[list[Row]]:
    """SQLite that syncs every write, against etcd."""
    async with AsyncExitStack() as stack:
        ours = await stack.enter_async_context(raftkit_cluster("sqlite"))
        peer = await _etcd(stack, progress)
        for outstanding, payload in loads:
            distant = processes.remote(ours, "sqlite", outstanding, pace.seconds, payload)
            contenders = []
            if peer is not None:
                other = processes.etcd(peer, outstanding, pace.seconds, payload)
                targets = {1: (0.8, 1.3), 64: (1.5, 3.0), 256: (2.0, 4.0)} if payload == 100 else {}
                must, goal = targets.get(outstanding, (None, None))
                contenders = [_contender("raftkit, remote client", distant, against=other.name, must=must, goal=goal)]
                if outstanding == 64 and payload == 100:
                    posts = processes.per_request(ours, "sqlite", outstanding, pace.seconds, payload)
                    contenders.append(_contender("raftkit, a POST per write", posts, against=other.name, goal=0.7))
                contenders.append(other)
            else:
                contenders = [_contender("raftkit, remote client", distant)]
            local = processes.in_leader(ours, "sqlite", outstanding, pace.seconds, payload)
            contenders.append(_contender("raftkit, client in the leader", local))
            yield await measure(f"processes, durable, {outstanding}, {payload} B", contenders, pace.runs, progress)


async def _etcd(stack: AsyncExitStack, progress: Progress) -> EtcdCluster | None:
    if shutil.which("etcd") is None or not _has("aetcd"):
        progress("etcd or aetcd is not installed: apt-get install etcd-server, uv run --group bench …")
        return None
    return await stack.enter_async_context(etcd_cluster())


def _large(
    case: Callable[[Pace, Progress, Loads], AsyncIterator[list[Row]]],
) -> Callable[[Pace, Progress], AsyncIterator[list[Row]]]:
    """The same with more outstanding, and with larger writes."""
    return lambda pace, progress: case(pace, progress, pace.large)


async def reads(pace: Pace, progress: Progress) -> AsyncIterator[list[Row]]:
    async with AsyncExitStack() as stack:
        ours = await stack.enter_async_context(raftkit_cluster("memory"))
        peer = await _etcd(stack, progress)
        leader = ours.workers[await ours.leader()]
        await leader.ask({"do": "write", "outstanding": 64, "seconds": 0.1, "payload": 100})
        contenders = reading.contenders(ours, peer, 64, pace.seconds)
        yield await measure("reads, 64", contenders, pace.runs, progress)


async def members(pace: Pace, progress: Progress) -> AsyncIterator[list[Row]]:
    """What a write costs as the members grow, all in one process."""
    contenders = []
    for size in (1, 3, 5, 7):
        setting = msgspec.structs.replace(in_process.contenders(256, 1)[0].setting, processes=f"one, {size} nodes")

        def run(size: int = size) -> Awaitable[Sample]:
            return in_process.raftkit_run(256, pace.seconds, size=size)

        against = None if size == 3 else "raftkit, 3 members"
        contenders.append(Contender(name=f"raftkit, {size} members", setting=setting, run=run, against=against))
    yield await measure("members, 256", contenders, pace.runs, progress)


async def observed(pace: Pace, progress: Progress) -> AsyncIterator[list[Row]]:
    """An instrument that overrides everything but ``trace``, and a reader of the metrics, against none.

    Many short turns: what is looked for is smaller than what one turn differs from the next."""
    from raftkit_core.instrument import Instrument

    class Everything(Instrument):
        def on_server_state(self, state: Any) -> None: ...
        def on_leader_change(self, leader: Any, term: int) -> None: ...
        def on_membership(self, membership: Any) -> None: ...
        def on_snapshot(self, meta: Any) -> None: ...

    runs, seconds = pace.observed
    bare = in_process.contenders(256, seconds)[0]
    watched = msgspec.structs.replace(
        bare,
        name="raftkit, observed",
        run=lambda: in_process.raftkit_run(256, seconds, instruments=(Everything(),), watch=True),
        against="raftkit",
        must=0.9,
        goal=0.95,
    )
    bare = msgspec.structs.replace(bare, against=None, must=None, goal=None)
    yield await measure("instruments and metrics, 256", [bare, watched], runs, progress)


async def loops(pace: Pace, progress: Progress) -> AsyncIterator[list[Row]]:
    """The optional loop against the usual one."""
    if not _has("uvloop"):
        progress("uvloop is not installed: uv run --group bench …")
        return
    for storage, outstandings in (("memory", (1, 256)), ("sqlite", (1, 256))):
        async with raftkit_cluster(storage) as usual, raftkit_cluster(storage, uvloop=True) as quick:
            for outstanding in outstandings:
                contenders = []
                for name, cluster in (("asyncio", usual), ("uvloop", quick)):
                    made = processes.in_leader(cluster, storage, outstanding, pace.seconds, 100)
                    against = None if name == "asyncio" else "raftkit, asyncio"
                    contenders.append(_contender(f"raftkit, {name}", made, against=against))
                case = f"uvloop, processes, {processes.SHORT[storage]}, {outstanding}"
                yield await measure(case, contenders, pace.runs, progress)


CASES: dict[str, Callable[[Pace, Progress], AsyncIterator[list[Row]]]] = {
    "in-process": memory_one_process,
    "in-process-peer": memory_one_process_peer,
    "memory": memory_processes,
    "durable": durable_processes,
    "reads": reads,
    "leader-killed": lambda pace, progress: recovery.leader_killed(pace.kills, progress),
    "snapshot-sqlite": lambda pace, progress: _beside_snapshot("sqlite", pace, progress),
    "snapshot-memory": lambda pace, progress: _beside_snapshot("memory", pace, progress),
    "observed": observed,
    "idle": lambda pace, progress: idle.idle(pace.idle_seconds, progress),
    "members": members,
    "in-process-large": _large(memory_one_process),
    "memory-large": _large(memory_processes),
    "durable-large": _large(durable_processes),
    "catch-up": lambda pace, progress: recovery.catching_up(*pace.caught_up, progress),
    "growth-sqlite": lambda pace, progress: _growing("sqlite", pace, progress),
    "growth-memory": lambda pace, progress: _growing("memory", pace, progress),
    "keys": lambda pace, progress: growth.keys(pace.grown_entries // 10, progress),
    "uvloop": loops,
}
TARGETS = tuple(CASES)[: tuple(CASES).index("members")]
"""The cases that have a target."""


def _beside_snapshot(storage: str, pace: Pace, progress: Progress) -> AsyncIterator[list[Row]]:
    return snapshots.commits_beside(storage, pace.snapshot_mib, 500, pace.base_seconds, progress)


def _growing(storage: str, pace: Pace, progress: Progress) -> AsyncIterator[list[Row]]:
    return growth.growing(storage, pace.grown_entries, pace.grown_seconds, progress)


async def run(names: Iterable[str], pace: Pace, progress: Progress) -> AsyncIterator[Row]:
    """Every row as soon as it is measured."""
    for name in names:
        async for rows in CASES[name](pace, progress):
            for row in rows:
                yield row
