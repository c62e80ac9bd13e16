"""Clients that record what they do, against a cluster of whole nodes in virtual time, with faults and without."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from raftkit_core.config import ReadPolicy
from raftkit_core.errors import AccessDenied, PreconditionFailed
from raftkit_core.raft import Raft
from raftkit_core.testing.cluster import MemoryCluster, memory_cluster
from raftkit_core.testing.linearizability import History, judge
from raftkit_core.testing.linearizability.workload import Workload, record
from raftkit_core.types.kv import CompareAndSet, Delete, Get, KeyValue, Put, WriteResult

pytestmark = pytest.mark.virtual_time


class KvOverRaft:
    """A client of one node of a cluster in this process."""

    def __init__(self, cluster: MemoryCluster, node_id: str, read_policy: ReadPolicy = ReadPolicy.READ_INDEX) -> None:
        self._cluster = cluster
        self._node_id = node_id
        self._read_policy = read_policy

    async def __aenter__(self) -> KvOverRaft:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        pass

    @property
    def _raft(self) -> Raft:
        return self._cluster.raft(self._node_id)

    async def kv_get(self, key: str, *, consistency: str = "linearizable") -> KeyValue | None:
        found: KeyValue | None = await self._raft.read(Get(key), self._read_policy, timeout=2)
        return found

    async def _write(self, command: Any) -> WriteResult:
        done = await self._raft.write(command, timeout=2)
        if isinstance(done.data, PreconditionFailed):
            raise done.data
        result: WriteResult = done.data
        return result

    async def kv_put(self, key: str, value: bytes, *, if_revision: int | None = None) -> WriteResult:
        return await self._write(Put(key, value, if_revision))

    async def kv_delete(self, key: str, *, if_revision: int | None = None) -> WriteResult:
        return await self._write(Delete(key, if_revision))

    async def kv_cas(self, key: str, expected: bytes | None, value: bytes) -> WriteResult:
        return await self._write(CompareAndSet(key, expected, value))


def virtual_clock() -> float:
    return asyncio.get_running_loop().time()


async def recorded(cluster: MemoryCluster, workload: Workload, **options: Any) -> History:
    def open_client(name: str) -> KvOverRaft:
        return KvOverRaft(cluster, f"n{1 + int(name[1:]) % 3}", **options)

    return await record(workload, open_client, clock=virtual_clock)


async def test_a_healthy_cluster_is_linearizable_and_every_kind_is_answered() -> None:
    async with memory_cluster() as cluster:
        history = await recorded(cluster, Workload(prefix="p/", operations=250))
    report = judge(history, search_all=True)
    assert report.verdict == "linearizable", str(report)
    answered = {(operation.kind, operation.outcome) for operation in history.operations}
    assert {("put", "ok"), ("get", "ok"), ("cas", "ok"), ("cas", "refused"), ("delete", "ok")} <= answered
    assert history.header.config["workload"]["prefix"] == "p/"


async def test_the_workload_ends_after_its_operations() -> None:
    async with memory_cluster() as cluster:
        history = await recorded(cluster, Workload(prefix="p/", operations=50, keys=2))
    assert len(history) == 52  # each of both keys was read at the end
    assert {operation.client for operation in history.operations[-2:]} == {"final"}


async def test_a_cluster_under_cuts_and_pauses_stays_linearizable_with_unknown_outcomes() -> None:
    async with memory_cluster(seed=5) as cluster:
        recording = asyncio.create_task(recorded(cluster, Workload(prefix="p/", seconds=9, think_s_max=0.2)))
        for turn in range(2):
            await asyncio.sleep(1)
            victim = (await cluster.leader()).id if turn % 2 == 0 else f"n{1 + turn % 3}"
            cluster.hub.isolate(victim)
            await asyncio.sleep(2)
            cluster.hub.heal()
        history = await recording
    report = judge(history)
    assert report.verdict == "linearizable", str(report)
    assert report.outcomes["unknown"] >= 1
    finals = [operation for operation in history.operations if operation.client == "final"]
    assert {operation.key for operation in finals if operation.outcome == "ok"} == {o.key for o in history.operations}


async def test_stale_reads_passed_off_as_linearizable_are_found() -> None:
    async with memory_cluster() as cluster:
        follower = next(node_id for node_id in cluster.rafts if node_id != cluster.rafts["n1"].current_leader())
        cluster.hub.isolate(follower)
        workload = Workload(prefix="p/", operations=150, think_s_max=0.05)
        history = await recorded(cluster, workload, read_policy=ReadPolicy.STALE)
    assert judge(history).verdict == "violation"


async def test_a_question_nobody_may_ask_ends_the_recording() -> None:
    class Denied(KvOverRaft):
        async def kv_get(self, key: str, *, consistency: str = "linearizable") -> KeyValue | None:
            raise AccessDenied("no")

    async with memory_cluster(1) as cluster:
        with pytest.raises(AccessDenied):
            await record(Workload(prefix="p/"), lambda _name: Denied(cluster, "n1"), clock=virtual_clock)
