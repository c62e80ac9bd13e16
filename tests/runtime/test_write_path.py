"""A room for every line (DESIGN §3): one write is followed through the functions that carry it, in order.

The table of ARCHITECTURE.md is this list; a step that moves house fails here first.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import raftkit_core
from raftkit_core.engine.commands import AppendInputEntries
from raftkit_core.errors import Fatal
from raftkit_core.instrument import Instrument
from raftkit_core.testing.cluster import memory_cluster
from raftkit_core.types.kv import Put

pytestmark = pytest.mark.virtual_time

ROOT = Path(raftkit_core.__file__).parent

WRITE_PATH = [
    ("raft.py", "Raft.client_write"),
    ("runtime/envelopes.py", "Envelopes.of"),
    ("runtime/inbox.py", "Inbox.propose"),
    ("runtime/raft_core.py", "RaftCore._drain_inbox"),
    ("runtime/client_writes.py", "ClientWrites._write"),
    ("engine/engine.py", "Engine.handle_client_write"),
    ("engine/handlers/leader.py", "LeaderHandler.append"),
    ("engine/handlers/replication.py", "ReplicationHandler.initiate"),
    ("runtime/waiting_clients.py", "WaitingClients.wait_for_all"),
    ("runtime/command_runner.py", "CommandRunner.run"),
    ("runtime/log_writer.py", "LogWriter.append"),
    ("runtime/replication.py", "ReplicationStream.replicate"),
    ("runtime/log_writer.py", "LogWriter.kick"),
    ("storage/memory.py", "MemoryLogStorage.write"),
    ("engine/engine.py", "Engine.on_log_flushed"),
    ("runtime/raft_core.py", "RaftCore.append_answered"),
    ("engine/engine.py", "Engine.on_replication_progress"),
    ("engine/handlers/replication.py", "ReplicationHandler.try_commit"),
    ("engine/handlers/replication.py", "ReplicationHandler.commit_to"),
    ("engine/handlers/replication.py", "ReplicationHandler.apply_durable"),
    ("runtime/state_machine_worker.py", "StateMachineWorker.commit"),
    ("state_machine/kv.py", "KvStateMachine.apply"),
    ("runtime/raft_core.py", "RaftCore.applied"),
    ("runtime/waiting_clients.py", "WaitingClients.resolve_all"),
]
FOLLOWER_PATH = [
    ("runtime/service.py", "PeerService.append_entries"),
    ("runtime/raft_core.py", "RaftCore.append_arrived"),
    ("engine/engine.py", "Engine.handle_append_entries"),
    ("engine/handlers/following.py", "FollowingHandler.handle_append"),
    ("runtime/log_writer.py", "LogWriter.append"),
    ("runtime/command_runner.py", "CommandRunner.must_wait"),
    ("storage/memory.py", "MemoryLogStorage.write"),
    ("runtime/waiting_clients.py", "WaitingClients.respond"),
    ("engine/engine.py", "Engine.on_log_flushed"),
]


class Calls:
    """Every function of the package that begins while it looks, in order."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str]] = []

    def __enter__(self) -> Calls:
        self._before = sys.getprofile()
        sys.setprofile(self._note)
        return self

    def __exit__(self, *exc_info: object) -> None:
        sys.setprofile(self._before)

    def _note(self, frame: FrameType, event: str, _argument: Any) -> None:
        if event == "call":
            path = Path(frame.f_code.co_filename)
            if path.is_relative_to(ROOT):
                self.seen.append((path.relative_to(ROOT).as_posix(), frame.f_code.co_qualname))

    def missing_from(self, path: list[tuple[str, str]]) -> list[tuple[str, str]]:
        """Steps that did not come after the one before them."""
        position, missing = 0, []
        for step in path:
            try:
                position = self.seen.index(step, position) + 1
            except ValueError:
                missing.append(step)
        return missing


@pytest.mark.interpreted("looks at Python frames")
async def test_a_write_goes_through_every_room_in_order() -> None:
    async with memory_cluster(3) as cluster:
        leader = await cluster.leader()
        await leader.client_write(Put("warm", b"up"))
        with Calls() as calls:
            await leader.client_write(Put("a", b"1"))
        assert calls.missing_from(WRITE_PATH) == []
        assert calls.missing_from(FOLLOWER_PATH) == []


