"""What a node does when its storage, its machine or a peer does not finish: others go on, and every wait has an end."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from raftkit_core.config import Config
from raftkit_core.errors import OutcomeUnknown
from raftkit_core.instrument import Instrument
from raftkit_core.network.disturbances import DROP
from raftkit_core.runtime import command_runner, service
from raftkit_core.state_machine.interface import ApplyBatch
from raftkit_core.state_machine.kv import KvStateMachine
from raftkit_core.storage.interface import LogBatch
from raftkit_core.storage.memory import MemoryDisk, MemoryLogStorage
from raftkit_core.testing.cluster import memory_cluster, outcome
from raftkit_core.types.ids import NodeId
from raftkit_core.types.kv import Get, Put
from raftkit_core.types.metrics import ServerState

pytestmark = pytest.mark.virtual_time


class Hanging(MemoryLogStorage):
    """A disk that never finishes a write once ``hangs`` says so."""

    hangs = False

    def write(self, batch: LogBatch) -> Any:
        return self._hang() if type(self).hangs else super().write(batch)

    async def _hang(self) -> None:
        await asyncio.Event().wait()


async def test_a_hanging_storage_costs_leadership_and_shutdown_stays_bounded() -> None:
    stalls: list[float] = []

    class Watching(Instrument):
        def on_storage_stall(self, seconds: float) -> None:
            stalls.append(seconds)

    class Hangs(Hanging):
        pass

    def storage(disk: MemoryDisk) -> MemoryLogStorage:
        return Hangs(disk) if disk.name == "n1" else MemoryLogStorage(disk)

    async with memory_cluster(0, storage=storage) as cluster:
        await cluster.start("n1", instruments=[Watching()])
        for node_id in ("n2", "n3"):
            await cluster.start(node_id)
        await cluster.raft("n1").initialize(cluster.members("n1", "n2", "n3"))
        leader = await cluster.leader()
        if leader.id != "n1":
            await leader.transfer_leader("n1")
            leader = await cluster.leader()
        Hangs.hangs = True
        pending = leader.client_write_ff(Put("a", b"1"), timeout=1.0)
        with pytest.raises(OutcomeUnknown):
            await pending  # committed by the others, but never applied here
        await leader.wait(10).metrics(lambda m: m.state is not ServerState.LEADER, "stepping down")
        assert stalls
        new_leader = await cluster.leader("n2", "n3")
        assert (await new_leader.read(Get("a"))).value == b"1"
        started = asyncio.get_running_loop().time()
        shutting = asyncio.ensure_future(cluster.rafts.pop("n1").shutdown())
        await shutting
        assert asyncio.get_running_loop().time() - started < 15
        for task in asyncio.all_tasks():
            if "_hang" in repr(task):
                task.cancel()  # the test's own, left behind on purpose
        Hangs.hangs = False


async def test_what_a_hanging_storage_leaves_unanswered_costs_no_memory_once_its_time_is_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A leader that is not answered asks ten times a second, for as long as the disk hangs."""
    monkeypatch.setattr(command_runner, "PARKED_KEPT", 8)
    monkeypatch.setattr(service, "PEER_DEADLINE", 2.0)

    class Hangs(Hanging):
        def write(self, batch: LogBatch) -> Any:
            return super().write(batch) if self.disk.name == "n3" else MemoryLogStorage.write(self, batch)

    async with memory_cluster(3, storage=Hangs) as cluster:
        leader = await cluster.leader()
        if leader.id == "n3":
            await leader.transfer_leader("n1")
            leader = await cluster.leader()
        Hangs.hangs = True
        await leader.transfer_leader("n2" if leader.id == "n1" else "n1")  # whose vote never gets to the disk of n3
        runner = cluster.raft("n3")._core.runner
        for _ in range(3):
            await asyncio.sleep(4)
            assert 8 < len(runner._parked) < 40, "two seconds of heartbeats"
        for task in asyncio.all_tasks():
            if "_hang" in repr(task):
                task.cancel()
        Hangs.hangs = False


