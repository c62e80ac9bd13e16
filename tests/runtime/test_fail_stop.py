"""What a node does when its storage, its machine or itself fails: it stops and tells everybody (S28, V10, G1-G3)."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from raftkit_core.config import Config, SnapshotPolicy
from raftkit_core.errors import Fatal, OutcomeUnknown, Overloaded, RaftError, StorageError
from raftkit_core.instrument import Instrument
from raftkit_core.raft import Raft
from raftkit_core.state_machine.interface import ApplyBatch
from raftkit_core.state_machine.kv import KvStateMachine
from raftkit_core.storage.interface import SnapshotSink
from raftkit_core.storage.memory import MemorySnapshotStorage
from raftkit_core.testing.cluster import memory_cluster, outcome
from raftkit_core.types.identity import PeerIdentity
from raftkit_core.types.ids import NodeId
from raftkit_core.types.kv import Get, Put
from raftkit_core.types.messages import HeartbeatRequest
from raftkit_core.types.metrics import ServerState

pytestmark = pytest.mark.virtual_time

ON_REQUEST = Config(snapshot_policy=SnapshotPolicy.Never(), max_in_snapshot_log_to_keep=0, purge_batch_size=1)


async def died(raft: Raft) -> Any:
    return (await raft.wait(5).metrics(lambda m: not m.running, "the node to stop")).fatal


async def test_a_storage_error_stops_the_node_and_every_call_names_it() -> None:
    async with memory_cluster(1) as cluster:
        raft = cluster.raft("n1")
        cluster.disk("n1").fail_writes = StorageError("no space left on device", subject="log")
        with pytest.raises(OutcomeUnknown, match="no space left") as told:
            await raft.client_write(Put("a", b"1"))
        assert isinstance(told.value.__cause__, Fatal)
        assert isinstance(told.value.__cause__.__cause__, StorageError)
        metrics = raft.metrics().value
        assert (metrics.running, metrics.state) == (False, ServerState.SHUTDOWN)
        assert metrics.fatal is not None
        assert "no space left" in metrics.fatal
        for call in (
            raft.client_write(Put("a", b"1")),
            raft.read(Get("a")),
            raft.is_initialized(),
        ):
            with pytest.raises(Fatal, match="no space left") as refused:
                await call
            assert refused.value.outcome == "not_applied"
        assert cluster.log("n1")[-1].index == 1, "the failed write is not there"


async def test_nothing_leaves_a_node_after_its_storage_failed() -> None:
    async with memory_cluster(3) as cluster:
        leader = await cluster.leader()
        failing = next(node_id for node_id in ("n1", "n2", "n3") if node_id != leader.id)
        store_id = cluster.raft(failing).store_id
        sent: list[str] = []

        def look(src: NodeId, _dst: NodeId, kind: str, _message: Any) -> None:
            if src == failing:
                sent.append(kind)

        cluster.hub.pre_hook = look
        cluster.disk(failing).fail_writes = StorageError("broken")
        await leader.client_write(Put("a", b"1"))
        await died(cluster.raft(failing))
        sent.clear()
        vote = leader.metrics().value.vote
        peer = PeerIdentity(leader.id, leader.store_id)
        with pytest.raises(Fatal):
            await cluster.raft(failing)._service.heartbeat(HeartbeatRequest(vote, None, None, 500), peer)
        await asyncio.sleep(5)
        assert sent == []
        replication = leader.metrics().value.replication
        assert replication is not None
        matching = replication[failing].matching
        assert matching is not None
        assert matching.index == cluster.log(failing)[-1].index, "what it acknowledged is what it holds"
        assert store_id
        await leader.client_write(Put("b", b"2"))


async def test_a_leader_whose_storage_fails_is_replaced_and_no_acknowledged_write_is_lost() -> None:
    async with memory_cluster(3) as cluster:
        leader = await cluster.leader()
        await leader.client_write(Put("kept", b"1"))
        cluster.disk(leader.id).fail_writes = StorageError("broken")
        pending = leader.client_write_ff(Put("unknown", b"1"))
        with pytest.raises(OutcomeUnknown):
            await pending
        others = [node_id for node_id in ("n1", "n2", "n3") if node_id != leader.id]
        new_leader = await cluster.leader(*others)
        assert (await new_leader.read(Get("kept"))).value == b"1"
        raft = await cluster.restart(leader.id)
        await cluster.leader()
        await new_leader.write(Put("b", b"2"))
        assert (await raft.read(Get("b"))).value == b"2"


class Poisoned(KvStateMachine):
    """Fails at the key ``poison``."""

    error: type[BaseException] = RuntimeError

    def apply(self, batch: ApplyBatch) -> Any:
        for entry in batch.entries:
            if entry.command.key == "poison":
                raise self.error("cannot apply this")
        return super().apply(batch)


class PoisonedLater(Poisoned):
    def apply(self, batch: ApplyBatch) -> Any:
        return self._later(batch)

    async def _later(self, batch: ApplyBatch) -> Any:
        await asyncio.sleep(0.01)
        return super().apply(batch)


class CancelledLater(PoisonedLater):
    error = asyncio.CancelledError


class TooFew(KvStateMachine):
    def apply(self, batch: ApplyBatch) -> Any:
        results = super().apply(batch)
        return results[:-1] if any(entry.command.key == "poison" for entry in batch.entries) else results


class NoResults(KvStateMachine):
    def apply(self, batch: ApplyBatch) -> Any:
        return None if any(entry.command.key == "poison" for entry in batch.entries) else super().apply(batch)


@pytest.mark.parametrize("machine", [Poisoned, PoisonedLater, CancelledLater, TooFew, NoResults])
async def test_a_machine_that_fails_stops_its_node_by_name_and_the_call_is_answered(machine: Any) -> None:
    async with memory_cluster(1, machine=machine) as cluster:
        raft = cluster.raft("n1")
        await raft.client_write(Put("fine", b"1"))
        with pytest.raises(OutcomeUnknown, match=r"kv/1"):
            await raft.client_write(Put("poison", b"1"))
        assert "kv/1" in str(await died(raft))


async def test_a_poisonous_entry_is_tried_again_at_every_start() -> None:
    async with memory_cluster(1, machine=Poisoned) as cluster:
        raft = cluster.raft("n1")
        with pytest.raises(OutcomeUnknown):
            await raft.client_write(Put("poison", b"1"))
        await cluster.kill("n1")
        raft = await cluster.start("n1")
        assert "T1-n1.2" in str(await died(raft))


async def test_no_success_is_told_by_a_machine_that_finishes_after_the_storage_failed() -> None:
    class Slow(KvStateMachine):
        def apply(self, batch: ApplyBatch) -> Any:
            return self._later(batch)

        async def _later(self, batch: ApplyBatch) -> Any:
            await asyncio.sleep(0.5)
            return super().apply(batch)

    async with memory_cluster(1, machine=Slow) as cluster:
        raft = cluster.raft("n1")
        first = raft.client_write_ff(Put("a", b"1"))
        await asyncio.sleep(0.1)
        cluster.disk("n1").fail_writes = StorageError("broken")
        second = raft.client_write_ff(Put("b", b"2"))
        for future in (first, second):
            with pytest.raises(OutcomeUnknown, match="broken"):
                await future


async def test_a_failure_inside_the_loop_stops_the_node_with_its_cause() -> None:
    async with memory_cluster(1) as cluster:
        raft = cluster.raft("n1")

        def fail(_engine: Any, _now: float) -> None:
            raise AssertionError("an invariant is broken")

        raft.trigger()._do(fail)
        await asyncio.sleep(0.01)
        with pytest.raises(Fatal, match="an invariant is broken") as refused:
            await raft.client_write(Put("a", b"1"))
        assert isinstance(refused.value.__cause__, AssertionError)


async def test_d08_an_error_in_a_caller_s_function_is_the_caller_s_and_nobody_hangs() -> None:
    async with memory_cluster(1) as cluster:
        raft = cluster.raft("n1")
        with pytest.raises(ZeroDivisionError):
            await raft.with_raft_state(lambda state: 1 / 0)
        assert await raft.with_raft_state(lambda state: state.committed) is not None
        await raft.client_write(Put("a", b"1"))


@pytest.mark.parametrize(("error", "told"), [(StopIteration, RuntimeError), (asyncio.CancelledError,) * 2])
async def test_d08_an_error_that_no_future_takes_is_the_caller_s_too(error: Any, told: type[BaseException]) -> None:
    """``next`` of what is empty, for one."""

    def function(_state: Any) -> None:
        raise error

    async with memory_cluster(1) as cluster:
        raft = await cluster.leader()
        asked = asyncio.ensure_future(raft.with_raft_state(function))
        await asyncio.wait([asked], timeout=5)
        with pytest.raises(told):
            asked.result()
        await raft.client_write(Put("a", b"1"))


async def test_calls_queued_when_the_node_fails_are_all_answered() -> None:
    async with memory_cluster(3) as cluster:
        leader = await cluster.leader()
        calls = [
            asyncio.ensure_future(outcome(call))
            for call in (
                leader.client_write(Put("a", b"1")),
                leader.change_membership(["n1", "n2"]),
                leader.with_raft_state(lambda state: None),
                leader.get_read_log_id(),
                leader.transfer_leader(),
                leader.client_write_many([Put("b", b"1"), Put("c", b"1")]),
            )
        ]
        await asyncio.sleep(0)
        leader.fail(RuntimeError("gone"))
        results = await asyncio.gather(*calls)
        told = [*results[:5], *results[5]]
        assert all(isinstance(result, Fatal | OutcomeUnknown) for result in told), told


@pytest.mark.interpreted("replaces methods of the engine")
async def test_calls_that_the_engine_breaks_on_are_answered() -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise AssertionError("a state that cannot be")

    async with memory_cluster(3) as cluster:
        leader = await cluster.leader()
        leader._core.engine.handle_change_membership = broken  # type: ignore[method-assign]
        with pytest.raises(Fatal, match="cannot be") as told:
            await asyncio.wait_for(leader.change_membership(["n1", "n2"]), 5)
        assert told.value.outcome == "unknown"


@pytest.mark.interpreted("replaces methods of the engine")
async def test_of_writes_that_are_taken_one_by_one_those_after_the_one_that_breaks_the_engine_are_answered() -> None:
    async with memory_cluster(1) as cluster:
        core = cluster.raft("n1")._core
        take, taken = core.engine.handle_client_write, []

        def handle(payloads: list[bytes], *arguments: Any) -> Any:
            if len(payloads) > 1:
                return Overloaded("too much at once")
            taken.append(payloads)
            if len(taken) == 2:
                raise AssertionError("a state that cannot be")
            return take(payloads, *arguments)

        core.engine.handle_client_write = handle  # type: ignore[method-assign]
        written = [cluster.raft("n1").client_write_ff(Put("k", b"v")) for _ in range(4)]
        told = await asyncio.wait_for(asyncio.gather(*written, return_exceptions=True), 5)
        assert [each.outcome for each in told if isinstance(each, RaftError)] == ["unknown"] * 2 + ["not_applied"] * 2


async def test_an_observer_is_told_why_the_node_stopped() -> None:
    class Watching(Instrument):
        def __init__(self) -> None:
            self.fatal: list[str] = []

        def on_fatal(self, error: BaseException) -> None:
            self.fatal.append(str(error))

    async with memory_cluster(0) as cluster:
        watching = Watching()
        raft = await cluster.start("n1", instruments=[watching])
        raft.fail(RuntimeError("gone"))
        await died(raft)
        await raft.shutdown()
        assert watching.fatal == ["gone"]


# --- snapshots --------------------------------------------------------------------------------------------------------


async def test_a_snapshot_that_cannot_be_built_stops_the_node() -> None:
    class Broken(KvStateMachine):
        def snapshot(self) -> Any:
            return self._broken()

        async def _broken(self) -> Any:
            yield b""
            raise OSError("disk error")

    async with memory_cluster(1, machine=Broken) as cluster:
        raft = cluster.raft("n1")
        await raft.client_write(Put("a", b"1"))
        raft.trigger().snapshot()
        assert "disk error" in str(await died(raft))


async def test_a_receiver_whose_disk_fails_stops_and_its_sender_goes_on() -> None:
    class Full(MemorySnapshotStorage):
        async def sink(self, snapshot_id: str, *, resume: bool = False) -> SnapshotSink:
            if self.disk.name == "n2":
                raise StorageError("no space left for snapshots", subject="snapshot")
            return await super().sink(snapshot_id, resume=resume)

    async with memory_cluster(1, config=ON_REQUEST, snapshots=Full) as cluster:
        leader = cluster.raft("n1")
        await leader.client_write(Put("a", b"1"))
        leader.trigger().snapshot()
        await leader.wait(5).metrics(lambda m: m.purged == m.last_log_id, "an empty log")
        await cluster.start("n2")
        await outcome(leader.add_learner("n2", cluster.address("n2"), timeout=2))
        assert "no space left for snapshots" in str(await died(cluster.raft("n2")))
        await leader.client_write(Put("b", b"1"))
        assert leader.fatal is None
