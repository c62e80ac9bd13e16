"""A plugin that blocks the loop is named, with how long (rows G11, P8)."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest
from misuse import Stalls, block

from raftkit_core.network.memory import MemoryNetwork, MemoryNetworkFactory
from raftkit_core.runtime import stalls
from raftkit_core.state_machine.interface import ApplyBatch
from raftkit_core.state_machine.kv import KvStateMachine
from raftkit_core.storage.interface import LogBatch
from raftkit_core.storage.memory import MemoryLogStorage
from raftkit_core.testing.cluster import memory_cluster
from raftkit_core.testing.virtual_time import VirtualClock
from raftkit_core.types.kv import Get, Put
from raftkit_core.types.membership import Node

pytestmark = pytest.mark.virtual_time


@pytest.mark.parametrize("blocks", ["write", "apply", "apply later", "query", "snapshot", "heartbeat", "reader"])
async def test_g11_what_blocks_the_loop_is_named_with_how_long(blocks: str, caplog: pytest.LogCaptureFixture) -> None:
    armed = False

    def maybe_block(where: str) -> None:
        nonlocal armed
        if armed and blocks == where:
            armed = False
            block(0.4)

    class Machine(KvStateMachine):
        def apply(self, batch: ApplyBatch) -> Any:
            maybe_block("apply")
            return self._later(batch) if blocks == "apply later" else super().apply(batch)

        async def _later(self, batch: ApplyBatch) -> Any:
            await asyncio.sleep(0.001)
            maybe_block("apply later")
            return super().apply(batch)

        def query(self, query: Any) -> Any:
            maybe_block("query")
            return super().query(query)

        async def snapshot(self) -> AsyncIterator[bytes]:
            view = super().snapshot()
            maybe_block("snapshot")
            async for chunk in view:
                yield chunk

    class Storage(MemoryLogStorage):
        def write(self, batch: LogBatch) -> None:
            maybe_block("write")
            super().write(batch)

    class Network(MemoryNetwork):
        def heartbeat(self, request: Any, timeout: float) -> Any:
            maybe_block("heartbeat")
            return super().heartbeat(request, timeout)

    class Factory(MemoryNetworkFactory):
        def connect(self, target: str, node: Node, service: Any) -> MemoryNetwork:
            network = Network(self, target, self._address_of(node.peer), service)
            self._networks.append(network)
            return network

    def reader(machine: Any) -> int:
        maybe_block("reader")
        return 1

    expected = {
        "write": "Storage.write",
        "apply": "Machine.apply",
        "apply later": "Machine.apply",
        "query": "Machine.query",
        "snapshot": "Machine.snapshot",
        "heartbeat": "Network.heartbeat",
        "reader": "reader",
    }[blocks]
    async with memory_cluster(0, machine=Machine, storage=Storage, network=Factory) as cluster:
        told = Stalls()
        raft = await cluster.start("n1", instruments=[told])
        await cluster.start("n2")
        await raft.initialize(cluster.members("n1"))
        await raft.wait(5).current_leader("n1")
        await raft.add_learner("n2", cluster.address("n2"))
        await asyncio.sleep(0.05)
        armed = True
        with caplog.at_level(logging.WARNING, "raftkit.runtime"):
            await raft.client_write(Put("a", b"1"))
            await raft.read(Get("a"))
            await raft.read(reader)
            raft.trigger().snapshot()
            await asyncio.sleep(1)
        assert told.told == [(expected, 0.4)]
        assert [text for text in caplog.messages if "n1: " in text and "blocked" in text] == [
            f"node n1: {expected} blocked the event loop for 400 ms: it must not block"
        ], "said once, and not again without a name"
        await raft.client_write(Put("after", b"1"))


async def test_g11_whoever_blocks_again_and_again_is_logged_now_and_then_and_told_each_time(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Blocking(KvStateMachine):
        def apply(self, batch: ApplyBatch) -> Any:
            if batch.entries:
                block(0.3)
            return super().apply(batch)

    async with memory_cluster(0, machine=Blocking) as cluster:
        told = Stalls()
        raft = await cluster.start("n1", instruments=[told])
        await raft.initialize(["n1"])
        await raft.wait(5).current_leader("n1")
        with caplog.at_level(logging.WARNING, "raftkit.runtime"):
            for number in range(30):
                await raft.client_write(Put(f"k{number}", b"1"))
                await asyncio.sleep(0.2)
        assert told.told == [("Blocking.apply", 0.3)] * 30
        blamed = [text for text in caplog.messages if "Blocking.apply" in text]
        assert len(blamed) == 2
        assert "more since the last warning" in blamed[1]


async def test_p8_a_loop_blocked_by_nobody_we_know_is_reported_all_the_same(caplog: pytest.LogCaptureFixture) -> None:
    async with memory_cluster(1):
        with caplog.at_level(logging.WARNING, "raftkit.runtime"):
            block(1.0)
            await asyncio.sleep(0.5)
        assert [text for text in caplog.messages if "was blocked for" in text] != []
        assert len(caplog.messages) == 1


async def test_the_detector_reads_the_clock_twice_for_a_batch_and_never_for_an_entry() -> None:
    class Counting(VirtualClock):
        readings = 0

        def monotonic(self) -> float:
            type(self).readings += 1
            return super().monotonic()

    detector = stalls.StallDetector("n1", Counting())
    machine = KvStateMachine()

    class Batch:
        entries: tuple[Any, ...] = ()

    detector.call(machine, "apply", Batch())
    assert Counting.readings == 2
