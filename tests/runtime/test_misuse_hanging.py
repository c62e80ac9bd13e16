"""What hangs in a plugin, and what it costs: every call ends in time, and the plugin is named (rows G3, V10)."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from misuse import Stalls, ends
from three_nodes import ALL

from raftkit_core.config import ReadPolicy
from raftkit_core.errors import PluginError, RaftError, Unreachable
from raftkit_core.network.memory import MemoryNetwork, MemoryNetworkFactory
from raftkit_core.raft import Raft
from raftkit_core.state_machine.interface import ApplyBatch
from raftkit_core.state_machine.kv import KvStateMachine
from raftkit_core.storage.interface import LogBatch, SnapshotSink
from raftkit_core.storage.memory import MemoryLogStorage, MemorySnapshotStorage
from raftkit_core.testing.cluster import MemoryCluster, memory_cluster, outcome
from raftkit_core.types.kv import Get, Put
from raftkit_core.types.membership import Node
from raftkit_core.types.metrics import ServerState
from raftkit_core.types.snapshot import SnapshotMeta

pytestmark = pytest.mark.virtual_time

HEARTBEAT = 0.1


class Gate:
    """What a plugin hangs in; ``resists`` swallows cancellation, as a careless one would. Opened by the test."""

    def __init__(self, *, resists: bool = False) -> None:
        self._opened = asyncio.Event()
        self._resists = resists
        self.closed = False

    async def pass_through(self) -> None:
        while self.closed and not self._opened.is_set():
            try:
                await self._opened.wait()
            except asyncio.CancelledError:
                if not self._resists:
                    raise

    def open(self) -> None:
        self._opened.set()


@contextmanager
def gate(*, resists: bool) -> Iterator[Gate]:
    made = Gate(resists=resists)
    try:
        yield made
    finally:
        made.open()


def every_call(cluster: MemoryCluster, raft: Raft) -> list[tuple[str, Awaitable[Any], float]]:
    """Each call of the handle that waits for something: its name, the call, and by when it must end."""
    return [
        ("client_write", raft.client_write(Put("a", b"1"), timeout=1), 1),
        ("write", raft.write(Put("b", b"1"), timeout=1), 1),
        ("client_write_many", raft.client_write_many([Put("c", b"1")] * 3, timeout=1), 1),
        ("read", raft.read(Get("a"), timeout=1), 1),
        ("read locally", raft.read(Get("a"), ReadPolicy.STALE, timeout=1), 1),
        ("ensure_linearizable", raft.ensure_linearizable(timeout=1), 1),
        ("get_read_log_id", raft.get_read_log_id(timeout=1), 1),
        ("status", raft.status(), 1),
        ("status with digest", raft.status(digest=True), 11),
        ("add_learner", raft.add_learner("n4", cluster.address("n4"), timeout=1), 3.5),
        ("change_membership", raft.change_membership(ALL, timeout=1), 1),
        ("with_raft_state", raft.with_raft_state(lambda state: None), 0),
        ("get_snapshot", raft.get_snapshot(), 5),
        ("wait", raft.wait(1).metrics(lambda m: False), 1),
        ("wait_for_recovery", raft.wait_for_recovery(1), 1),
    ]


@pytest.mark.parametrize("resists", [False, True], ids=["", "resisting"])
@pytest.mark.parametrize("hanging", ["apply", "query", "digest", "snapshot", "write", "read", "source", "info"])
async def test_g3_every_call_ends_in_time_whatever_hangs_and_so_does_the_shutdown(hanging: str, resists: bool) -> None:
    with gate(resists=resists) as hang:

        class Machine(KvStateMachine):
            def apply(self, batch: ApplyBatch) -> Any:
                return self._later(super().apply, batch) if hanging == "apply" else super().apply(batch)

            def query(self, query: Any) -> Any:
                return self._later(super().query, query) if hanging == "query" else super().query(query)

            def digest(self) -> Any:
                return self._later(super().digest) if hanging == "digest" else super().digest()

            async def _later(self, method: Callable[..., Any], *arguments: Any) -> Any:
                await hang.pass_through()
                return method(*arguments)

            async def snapshot(self) -> AsyncIterator[bytes]:
                view = super().snapshot()
                if hanging == "snapshot":
                    await hang.pass_through()
                async for chunk in view:
                    yield chunk

        class Storage(MemoryLogStorage):
            def write(self, batch: LogBatch) -> Any:
                return self._later(batch) if hanging == "write" else super().write(batch)

            async def _later(self, batch: LogBatch) -> None:
                await hang.pass_through()
                super().write(batch)

            async def read(self, start: int, stop: int, max_bytes: int) -> Any:
                if hanging == "read":
                    await hang.pass_through()
                return await super().read(start, stop, max_bytes)

            async def info(self) -> Any:
                if hanging == "info":
                    await hang.pass_through()
                return await super().info()

        class Snapshots(MemorySnapshotStorage):
            async def source(self) -> Any:
                if hanging == "source":
                    await hang.pass_through()
                return await super().source()

        async with memory_cluster(3, machine=Machine, storage=Storage, snapshots=Snapshots) as cluster:
            leader = await cluster.leader()
            await leader.client_write(Put("before", b"1"))
            term = leader.metrics().value.current_term
            hang.closed = True
            leader.trigger().snapshot()
            await asyncio.sleep(0.01)
            calls = every_call(cluster, leader)
            await asyncio.gather(*(ends(call, within + 2 * HEARTBEAT) for _, call, within in calls))
            if hanging != "write":
                assert leader.metrics().value.current_term == term, "heartbeats go on"
                assert leader.metrics().value.state is ServerState.LEADER
            started = asyncio.get_running_loop().time()
            await asyncio.gather(*(cluster.stop(node_id) for node_id in ALL))
            assert asyncio.get_running_loop().time() - started < 30


async def test_g3_what_does_not_finish_is_named_with_how_long(caplog: pytest.LogCaptureFixture) -> None:
    with gate(resists=False) as hang:

        class Slow(KvStateMachine):
            def apply(self, batch: ApplyBatch) -> Any:
                return self._later(batch)

            async def _later(self, batch: ApplyBatch) -> Any:
                await hang.pass_through()
                return super().apply(batch)

            async def snapshot(self) -> AsyncIterator[bytes]:
                await hang.pass_through()
                yield b""

        class Disk(MemoryLogStorage):
            def write(self, batch: LogBatch) -> Any:
                return self._later(batch)

            async def _later(self, batch: LogBatch) -> None:
                await hang.pass_through()
                super().write(batch)

        for hanging in ({"machine": Slow}, {"storage": Disk}):
            hang.closed = False
            async with memory_cluster(0, **hanging) as cluster:
                told = Stalls()
                raft = await cluster.start("n1", instruments=[told])
                await raft.initialize(["n1"])
                await raft.client_write(Put("a", b"1"))
                hang.closed = True
                with caplog.at_level(logging.WARNING, "raftkit.runtime"):
                    raft.trigger().snapshot()
                    await outcome(raft.client_write(Put("b", b"1"), timeout=6))
                expected = {"Slow.apply", "Slow.snapshot"} if "machine" in hanging else {"Disk.write"}
                assert told.names == expected
                assert len(told.told) == len(expected), "once for each"
                assert all(2.0 <= seconds <= 2.2 for _, seconds in told.told)
                for name in expected:
                    assert any(f"{name} has not finished for 2.0 s" in text for text in caplog.messages)
                hang.closed = False
                hang.open()
                await raft.shutdown()
            hang._opened.clear()


async def test_g3_a_machine_is_not_blamed_for_what_the_snapshot_storage_takes() -> None:
    class Slow(MemorySnapshotStorage):
        async def sink(self, snapshot_id: str, *, resume: bool = False) -> SnapshotSink:
            sink = await super().sink(snapshot_id, resume=resume)
            publish = sink.publish

            async def slowly(meta: SnapshotMeta) -> SnapshotMeta:
                await asyncio.sleep(4)
                return await publish(meta)

            sink.publish = slowly  # type: ignore[method-assign]
            return sink

    async with memory_cluster(0, snapshots=Slow) as cluster:
        told = Stalls()
        raft = await cluster.start("n1", instruments=[told])
        await raft.initialize(["n1"])
        await raft.client_write(Put("a", b"1"))
        raft.trigger().snapshot()
        await raft.wait(20).metrics(lambda m: m.snapshot is not None, "a snapshot")
        assert told.names == set()


class DeafNetwork(MemoryNetwork):
    """Ignores every deadline, and never ends a call by itself while its factory is deaf."""

    def _deaf(self, method: Callable[..., Any], *arguments: Any) -> Any:
        if not DeafFactory.hang.closed:
            return method(*arguments)

        async def never() -> Any:
            await DeafFactory.hang.pass_through()
            raise Unreachable("much too late")

        return never()

    def append_entries(self, request: Any, timeout: float) -> Any:
        return self._deaf(super().append_entries, request, timeout)

    def heartbeat(self, request: Any, timeout: float) -> Any:
        return self._deaf(super().heartbeat, request, timeout)

    def vote(self, request: Any, timeout: float) -> Any:
        return self._deaf(super().vote, request, timeout)

    def pre_vote(self, request: Any, timeout: float) -> Any:
        return self._deaf(super().pre_vote, request, timeout)

    def read_index(self, request: Any, timeout: float) -> Any:
        return self._deaf(super().read_index, request, timeout)

    def forward(self, request: Any, timeout: float) -> Any:
        return self._deaf(super().forward, request, timeout)

    async def hello(self, timeout: float) -> Any:
        return await self._deaf(super().hello, timeout)


class DeafFactory(MemoryNetworkFactory):
    hang: Gate

    def connect(self, target: str, node: Node, service: Any) -> MemoryNetwork:
        network = DeafNetwork(self, target, self._address_of(node.peer), service)
        self._networks.append(network)
        return network


@pytest.mark.parametrize("resists", [False, True], ids=["", "resisting"])
async def test_g3_a_transport_that_ignores_deadlines_costs_calls_but_wedges_nothing(resists: bool) -> None:
    with gate(resists=resists) as hang:
        DeafFactory.hang = hang
        async with memory_cluster(3, network=DeafFactory) as cluster:
            leader = await cluster.leader()
            follower = next(raft for raft in cluster.rafts.values() if raft is not leader)
            hang.closed = True
            for raft in (leader, follower):
                calls = every_call(cluster, raft)
                told = await asyncio.gather(*(ends(call, within + 3 * HEARTBEAT) for _, call, within in calls))
                assert isinstance(told[0], RaftError)
            await asyncio.sleep(5)
            hang.closed = False  # the calls under way never end; new ones do
            again = await cluster.leader(timeout=20)
            await again.write(Put("after", b"1"), timeout=20)
            await cluster.applied(again.metrics().value.last_log_index or 0, timeout=20)
            hang.closed = True
            started = asyncio.get_running_loop().time()
            await asyncio.gather(*(cluster.stop(node_id) for node_id in ALL))
            assert asyncio.get_running_loop().time() - started < 30


@pytest.mark.parametrize("hanging", ["storage", "snapshots", "machine", "network"])
async def test_g3_a_plugin_that_does_not_get_ready_ends_the_start_by_name(hanging: str) -> None:
    with gate(resists=True) as hang:
        hang.closed = True

        class Storage(MemoryLogStorage):
            async def open(self, context: Any) -> Any:
                if hanging == "storage":
                    await hang.pass_through()
                return await super().open(context)

        class Snapshots(MemorySnapshotStorage):
            async def open(self, context: Any) -> None:
                if hanging == "snapshots":
                    await hang.pass_through()

        class Machine(KvStateMachine):
            async def open(self, context: Any) -> None:
                if hanging == "machine":
                    await hang.pass_through()

        class Factory(MemoryNetworkFactory):
            async def serve(self, group: str, service: Any) -> None:
                if hanging == "network":
                    await hang.pass_through()
                await super().serve(group, service)

        names = {"storage": "Storage", "snapshots": "Snapshots", "machine": "Machine", "network": "Factory"}
        cluster = MemoryCluster(storage=Storage, snapshots=Snapshots, machine=Machine, network=Factory)
        with pytest.raises(PluginError, match=f"opening {names[hanging]} did not end within 60 s"):
            await cluster.start("n1")
        if hanging != "storage":
            assert cluster.disk("n1").holder is None, "what was opened is closed again"
