"""Client sessions over restarts of nodes whose machine is durable: remembered in the machine's own transaction."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from raftkit_core import Config, Node, Raft, SnapshotPolicy, open_raft
from raftkit_core.errors import PreconditionFailed, ResultForgotten, SessionExpired, Stopped
from raftkit_core.state_machine.sessions import RESULT_RECORD, SESSION_RECORD
from raftkit_core.testing.cluster import outcome
from raftkit_core.types.kv import CompareAndSet, Get, Put
from raftkit_core.types.operations import OpenSession
from raftkit_core.types.session import SessionRef, SessionSerial

CONFIG = Config(
    snapshot_policy=SnapshotPolicy.Never(),
    max_in_snapshot_log_to_keep=0,
    purge_batch_size=1,
    storage_stall_timeout_ms=60_000,
)


@asynccontextmanager
async def node(folder: Path) -> AsyncIterator[Raft]:
    async with open_raft(
        "n1",
        storage="sqlite:log.db",
        state_machine="sqlite-kv:kv.db",
        network=f"memory:{folder.name}",
        data_dir=folder,
        config=CONFIG,
    ) as raft:
        if raft.is_pristine:
            await raft.initialize({"n1": Node(f"memory:{folder.name}/n1")})
        await raft.wait(40).current_leader("n1")
        await raft.ensure_linearizable()
        yield raft


async def opened(raft: Raft, ttl_ms: int = 60_000) -> SessionRef:
    session: SessionRef = (await raft.call(OpenSession(ttl_ms))).session
    return session


def records(folder: Path) -> dict[bytes, bytes]:
    connection = sqlite3.connect(folder / "kv.db")
    try:
        return dict(connection.execute("SELECT k, v FROM records"))
    finally:
        connection.close()


@pytest.mark.parametrize("purge", [False, True])
async def test_a_restarted_node_remembers_sessions_and_results(tmp_path: Path, purge: bool) -> None:
    async with node(tmp_path) as raft:
        session = await opened(raft)
        first = await raft.write(Put("k", b"1"), session=SessionSerial(session, 1))
        await raft.write(Put("k", b"2"), session=SessionSerial(session, 2))
        refused = await outcome(raft.write(CompareAndSet("k", b"?", b"3"), session=SessionSerial(session, 4, 1)))
        if purge:
            raft.trigger().snapshot()
            await raft.wait(40).metrics(lambda m: m.purged is not None, "the log is purged")
        encoded = raft._core.worker.system.encode()
    async with node(tmp_path) as raft:
        assert isinstance(await outcome(raft.write(Put("k", b"1"), session=SessionSerial(session, 1))), ResultForgotten)
        again = await raft.write(Put("k", b"2"), session=SessionSerial(session, 2, 1))
        assert again.data.previous_revision == first.log_id.index
        refused_again = await outcome(raft.write(CompareAndSet("k", b"?", b"3"), session=SessionSerial(session, 4, 1)))
        assert isinstance(refused_again, PreconditionFailed)
        assert str(refused_again) == str(refused)
        assert (await raft.read(Get("k"))).value == b"2"
        assert len(encoded) > 100


async def test_sessions_come_from_the_machine_s_records_not_from_a_replay(tmp_path: Path) -> None:
    """The node is ended between the machine's transaction and anything else; its log is not replayed then."""
    async with node(tmp_path) as raft:
        session = await opened(raft)
        await raft.write(Put("k", b"1"), session=SessionSerial(session, 1))
        before = raft._core.worker.system.sessions.records()
        raft.fail(Stopped("killed"))
    stored = {key: value for key, value in records(tmp_path).items() if key.startswith((SESSION_RECORD, RESULT_RECORD))}
    assert stored == before
    assert len(stored) == 2
    async with node(tmp_path) as raft:
        assert raft._core.worker.system.sessions.records() == before
        await raft.write(Put("k", b"1"), session=SessionSerial(session, 1))
        assert (await raft.read(Get("k"))).revision == session.id + 1


async def test_a_closed_session_leaves_no_record(tmp_path: Path) -> None:
    async with node(tmp_path) as raft:
        async with raft.open_session() as session:
            await asyncio.gather(*(session.write(Put(f"k{number}", b"v")) for number in range(100)))
            assert any(key.startswith(RESULT_RECORD) for key in records(tmp_path))
        assert set(records(tmp_path)) == {b"time"}
        lost = await outcome(raft.write(Put("k", b"1"), session=SessionSerial(session.ref, 101)))
        assert isinstance(lost, SessionExpired)
