"""What a node does when its storage, its machine or itself fails: it stops and tells everybody (S28, V10, G1-G3)."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from raftkit_core.config import Config, SnapshotPolicy
from raftkit_core.errors import Fatal, OutcomeUnknown, Overloaded, RaftError, StorageError
from raftkit_core.instrument import Instrument
from raftkit_core.network.disturbances import DROP
from raftkit_core.raft import Raft
from raftkit_core.runtime import command_runner, service
from raftkit_core.state_machine.interface import ApplyBatch
from raftkit_core.state_machine.kv import KvStateMachine
from raftkit_core.storage.interface import LogBatch, SnapshotSink
from raftkit_core.storage.memory import MemoryDisk, MemoryLogStorage, MemorySnapshotStorage
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


# --- plugins that hang ------------------------------------------------------------------------------------------------


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