async def test_the_steps_of_a_write_are_traced_for_whoever_listens() -> None:
    class Tracing(Instrument):
        def __init__(self) -> None:
            self.steps: list[str] = []

        def trace(self, step: str) -> None:
            self.steps.append(step)

    tracing = Tracing()
    async with memory_cluster(0) as cluster:
        raft = await cluster.start("n1", instruments=[tracing])
        await raft.initialize(cluster.members("n1"))
        await cluster.leader()
        tracing.steps.clear()
        await raft.client_write(Put("a", b"1"))
    assert tracing.steps == [
        "RaftCore.write",
        "CommandRunner.append_input_entries",
        "CommandRunner.commit",
        "RaftCore.applied",
    ]


async def test_a_write_costs_no_task_and_no_storage_read_while_the_cluster_is_steady() -> None:
    async with memory_cluster(3) as cluster:
        leader = await cluster.leader()
        await leader.client_write(Put("warm", b"up"))
        loop = asyncio.get_running_loop()
        made: list[str] = []

        def factory(loop: asyncio.AbstractEventLoop, coro: Any, **options: Any) -> asyncio.Task[Any]:
            made.append(getattr(coro, "__qualname__", repr(coro)))
            return asyncio.Task(coro, loop=loop, **options)

        loop.set_task_factory(factory)  # type: ignore[arg-type]
        with Calls() as calls:
            for number in range(10):
                await leader.client_write(Put(f"k{number}", b"v"))
        loop.set_task_factory(None)
        assert made == []
        assert ("storage/memory.py", "MemoryLogStorage.read") not in calls.seen


async def test_a_caller_that_writes_alone_waits_for_no_turn_of_the_loop() -> None:
    """Nobody will join its write: it is in the log when the call returns."""
    async with memory_cluster(3) as cluster:
        core = (leader := await cluster.leader())._core
        payload, _ = leader._envelopes.of(Put("a", b"1"))
        for _ in range(3):
            await core.propose(payload, 1.0)
        before = core.engine.state.log.last_index
        written = core.propose(payload, 1.0)
        assert core.engine.state.log.last_index == before + 1
        second = core.propose(payload, 1.0)  # somebody waits: this one is not alone, others may join it
        third = core.propose(payload, 1.0)
        assert core.engine.state.log.last_index == before + 1
        assert [(await each).log_id.index for each in (written, second, third)] == [before + 1, before + 2, before + 3]


async def test_callers_that_write_side_by_side_share_an_append_from_the_first_round_on() -> None:
    async with memory_cluster(3) as cluster:
        core = (leader := await cluster.leader())._core
        payload, _ = leader._envelopes.of(Put("a", b"1"))
        appends: list[int] = []
        append = core.writer.append
        core.runner._actions[AppendInputEntries] = lambda order: appends.append(len(order.entries)) or append(order)

        async def write() -> None:
            for _ in range(5):
                await core.propose(payload, 1.0)

        await asyncio.gather(*[write() for _ in range(4)])
        assert sum(appends) == 20
        assert appends == [4] * 5


async def test_a_single_voter_whose_writes_need_nobody_leaves_others_their_time() -> None:
    async with memory_cluster(1) as cluster:
        leader = await cluster.leader()
        turns = 0

        async def others() -> None:
            nonlocal turns
            while True:
                await asyncio.sleep(0)
                turns += 1

        running = asyncio.create_task(others())
        for number in range(100):
            await leader.client_write(Put("a", b"%d" % number))
        running.cancel()
        assert turns >= 90


@pytest.mark.interpreted("replaces methods of the engine")
@pytest.mark.parametrize("alone", [True, False])
async def test_an_engine_that_breaks_on_a_write_stops_the_node_and_whoever_wrote_is_told(alone: bool) -> None:
    async with memory_cluster(3) as cluster:
        core = (leader := await cluster.leader())._core
        payload, _ = leader._envelopes.of(Put("a", b"1"))
        for _ in range(3):
            await core.propose(payload, 1.0)
        if not alone:
            await asyncio.gather(*(core.propose(payload, 1.0) for _ in range(3)))

        def broken(*arguments: object) -> None:
            raise AssertionError("a state that cannot be")

        core.engine.handle_client_write = broken  # type: ignore[method-assign]
        written = [core.propose(payload, 1.0) for _ in range(1 if alone else 3)]
        assert (core.fatal is not None) is alone, "its own turn, or the next one"
        for each in written:
            with pytest.raises(Fatal) as raised:
                await asyncio.wait_for(each, 5)
            assert raised.value.outcome == "unknown"
        assert isinstance(core.fatal, AssertionError)
