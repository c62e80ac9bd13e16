"""What plugins may do wrong, and what it costs: a named error, a bounded wait, never a hang (rows G1-G12, P8, V10).

Failing machines and disks are in ``test_fail_stop.py``; broken imports and names in ``tests/plugins``; storages that
break their contract in the conformance kit's own tests.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
import pytest

from raftkit_core.config import Config, ReadPolicy, SnapshotPolicy
from raftkit_core.errors import (
    OutcomeUnknown,
    PluginError,
    RaftError,
    RPCTimeout,
    StorageError,
    Unreachable,
    WaitTimeout,
)
from raftkit_core.instrument import Instrument
from raftkit_core.network.memory import MemoryNetwork, MemoryNetworkFactory
from raftkit_core.raft import Raft
from raftkit_core.runtime import stalls
from raftkit_core.state_machine.interface import ApplyBatch, MsgspecCodec
from raftkit_core.state_machine.kv import KvStateMachine
from raftkit_core.storage.interface import LogBatch, SnapshotSink
from raftkit_core.storage.memory import MemoryDisk, MemoryLogStorage, MemorySnapshotStorage
from raftkit_core.testing.cluster import MemoryCluster, memory_cluster, outcome
from raftkit_core.testing.virtual_time import VirtualClock, VirtualTimeLoop
from raftkit_core.types.kv import Get, Put
from raftkit_core.types.membership import Node
from raftkit_core.types.metrics import ServerState
from raftkit_core.types.snapshot import SnapshotMeta, SnapshotSource

pytestmark = pytest.mark.virtual_time

VOTERS = ("n1", "n2", "n3")
ON_REQUEST = Config(snapshot_policy=SnapshotPolicy.Never(), max_in_snapshot_log_to_keep=0, purge_batch_size=1)
HEARTBEAT = 0.1


def block(seconds: float) -> None:
    """What ``time.sleep`` is to a real loop: time goes on, and nobody else runs."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualTimeLoop)
    loop.jump(seconds)


async def died(raft: Raft) -> str:
    return str((await raft.wait(10).metrics(lambda m: not m.running, "the node to stop")).fatal)


class Stalls(Instrument):
    def __init__(self) -> None:
        self.told: list[tuple[str, float]] = []

    def on_plugin_stall(self, name: str, seconds: float) -> None:
        self.told.append((name, round(seconds, 3)))

    @property
    def names(self) -> set[str]:
        return {name for name, _ in self.told}


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


async def ends(call: Awaitable[Any], within: float) -> Any:
    """The call's result or error; it must come in time."""
    started = asyncio.get_running_loop().time()
    told = await outcome(call)
    assert asyncio.get_running_loop().time() - started <= within + 1e-6, told
    return told


# --- G1, G2 · a machine that fails is named ---------------------------------------------------------------------------


async def test_g1_a_poisonous_entry_is_named_in_the_status_of_every_node_it_stops() -> None:
    class Poisoned(KvStateMachine):
        def apply(self, batch: ApplyBatch) -> Any:
            if any(entry.command.key == "poison" for entry in batch.entries):
                raise ValueError("cannot apply this")
            return super().apply(batch)

    async with memory_cluster(3, machine=Poisoned) as cluster:
        leader = await cluster.leader()
        with pytest.raises(OutcomeUnknown, match="cannot apply this"):
            await leader.client_write(Put("poison", b"1"))
        await died(leader)
        await asyncio.sleep(10)
        dead = [raft for raft in cluster.rafts.values() if raft.fatal is not None]
        assert len(dead) == 2, "whoever learns that it is committed; the last one cannot, alone"
        for raft in dead:
            status = await raft.status()
            assert status.fatal is not None
            assert "kv/1" in status.fatal
            assert "ValueError: cannot apply this" in status.fatal
            assert status.applied == 1, "it was not skipped"


@pytest.mark.parametrize("results", [None, 7, [], [1, 2, 3], "text"], ids=repr)
async def test_g2_results_that_are_none_name_the_machine(results: Any) -> None:
    class Wrong(KvStateMachine):
        def apply(self, batch: ApplyBatch) -> Any:
            return results

    async with memory_cluster(1, machine=Wrong) as cluster:
        with pytest.raises(OutcomeUnknown, match="kv/1"):
            await cluster.raft("n1").client_write(Put("a", b"1"))
        assert "kv/1" in await died(cluster.raft("n1"))


@pytest.mark.parametrize("chunks", [None, [b"list"], b"bytes"], ids=repr)
async def test_g2_a_snapshot_that_is_no_stream_names_the_machine(chunks: Any) -> None:
    class Wrong(KvStateMachine):
        def snapshot(self) -> Any:
            return chunks

    async with memory_cluster(1, machine=Wrong) as cluster:
        cluster.raft("n1").trigger().snapshot()
        assert "kv/1" in await died(cluster.raft("n1"))


