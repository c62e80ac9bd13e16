"""Between the moment a node fails and its end nothing leaves it, whatever was ready or on its way (S28)."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from raftkit_core.engine.commands import AppendInputEntries, PurgeLog, Respond
from raftkit_core.engine.engine import Engine
from raftkit_core.errors import NetworkError, StorageError
from raftkit_core.network.reply import Reply
from raftkit_core.state_machine.interface import ApplyBatch
from raftkit_core.state_machine.kv import KvStateMachine
from raftkit_core.storage.interface import LogBatch
from raftkit_core.storage.memory import MemoryLogStorage
from raftkit_core.testing.cluster import memory_cluster, outcome
from raftkit_core.types.entry import NORMAL, Entry
from raftkit_core.types.ids import NodeId
from raftkit_core.types.kv import Put
from raftkit_core.types.log_id import LogId

pytestmark = pytest.mark.virtual_time


class PurgesBreak(MemoryLogStorage):
    """Appends work, a purge fails."""

    def write(self, batch: LogBatch) -> None:
        if batch.purge_upto is not None:
            self.disk.fail_writes = StorageError("cannot purge")
        super().write(batch)


async def test_an_answer_that_is_durable_stays_if_the_write_behind_it_fails_in_the_same_step() -> None:
    """A follower on a durable machine: the append commits, which plans a purge; both are written before the answer."""
    async with memory_cluster(1, storage=PurgesBreak) as cluster:
        core = cluster.raft("n1")._core
        replies: list[Reply[Any]] = []

        def order(engine: Engine, now: float) -> None:
            state = engine.state
            last = LogId(engine.vote.leader_id, state.log.last_index + 1)
            request_id, reply = core.waiting.new_request(now + 5)
            replies.append(reply)
            append, purge = state.io.submit(now), state.io.submit(now)
            engine.commands += [
                AppendInputEntries(append, [Entry(last, 0, NORMAL, b"x")]),
                PurgeLog(purge, LogId(engine.vote.leader_id, 1)),
                Respond(append, request_id, "granted"),
            ]

        await outcome(cluster.raft("n1").external_request(order))
        assert core.fatal is not None
        assert not replies[0].done()
        await asyncio.sleep(0.1)
        assert replies[0].failed


class Slow(KvStateMachine):
    """Takes a second for the key ``slow``."""

    def apply(self, batch: ApplyBatch) -> Any:
        results = super().apply(batch)
        return self._later(results) if any(entry.command.key == "slow" for entry in batch.entries) else results

    async def _later(self, results: Any) -> Any:
        await asyncio.sleep(1)
        return results


async def test_an_append_that_waits_for_a_connection_does_not_leave_once_the_node_has_failed() -> None:
    """Its machine is still at work, so its connections are not closed yet."""
    async with memory_cluster(3, machine=Slow) as cluster:
        leader = await cluster.leader()
        leader.client_write_ff(Put("slow", b"1")).cancel()
        await asyncio.sleep(0.05)
        follower = next(node_id for node_id in ("n1", "n2", "n3") if node_id != leader.id)
        arrived: list[str] = []

        def look(src: NodeId, dst: NodeId, kind: str, _message: Any) -> float | None:
            if (src, dst) == (leader.id, follower):
                arrived.append(kind)
                if kind == "hello":
                    return 0.2
            return None

        cluster.hub.pre_hook = look
        network: Any = leader._core.peers._clients[follower][1]
        network._data._drop(NetworkError("the cable was pulled"))
        leader.client_write_ff(Put("b", b"1")).cancel()
        await asyncio.sleep(0.1)
        assert "hello" in arrived
        assert "append_entries" not in arrived
        arrived.clear()
        leader.fail(StorageError("broken"))
        await asyncio.sleep(0.3)
        assert arrived == []
