"""Which cases there are, and how each is measured. A case holds its clusters open while its contenders take turns."""

from __future__ import annotations

import asyncio
import itertools
import shutil
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AsyncExitStack
from typing import Any

import msgspec

from .baselines.etcd import EtcdCluster, etcd_cluster
from .baselines.pysyncobj import BATCHED, LOW_LATENCY, syncobj_cluster
from .baselines.pysyncobj_one_thread import QUICK, TUNED, OneThread
from .cases import in_process, processes
from .cluster import RaftkitCluster, raftkit_cluster
from .measure import Contender, Row, Sample, Setting, measure

Progress = Callable[[str], None]


class Pace(msgspec.Struct, frozen=True):
    """How long each run takes, and how many count."""

    seconds: float
    runs: int
    outstanding: tuple[int, ...]
    payloads: tuple[int, ...]
    kills: int


FULL = Pace(2.0, 5, (1, 64, 256, 1024), (100, 4096), 50)
QUICK_PACE = Pace(0.7, 3, (1, 64, 256), (100,), 5)


def _has(module: str) -> bool:
    from importlib.util import find_spec

    return find_spec(module) is not None


def _contender(name: str, made: tuple[Setting, Callable[[], Any]], **targets: Any) -> Contender:
    setting, run = made
    return Contender(name=name, setting=setting, run=run, **targets)


async def memory_one_process(pace: Pace, progress: Progress) -> AsyncIterator[list[Row]]:
    for payload, outstanding in itertools.product(pace.payloads, pace.outstanding):
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


async def memory_processes(pace: Pace, progress: Progress) -> AsyncIterator[list[Row]]:
    """A client in the leader, and a remote one, against PySyncObj at its best for each."""
    async with AsyncExitStack() as stack:
        ours = await stack.enter_async_context(raftkit_cluster("memory"))
        batched = quick = None
        if _has("pysyncobj"):
            batched = await stack.enter_async_context(syncobj_cluster(BATCHED))
            quick = await stack.enter_async_context(syncobj_cluster(LOW_LATENCY))
        for payload, outstanding in itertools.product(pace.payloads, pace.outstanding):
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


async def durable_processes(pace: Pace, progress: Progress) -> AsyncIterator[list[Row]]:
    """SQLite that syncs every write, against etcd."""
    async with AsyncExitStack() as stack:
        ours = await stack.enter_async_context(raftkit_cluster("sqlite"))
        peer = await _etcd(stack, progress)
        for payload, outstanding in itertools.product(pace.payloads, pace.outstanding):
            distant = processes.remote(ours, "sqlite", outstanding, pace.seconds, payload)
            contenders = []
            if peer is not None:
                other = processes.etcd(peer, outstanding, pace.seconds, payload)
                targets = {1: (0.8, 1.3), 64: (1.5, 3.0), 256: (2.0, 4.0)} if payload == 100 else {}
                must, goal = targets.get(outstanding, (None, None))
                contenders = [_contender("raftkit, remote client", distant, against=other.name, must=must, goal=goal)]
                if outstanding == 64 and payload == 100:
                    posts = processes.per_request(ours, "sqlite", outstanding, pace.seconds, payload)
                    contenders.append(
                        _contender("raftkit, a POST per write", posts, against=other.name, goal=0.7, must=0.0)
                    )
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


async def reading(pace: Pace, progress: Progress) -> AsyncIterator[list[Row]]:
    async with AsyncExitStack() as stack:
        ours = await stack.enter_async_context(raftkit_cluster("memory"))
        peer = await _etcd(stack, progress)
        contenders = []
        other = None
        if peer is not None:
            other = processes.etcd(peer, 64, pace.seconds, 100, is_read=True)
            contenders.append(other)
        for policy, where in (
            ("linearizable", "leader"),
            ("linearizable", "follower"),
            ("lease", "leader"),
            ("stale", "follower"),
        ):
            made = processes.reads(ours, policy, where, 64, pace.seconds)
            against = None if other is None or policy == "stale" else other.name
            goal = 3.0 if policy == "linearizable" and other is not None else None
            targets = {"against": against, "goal": goal, "must": None if goal is None else 0.0}
            contenders.append(_contender(f"raftkit, {policy} at the {where}", made, **targets))
        yield await measure("reads, 64", contenders, pace.runs, progress)