# --- G3, V10 · what hangs ---------------------------------------------------------------------------------------------


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
        ("change_membership", raft.change_membership(VOTERS, timeout=1), 1),
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
            await asyncio.gather(*(cluster.stop(node_id) for node_id in VOTERS))
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
            await asyncio.gather(*(cluster.stop(node_id) for node_id in VOTERS))
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


# --- G4 · observers ---------------------------------------------------------------------------------------------------


async def test_g4_an_observer_that_fails_or_blocks_is_counted_and_named_and_the_node_goes_on() -> None:
    class Careless(Stalls):
        def on_server_state(self, state: ServerState) -> None:
            raise RuntimeError("an observer's own mistake")

        def on_leader_change(self, leader: str | None, term: int) -> Any:
            block(0.3)
            return object()

    async with memory_cluster(0) as cluster:
        told = Careless()
        raft = await cluster.start("n1", instruments=[told])
        await raft.initialize(["n1"])
        await raft.wait(5).current_leader("n1")
        await raft.client_write(Put("a", b"1"))
        assert told.names == {"Careless.on_leader_change"}
        assert sum(raft._core.instruments.errors.values()) >= 2


# --- G6 · a storage that gives what it did not take -------------------------------------------------------------------


@pytest.mark.parametrize("gives", ["nothing", "a hole", "too late", "an error"])
async def test_g6_entries_that_are_not_what_was_asked_for_stop_the_node(gives: str) -> None:
    lying = False

    class Lying(MemoryLogStorage):
        async def read(self, start: int, stop: int, max_bytes: int) -> Any:
            found = await super().read(start, stop, max_bytes)
            if not lying:
                return found
            match gives:
                case "nothing":
                    return []
                case "a hole":
                    return [*found[:1], *found[2:]]
                case "too late":
                    return found[1:]
            raise OSError("read error")

    async with memory_cluster(1, storage=Lying) as cluster:
        raft = cluster.raft("n1")
        await raft.client_write_many([Put(f"k{number}", b"v") for number in range(10)])
        raft._core.writer.tail.purge(11)  # as if it were long ago
        lying = True
        await cluster.start("n2")
        await outcome(raft.add_learner("n2", cluster.address("n2"), timeout=3))
        assert raft.fatal is not None
        assert ("read error" if gives == "an error" else "the storage gave") in str(raft.fatal)


# --- G7 · a machine that differs from node to node --------------------------------------------------------------------


async def test_g7_machines_that_differ_show_it_by_their_digests_at_one_position() -> None:
    class Different(KvStateMachine):
        made = 0

        def __init__(self) -> None:
            super().__init__()
            type(self).made += 1
            self._mine = str(self.made).encode()

        def apply(self, batch: ApplyBatch) -> Any:
            other = [msgspec.structs.replace(each, command=Put(each.command.key, self._mine)) for each in batch.entries]
            batch.entries = other  # type: ignore[misc]
            return super().apply(batch)

    async with memory_cluster(3, machine=Different) as cluster:
        leader = await cluster.leader()
        done = await leader.client_write(Put("a", b"1"))
        await cluster.applied(done.log_id.index)
        shown = [await raft.status(digest=True) for raft in cluster.rafts.values()]
        assert len({status.applied for status in shown}) == 1
        assert len({status.digest for status in shown}) == 3


# --- G8 · transports --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["raises", "raises at once", "cancels itself", "gives nonsense", "answers nonsense"])
async def test_g8_what_a_transport_does_wrong_is_never_the_end_of_a_node(fault: str) -> None:
    broken = False

    class Network(MemoryNetwork):
        def append_entries(self, request: Any, timeout: float) -> Any:
            if not broken:
                return super().append_entries(request, timeout)
            if fault == "raises at once":
                raise KeyError("a plugin's mistake")
            if fault == "gives nonsense":
                return 7
            return self._fail()

        async def _fail(self) -> Any:
            if fault == "cancels itself":
                raise asyncio.CancelledError
            if fault == "answers nonsense":
                return "yes"
            raise KeyError("a plugin's mistake")

    class Factory(MemoryNetworkFactory):
        def connect(self, target: str, node: Node, service: Any) -> MemoryNetwork:
            network = Network(self, target, self._address_of(node.peer), service)
            self._networks.append(network)
            return network

    async with memory_cluster(3, network=Factory) as cluster:
        leader = await cluster.leader()
        broken = True
        told = await ends(leader.client_write(Put("a", b"1"), timeout=1), 1.2)
        assert told.outcome == "unknown"
        assert all(raft.fatal is None for raft in cluster.rafts.values())
        broken = False
        await leader.client_write(Put("b", b"1"))


# --- G9 · codecs ------------------------------------------------------------------------------------------------------


