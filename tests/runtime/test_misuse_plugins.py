"""What plugins may do wrong, and what it costs: a named error, never the wrong data (rows G1 to G12 but G3 and G11).

What hangs is in ``test_misuse_hanging.py``, what blocks in ``test_misuse_blocking.py``, failing machines and disks in
``test_fail_stop.py``; broken imports and names in ``tests/plugins``; storages that break their contract in the
conformance kit's own tests.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
from misuse import Stalls, block, ends
from three_nodes import ALL

from raftkit_core.config import Config, SnapshotPolicy
from raftkit_core.errors import OutcomeUnknown, PluginError, RaftError, RPCTimeout, StorageError, WaitTimeout
from raftkit_core.network.memory import MemoryNetwork, MemoryNetworkFactory
from raftkit_core.raft import Raft
from raftkit_core.state_machine.interface import ApplyBatch, MsgspecCodec
from raftkit_core.state_machine.kv import KvStateMachine
from raftkit_core.storage.memory import MemoryDisk, MemoryLogStorage, MemorySnapshotStorage
from raftkit_core.testing.cluster import memory_cluster, outcome
from raftkit_core.types.kv import Get, Put
from raftkit_core.types.membership import Node
from raftkit_core.types.metrics import ServerState
from raftkit_core.types.snapshot import SnapshotMeta, SnapshotSource

pytestmark = pytest.mark.virtual_time

ON_REQUEST = Config(snapshot_policy=SnapshotPolicy.Never(), max_in_snapshot_log_to_keep=0, purge_batch_size=1)


async def died(raft: Raft) -> str:
    return str((await raft.wait(10).metrics(lambda m: not m.running, "the node to stop")).fatal)


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
        logs = [[entry.payload for entry in cluster.log(node_id)] for node_id in ALL]
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
