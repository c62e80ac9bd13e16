"""Who waits for a machine that does not finish: a bounded number, told when it stops, and nothing else stands still."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from raftkit_core.errors import OutcomeUnknown, Overloaded, Stopped
from raftkit_core.raft import Raft
from raftkit_core.runtime.state_machine_worker import JOBS_KEPT, StateMachineWorker
from raftkit_core.state_machine.interface import ApplyBatch
from raftkit_core.state_machine.kv import KvStateMachine
from raftkit_core.testing.cluster import memory_cluster, outcome
from raftkit_core.types.kv import Get, Put

pytestmark = pytest.mark.virtual_time


class HeldMachine(KvStateMachine):
    """Applies only when ``gate`` is open."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = asyncio.Event()
        self.gate.set()

    async def apply(self, batch: ApplyBatch) -> Sequence[Any]:  # type: ignore[override]
        await self.gate.wait()
        return super().apply(batch)


@asynccontextmanager
async def held() -> AsyncIterator[tuple[Raft, StateMachineWorker, HeldMachine, asyncio.Future[Any]]]:
    """A node whose machine has a write before it that it does not finish; the write's future."""
    machine = HeldMachine()
    async with memory_cluster(1, machine=lambda: machine) as cluster:
        raft = cluster.raft("n1")
        await raft.client_write(Put("k", b"1"))
        machine.gate.clear()
        write = asyncio.ensure_future(raft.client_write(Put("k", b"2"), timeout=60))
        await asyncio.sleep(0.1)
        assert not write.done()
        yield raft, raft._core.worker, machine, write
        machine.gate.set()


async def test_a_look_sees_the_machine_between_two_batches() -> None:
    async with held() as (_, worker, machine, write):
        looking = asyncio.ensure_future(worker.between_batches(lambda: (worker.applied_index, machine.query(Get("k")))))
        failing = asyncio.ensure_future(worker.between_batches(lambda: 1 // 0))
        await asyncio.sleep(0.1)
        assert not looking.done()
        machine.gate.set()
        index = (await write).log_id.index
        at, found = await looking
        assert (at, found.value) == (index, b"2")
        with pytest.raises(ZeroDivisionError):
            await failing
        assert await worker.between_batches(lambda: worker.applied_index) == index, "and the worker goes on"


async def test_more_looks_than_are_kept_are_refused() -> None:
    async with held() as (_, worker, machine, _):
        looks = [asyncio.ensure_future(worker.between_batches(lambda: None)) for _ in range(JOBS_KEPT)]
        await asyncio.sleep(0)
        with pytest.raises(Overloaded, match=f"{JOBS_KEPT} callers wait"):
            await worker.between_batches(lambda: None)
        looks.pop().cancel()
        machine.gate.set()
        await asyncio.gather(*looks)


async def test_readers_that_gave_up_cost_no_memory() -> None:
    async with held() as (raft, worker, machine, write):
        ahead = worker.applied_index + 1
        patient = asyncio.ensure_future(worker.wait_applied(ahead))
        for _ in range(40):
            waits = [asyncio.ensure_future(worker.wait_applied(ahead)) for _ in range(25)]
            await asyncio.sleep(0)
            for wait in waits:
                wait.cancel()
            await asyncio.wait(waits)
        assert len(worker._waits) <= 64
        assert not patient.done()
        machine.gate.set()
        await patient
        assert (await write).log_id.index == ahead
        assert (await raft.read(Get("k"))).value == b"2"


async def test_whoever_waits_for_a_machine_that_stops_is_told() -> None:
    async with held() as (raft, worker, _, write):
        waiting = asyncio.ensure_future(outcome(worker.wait_applied(worker.applied_index + 1)))
        await raft.shutdown()
        assert isinstance(await waiting, Stopped)
        assert isinstance(await outcome(worker.wait_applied(worker.applied_index + 1)), Stopped)
        assert isinstance(await outcome(worker.between_batches(lambda: None)), Stopped)
        assert isinstance(await outcome(write), OutcomeUnknown)
