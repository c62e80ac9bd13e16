"""``redis://`` and ``redis-kv://`` under a whole node."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

from raftkit_core import Config, Node, open_raft
from raftkit_core.types.kv import Get, ListKeys, Put
from raftkit_core.types.metrics import RaftMetrics
from raftkit_core.types.operations import OpenSession
from raftkit_core.types.session import SessionRef, SessionSerial


async def test_a_node_restarts_on_its_log_and_its_state_in_redis(redis_server: Any, tmp_path: Path) -> None:
    prefix = f"t-{uuid.uuid4().hex[:12]}"
    place = f"127.0.0.1:{redis_server.port}/0?prefix={prefix}"
    seen: list[tuple[int | None, str | None]] = []
    for start in range(2):
        async with open_raft(
            "n1",
            storage=f"redis://{place}",
            state_machine=f"redis-kv://{place}",
            network=f"memory:{prefix}",
            data_dir=tmp_path,
            config=Config(),
        ) as raft:
            if start:
                before = await raft.status(digest=True)
                seen.append((before.applied, before.digest))
            else:
                await raft.initialize({"n1": Node(f"memory:{prefix}/n1")})
            await raft.wait(20).metrics(_leads, "to lead")
            if not start:
                watch = raft.watch("k19")
                await raft.client_write_many([Put(f"k{number:03}", b"v" * number) for number in range(200)])
                assert [(await anext(watch)).key for _ in range(10)] == [f"k{number}" for number in range(190, 200)]
                raft.trigger().snapshot()
                await raft.wait(20).metrics(_has_snapshot, "a snapshot")
                status = await raft.status(digest=True)
                seen.append((status.applied, status.digest))
            assert (await raft.read(Get("k007"))).value == b"v" * 7
            assert len(await raft.read(ListKeys("k1"))) == 100
            assert len(await raft.read(lambda machine: machine.query(ListKeys("k0")))) == 100
    assert seen[0] == seen[1]


async def test_what_sessions_remember_is_kept_with_the_data_in_redis(redis_server: Any, tmp_path: Path) -> None:
    prefix = f"t-{uuid.uuid4().hex[:12]}"
    place = f"127.0.0.1:{redis_server.port}/0?prefix={prefix}"
    told: list[Any] = []
    session: SessionRef | None = None
    for _ in range(2):
        async with open_raft(
            "n1",
            storage=f"redis://{place}",
            state_machine=f"redis-kv://{place}",
            network=f"memory:{prefix}",
            data_dir=tmp_path,
        ) as raft:
            if session is None:
                await raft.initialize({"n1": Node(f"memory:{prefix}/n1")})
                session = (await raft.call(OpenSession(60_000))).session
            await raft.wait(20).metrics(_leads, "to lead")
            for _ in range(2):
                done = await raft.write(Put("k", b"v"), session=SessionSerial(session, 7, 3))
                told.append((done.log_id, done.data))
            assert (await raft.read(Get("k"))).revision == told[0][0].index
    assert len(set(map(str, told))) == 1


def _leads(metrics: RaftMetrics) -> bool:
    return metrics.current_leader == "n1"


def _has_snapshot(metrics: RaftMetrics) -> bool:
    return metrics.snapshot is not None and metrics.snapshot == metrics.last_applied