async def test_g9_a_codec_that_encodes_differently_each_time_does_so_once_per_entry() -> None:
    class Unsteady(MsgspecCodec):
        count = 0

        def encode_command(self, command: Any) -> bytes:
            type(self).count += 1
            return super().encode_command(Put(command.key, command.value + str(self.count).encode()))

    class Machine(KvStateMachine):
        codec = Unsteady(Put, Any)

    async with memory_cluster(3, machine=Machine) as cluster:
        leader = await cluster.leader()
        follower = next(raft for raft in cluster.rafts.values() if raft is not leader)
        await leader.client_write(Put("a", b"v"))
        last = await outcome(follower.write(Put("b", b"v")))
        assert not isinstance(last, RaftError), last
        await cluster.applied(last.log_id.index)
        logs = [[entry.payload for entry in cluster.log(node_id)] for node_id in VOTERS]
        assert logs[0] == logs[1] == logs[2], "bytes are made once, by whoever took the command"
        assert len({raft.machine.digest() for raft in cluster.rafts.values()}) == 1


# --- G10 · tasks and cancellation -------------------------------------------------------------------------------------


async def test_g10_a_plugin_that_cancels_its_own_task_is_not_taken_for_its_caller() -> None:
    class Suicidal(KvStateMachine):
        def query(self, query: Any) -> Any:
            return self._cancel()

        async def _cancel(self) -> Any:
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
            await asyncio.sleep(0)

    async with memory_cluster(1, machine=Suicidal) as cluster:
        raft = cluster.raft("n1")
        with pytest.raises(PluginError, match="cancelled itself"):
            await raft.read(Get("a"))
        await raft.client_write(Put("a", b"1"))


# --- G11, P8 · what blocks --------------------------------------------------------------------------------------------


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


# --- G12 · snapshots --------------------------------------------------------------------------------------------------


async def test_g12_a_snapshot_older_than_it_says_is_refused() -> None:
    lying = False

    class Older(SnapshotSource):
        """An older snapshot under a newer one's name."""

        def __init__(self, honest: SnapshotSource, meta: SnapshotMeta) -> None:
            self._honest = honest
            self.meta = meta

        def open(self, offset: int = 0, chunk_bytes: int = 1024 * 1024) -> AsyncIterator[bytes]:
            return self._honest.open(offset, chunk_bytes)

        async def close(self) -> None:
            await self._honest.close()

    kept: list[Any] = []

    class Lying(MemorySnapshotStorage):
        async def source(self) -> SnapshotSource | None:
            found = await super().source()
            if not lying or found is None:
                return found
            older = MemorySnapshotStorage(MemoryDisk("older"))
            older.disk.snapshot = kept[0]
            honest = await older.source()
            assert honest is not None
            return Older(honest, found.meta)

    async with memory_cluster(1, config=ON_REQUEST, snapshots=Lying) as cluster:
        leader = cluster.raft("n1")
        for key in ("a", "b"):
            done = await leader.client_write(Put(key, b"1"))
            leader.trigger().snapshot()
            await leader.wait(5).snapshot(done.log_id)
            kept.append(cluster.disk("n1").snapshot)
        await leader.wait(5).purged(done.log_id)
        lying = True
        await cluster.start("n2")
        told = await outcome(leader.add_learner("n2", cluster.address("n2"), timeout=2))
        assert isinstance(told, WaitTimeout | RPCTimeout)
        assert cluster.raft("n2").machine.digest() == KvStateMachine().digest(), "nothing of it was taken over"
        await cluster.kill("n2")
        await cluster.kill("n1")
        with pytest.raises(StorageError):
            await cluster.start("n1")


async def test_a_machine_that_proposes_while_it_applies_is_not_called_within_itself() -> None:
    """Nobody's turn is under way when a batch that had to be awaited is done and the next one is applied."""
    applied: list[int] = []

    class Proposing(KvStateMachine):
        raft: Any = None

        def apply(self, batch: ApplyBatch) -> Any:
            applied.extend(entry.log_id.index for entry in batch.entries)
            keys = [entry.command.key for entry in batch.entries]
            if "slow" in keys:
                return self._later(batch)
            if "propose" in keys:
                self.raft.client_write_ff(Put("proposed", b"1"))
            return super().apply(batch)

        async def _later(self, batch: ApplyBatch) -> Any:
            await asyncio.sleep(1)
            return super().apply(batch)

    async with memory_cluster(1, machine=Proposing) as cluster:
        raft = await cluster.leader()
        raft.machine.raft = raft  # type: ignore[attr-defined]
        calls = []
        for key in ("slow", "propose"):
            calls.append(raft.client_write_ff(Put(key, b"1"), timeout=0.1))
            await asyncio.sleep(0.2)
        assert all(isinstance(call.exception(), OutcomeUnknown) for call in calls)
        raft._core._writes_alone = 2  # as after writes that came alone: the next one has its turn at once
        done = await raft.wait(5).applied_index_at_least(4)
        assert (done.running, applied) == (True, [2, 3, 4])