async def test_a_storage_that_was_slow_lets_the_last_campaign_go_and_not_all_of_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A vote is asked for once it is durable; nobody is asked for those of campaigns that are over."""
    monkeypatch.setattr(command_runner, "PARKED_KEPT", 8)
    gate = asyncio.Event()
    gate.set()

    class Late(MemoryLogStorage):
        def write(self, batch: LogBatch) -> Any:
            return super().write(batch) if gate.is_set() or self.disk.name != "n3" else self._later(batch)

        async def _later(self, batch: LogBatch) -> None:
            await gate.wait()
            super().write(batch)

    async with memory_cluster(3, storage=Late, config=Config(pre_vote=False)) as cluster:
        await cluster.leader()
        cluster.hub.isolate("n3")
        gate.clear()
        raft = cluster.raft("n3")
        await asyncio.sleep(30)
        assert raft.metrics().value.current_term > 20
        assert len(raft._core.runner._parked) <= 10
        asked: list[Any] = []

        def look(src: NodeId, _dst: NodeId, kind: str, message: Any) -> None:
            if src == "n3" and kind == "vote":
                asked.append(message)

        cluster.hub.heal()
        cluster.hub.pre_hook = look
        gate.set()
        await asyncio.sleep(0.3)
        assert len({request.vote for request in asked}) <= 2
        await cluster.leader()


async def test_a_hanging_machine_holds_up_no_heartbeat_and_every_call_ends() -> None:
    gate = asyncio.Event()

    class Hangs(KvStateMachine):
        def apply(self, batch: ApplyBatch) -> Any:
            return self._later(batch)

        async def _later(self, batch: ApplyBatch) -> Any:
            if any(entry.command.key == "hang" for entry in batch.entries):
                await gate.wait()
            return super().apply(batch)

    async with memory_cluster(3, machine=Hangs) as cluster:
        leader = await cluster.leader()
        term = leader.metrics().value.current_term
        loop = asyncio.get_running_loop()
        started = loop.time()
        hanging = asyncio.ensure_future(outcome(leader.client_write(Put("hang", b"1"), timeout=1.0)))
        await asyncio.sleep(0.01)
        told = await asyncio.gather(
            hanging,
            outcome(leader.read(Get("a"), timeout=1.0)),
            outcome(leader.write(Put("b", b"1"), timeout=1.0)),
        )
        assert loop.time() - started < 1.2
        assert [type(error).__name__ for error in told] == ["OutcomeUnknown", "WaitTimeout", "OutcomeUnknown"]
        await asyncio.sleep(5)
        assert leader.metrics().value.current_term == term
        gate.set()
        assert (await leader.read(Get("b"))).value == b"1"


async def test_a_node_with_a_hanging_machine_shuts_down_in_bounded_time() -> None:
    gate = asyncio.Event()

    class Hangs(KvStateMachine):
        def apply(self, batch: ApplyBatch) -> Any:
            return self._later(batch) if batch.entries else []

        async def _later(self, batch: ApplyBatch) -> Any:
            while not gate.is_set():
                try:
                    await gate.wait()
                except asyncio.CancelledError:
                    continue  # as a careless plugin would

    async with memory_cluster(1, machine=Hangs) as cluster:
        raft = cluster.raft("n1")
        pending = raft.client_write_ff(Put("a", b"1"), timeout=100)
        await asyncio.sleep(0.1)
        started = asyncio.get_running_loop().time()
        await cluster.stop("n1")
        assert asyncio.get_running_loop().time() - started < 10
        with pytest.raises(OutcomeUnknown):
            await pending
        gate.set()


async def test_d07_a_hung_follower_adds_nothing_to_writes_and_membership_changes() -> None:
    async with memory_cluster(3, ["n4"]) as cluster:
        leader = await cluster.leader("n1", "n2", "n3")
        hung = next(node_id for node_id in ("n1", "n2", "n3") if node_id != leader.id)
        cluster.hub.pre_hook = lambda _src, dst, _kind, _message: DROP if dst == hung else None
        loop = asyncio.get_running_loop()
        started = loop.time()
        for number in range(10):
            await leader.client_write(Put(f"k{number}", b"1"))
        await leader.change_membership(["n1", "n2", "n3", "n4"])
        assert loop.time() - started < 0.1


async def test_a_reverted_disk_of_a_follower_never_crashes_the_leader() -> None:
    async with memory_cluster(3) as cluster:
        leader = await cluster.leader()
        reverted = next(node_id for node_id in ("n1", "n2", "n3") if node_id != leader.id)
        for number in range(10):
            await leader.client_write(Put(f"k{number}", b"1"))
        await cluster.kill(reverted)
        disk = cluster.disk(reverted)
        del disk.entries[5:]
        disk.committed = disk.entries[3].log_id
        await cluster.start(reverted)
        await asyncio.sleep(3)
        assert leader.fatal is None
        await leader.client_write(Put("after", b"1"))