async def leader_killed(pace: Pace, progress: Progress) -> AsyncIterator[list[Row]]:
    """From SIGKILL of the leader to the next commit, as a share of ``election_timeout_max`` (1 s)."""
    waits: list[float] = []
    async with raftkit_cluster("memory") as cluster:
        setting = processes.reads(cluster, "stale", "leader", 1, 1)[0]
        for number in range(pace.kills):
            leader = await cluster.leader()
            victim = cluster.workers.pop(leader)
            started = time.perf_counter()
            victim.kill()
            while True:
                try:
                    await asyncio.gather(*(_one_write(worker) for worker in cluster.workers.values()))
                except _Committed:
                    break
                await asyncio.sleep(0.005)
            waits.append(time.perf_counter() - started)
            await victim.stop()
            progress(f"kill {number + 1} of {pace.kills}: {waits[-1] * 1000:.0f} ms")
            break_after = number + 1 == pace.kills
            if not break_after:
                # Memory is gone with the process: the node comes back as a new cluster of three.
                await _restart(cluster)
    from .measure import percentile

    yield [
        Row(
            case="leader killed",
            contender=f"raftkit, {name}",
            unit="of election_timeout_max",
            setting=msgspec.structs.replace(setting, client="a write at each survivor in turns"),
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


class _Committed(Exception):
    pass


async def _one_write(worker: Any) -> None:
    answer = await worker.ask({"do": "try write"}, timeout=20)
    if answer["committed"]:
        raise _Committed


async def _restart(cluster: RaftkitCluster) -> None:
    """The whole cluster anew, on the same addresses."""
    await cluster.stop()
    cluster.workers.clear()
    for node_id in cluster.addresses:
        await cluster.start(node_id)
    await cluster.workers["n1"].ask({"do": "initialize", "members": cluster.addresses})
    await cluster.leader()


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


async def idle(pace: Pace, progress: Progress) -> AsyncIterator[list[Row]]:
    """A durable cluster nobody uses: share of a core per node, and bytes sent to the disk."""
    seconds = 60.0 if pace is FULL else 10.0
    async with raftkit_cluster("sqlite") as cluster:
        await asyncio.sleep(3)
        before = {node: await worker.ask({"do": "status"}) for node, worker in cluster.workers.items()}
        await asyncio.sleep(seconds)
        after = {node: await worker.ask({"do": "status"}) for node, worker in cluster.workers.items()}
    shares = [(after[node]["cpu"] - before[node]["cpu"]) / seconds * 100 for node in before]
    written = [(after[node]["written_bytes"] - before[node]["written_bytes"]) / seconds * 60 for node in before]
    setting = processes.in_leader(cluster, "sqlite", 0, 0, 100)[0]
    setting = msgspec.structs.replace(setting, client="none", payload="-")
    yield [
        _row("idle", "raftkit, each node", "% of a core", setting, shares, must=100.0, goal=2.0),
        _row("idle", "raftkit, each node, disk", "bytes per minute", setting, written),
    ]


def _row(
    case: str,
    name: str,
    unit: str,
    setting: Setting,
    values: list[float],
    must: float | None = None,
    goal: float | None = None,
) -> Row:
    import statistics

    return Row(
        case=case,
        contender=name,
        unit=unit,
        setting=setting,
        median=statistics.median(values),
        lowest=min(values),
        highest=max(values),
        runs=len(values),
        must=must,
        goal=goal,
        at_most=True,
    )


async def observed(pace: Pace, progress: Progress) -> AsyncIterator[list[Row]]:
    """An instrument that overrides everything but ``trace``, and a reader of the metrics, against none."""
    bare, watched = in_process.contenders(256, pace.seconds)[0], None
    from raftkit_core.instrument import Instrument

    class Everything(Instrument):
        def on_server_state(self, state: Any) -> None: ...
        def on_leader_change(self, leader: Any, term: int) -> None: ...
        def on_membership(self, membership: Any) -> None: ...
        def on_snapshot(self, meta: Any) -> None: ...

    watched = msgspec.structs.replace(
        bare,
        name="raftkit, observed",
        run=lambda: in_process.raftkit_run(256, pace.seconds, instruments=(Everything(),), watch=True),
        against="raftkit",
        must=0.9,
        goal=0.95,
    )
    bare = msgspec.structs.replace(bare, against=None, must=None, goal=None)
    yield await measure("instruments and metrics, 256", [bare, watched], pace.runs, progress)


async def footprint(pace: Pace, progress: Progress) -> AsyncIterator[list[Row]]:
    """Memory for the log and the keys of one node, per entry, as the log grows."""
    million = 1_000_000 if pace is FULL else 100_000
    rows = await in_process.growth(million, progress)
    yield rows


CASES: dict[str, Callable[[Pace, Progress], AsyncIterator[list[Row]]]] = {
    "in-process": memory_one_process,
    "in-process-peer": memory_one_process_peer,
    "memory": memory_processes,
    "durable": durable_processes,
    "reads": reading,
    "leader-killed": leader_killed,
    "members": members,
    "idle": idle,
    "observed": observed,
    "footprint": footprint,
}


async def run(names: Iterable[str], pace: Pace, progress: Progress) -> AsyncIterator[Row]:
    """Every row as soon as it is measured; a case that fails is told, and the others go on."""
    for name in names:
        try:
            async for rows in CASES[name](pace, progress):
                for row in rows:
                    yield row
        except Exception as error:
            progress(f"{name} failed: {type(error).__name__}: {error}")
