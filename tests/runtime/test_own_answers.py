"""However writes are joined, cut, refused and carried out, whoever writes hears of its own and of no other."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raftkit_core.config import Config
from raftkit_core.errors import CommandRejected, RaftError
from raftkit_core.raft import Raft
from raftkit_core.runtime import inbox
from raftkit_core.state_machine.kv_codec import KvCodec
from raftkit_core.state_machine.simple import SimpleStateMachine
from raftkit_core.storage.interface import LogBatch
from raftkit_core.storage.memory import MemoryDisk, MemoryLogStorage
from raftkit_core.testing.builders import log_id
from raftkit_core.testing.cluster import MemoryCluster, memory_cluster
from raftkit_core.types.condition import WriteCondition
from raftkit_core.types.entry import NORMAL, decode_envelope
from raftkit_core.types.kv import Put, WriteResult

pytestmark = pytest.mark.virtual_time

TIGHT = Config(max_uncommitted_bytes=2000, max_entry_bytes=1500)


class Unsteady(MemoryLogStorage):
    """Some writes are finished at once, others later."""

    def __init__(self, disk: MemoryDisk) -> None:
        super().__init__(disk)
        self._random = Random(disk.name)
        self.takes_columns = self._random.random() < 0.5  # type: ignore[misc]

    def write(self, batch: LogBatch) -> Awaitable[None] | None:  # type: ignore[override]
        if self._random.random() < 0.5:
            return super().write(batch)
        return self._later(batch)

    async def _later(self, batch: LogBatch) -> None:
        await asyncio.sleep(self._random.choice([0.0, 0.002]))
        super().write(batch)


class Writers:
    """Callers with nothing in common, each of whom puts something that nobody else does."""

    def __init__(self, random: Random) -> None:
        self.random = random
        self.told: dict[bytes, asyncio.Future[Any]] = {}
        self._number = 0

    def command(self, revision: int | None = None) -> Put:
        self._number += 1
        value = b"%d " % self._number + bytes(self.random.choice([0, 3, 200, 1000]))
        return Put(self.random.choice("abc"), value, if_revision=revision)

    def write(self, raft: Raft) -> None:
        """One of the ways to write."""
        match self.random.randrange(8):
            case 0:
                commands = [self.command() for _ in range(self.random.randrange(1, 4))]
                together = asyncio.ensure_future(raft.client_write_many(commands))
                for place, each in enumerate(commands):
                    self.told[each.value] = asyncio.ensure_future(_part(together, place))
            case 1:
                condition = WriteCondition(last_log_id=self.random.choice([raft._core.engine.state.last_log_id, ZERO]))
                command = self.command()
                self.told[command.value] = asyncio.ensure_future(raft.client_write(command, condition=condition))
            case 2:
                command = self.command(revision=10**6)  # which the machine refuses
                self.told[command.value] = raft.client_write_ff(command)
            case _:
                command = self.command()
                future = self.told[command.value] = raft.client_write_ff(command)
                if self.random.random() < 0.1:
                    future.cancel()


ZERO = log_id(0, "", 0)


async def _part(together: asyncio.Future[list[Any]], place: int) -> Any:
    answer = (await asyncio.shield(together))[place]
    if isinstance(answer, RaftError):
        raise answer
    return answer


@settings(max_examples=25)
@given(st.integers(0, 2**32))
async def test_whoever_writes_hears_of_its_own_entry(seed: int) -> None:
    random = Random(seed)
    voters = random.choice([1, 3])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inbox, "MAX_JOINED", random.choice([1, 2, 5, 1024]))
        async with memory_cluster(voters, config=TIGHT, storage=Unsteady, seed=seed) as cluster:
            writers = Writers(random)
            for _ in range(random.randrange(2, 8)):
                raft = await cluster.leader()
                for _ in range(random.randrange(1, 12)):
                    writers.write(raft)
                    if random.random() < 0.2:
                        await asyncio.sleep(random.choice([0, 0.001]))
                if voters > 1 and random.random() < 0.2:
                    cluster.hub.isolate(raft.id)
                    await asyncio.sleep(2)
                    cluster.hub.heal()
            await asyncio.wait(list(writers.told.values()), timeout=20)
            leader = await cluster.leader()
            await leader.write(Put("z", b"the end"))
            await cluster.applied(leader.metrics().value.last_log_index or 0)
            check(cluster, writers)


def check(cluster: MemoryCluster, writers: Writers) -> None:
    decode = KvCodec().decode_command
    logs = [cluster.log(node_id) for node_id in cluster.rafts]
    assert all(log == logs[0] for log in logs)
    assert len({raft.machine.digest() for raft in cluster.rafts.values()}) == 1, "leaders and followers apply alike"
    places = {decode(decode_envelope(e.payload).body).value: e.log_id for e in logs[0] if e.kind == NORMAL}
    assert len(places) == sum(e.kind == NORMAL for e in logs[0]), "nothing is there twice"
    for value, future in writers.told.items():
        assert future.done(), "everybody is told"
        if future.cancelled():
            continue
        error = future.exception()
        if error is None:
            done = future.result()
            assert places[value] == done.log_id
            assert isinstance(done.data, WriteResult)
            assert done.data.revision == done.log_id.index
        elif isinstance(error, CommandRejected):
            assert value in places, "the machine refused it"
        else:
            assert isinstance(error, RaftError)
            assert error.outcome == "unknown" or value not in places, f"{error!r} is definite"


class Notes(SimpleStateMachine):
    """Keeps every list it is given, as it came."""

    name = "notes/1"
    command_type = list[int]
    result_type = int

    def __init__(self) -> None:
        self.notes: list[list[int]] = []

    def apply(self, command: list[int]) -> int:
        self.notes.append(command)
        return len(self.notes)

    def get_state(self) -> Any:
        return self.notes

    def set_state(self, state: Any) -> None:
        self.notes = state


@pytest.mark.parametrize("voters", [1, 3])
async def test_what_a_caller_does_with_a_command_afterwards_changes_nothing(voters: int) -> None:
    """Every node, the leader too, applies what is in the log."""
    async with memory_cluster(voters, machine=Notes) as cluster:
        leader = await cluster.leader()
        written = []
        for number in range(4):
            command = [number]
            if number < 2:
                written.append(leader.client_write_ff(command))
                command.append(99)
            else:
                await leader.client_write(command)
                command.append(99)
        assert [(await each).data for each in written] == [1, 2]
        await cluster.applied(leader.metrics().value.last_log_index or 0)
        for raft in cluster.rafts.values():
            machine = raft.machine
            assert isinstance(machine, Notes)
            assert machine.notes == [[0], [1], [2], [3]]
