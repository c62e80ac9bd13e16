"""Stores to look at, copy and recover: one log in several adapters, and a storage that dies at a chosen write."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from raftkit_core import load_plugins
from raftkit_core.clock import SystemClock
from raftkit_core.offline.store import write_log
from raftkit_core.storage.interface import LogBatch, RaftLogStorage, RaftSnapshotStorage
from raftkit_core.storage.memory import MemoryDisk, MemoryLogStorage
from raftkit_core.storage.snapshot_format import SnapshotHeader, encode_snapshot
from raftkit_core.types.adapter import AdapterContext
from raftkit_core.types.entry import BLANK, MEMBERSHIP, NORMAL, Entry, Envelope, encode_envelope, encode_membership
from raftkit_core.types.identity import StoreIdentity
from raftkit_core.types.log_id import LogId
from raftkit_core.types.membership import Membership, Node, StoredMembership
from raftkit_core.types.snapshot import SnapshotMeta
from raftkit_core.types.vote import LeaderId, Vote

ZERO = LogId(LeaderId(0, ""), 0)
MEMBERS = Membership.of(
    [("n1", "n2", "n3")],
    {f"n{number}": Node(f"memory:hub/n{number}", store_id=str(number) * 32) for number in (1, 2, 3)},
)


def log_id(term: int, node: str, index: int) -> LogId:
    return LogId(LeaderId(term, node), index)


def _onefile() -> Any:
    """An adapter that is none of ours."""
    path = Path(__file__).parents[2] / "docs" / "examples" / "onefile_storage.py"
    spec = importlib.util.spec_from_file_location("onefile_storage", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # msgspec looks its types up there
    spec.loader.exec_module(module)
    return module


class Stores:
    """Makes stores in a folder, by adapter URL. Two URLs of one node share its snapshots, as a node's do."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.plugins = load_plugins([_onefile()])
        self._disks: dict[str, MemoryDisk] = {}

    def context(self, node_id: str = "n1", cluster: str = "demo") -> AdapterContext:
        data_dir = self.folder / node_id
        data_dir.mkdir(exist_ok=True)
        return AdapterContext(node_id, clock=SystemClock(), cluster=cluster, data_dir=data_dir)

    def log(self, url: str, node_id: str = "n1") -> RaftLogStorage:
        if url.startswith("memory:"):
            return MemoryLogStorage(self._disks.setdefault(f"{node_id} {url}", MemoryDisk(url)))
        return self.plugins.log_storage(url, self.context(node_id))

    def snapshots(self, node_id: str = "n1") -> RaftSnapshotStorage:
        context = self.context(node_id)
        return self.plugins.snapshot_storage(f"file:{context.data_dir}/snapshots", context)

    async def make(
        self,
        url: str = "sqlite:raft.db",
        node_id: str = "n1",
        *,
        entries: int = 6,
        leaders: tuple[tuple[int, str, int], ...] = ((1, "n1", 1), (2, "n2", 4)),
        committed: int | None = None,
        purged: int | None = None,
        cluster_id: str = "c" * 32,
        vote: Vote | None = None,
    ) -> list[Entry]:
        """A store of ``node_id``: entry 0 the membership, then ``entries`` more; ``leaders`` says from which index each
        leads. With ``purged`` a snapshot covers up to there."""
        made = [Entry(ZERO, 0, MEMBERSHIP, encode_membership(MEMBERS))]
        for index in range(1, entries + 1):
            term, leader, since = next(each for each in reversed(leaders) if each[2] <= index)
            at = log_id(term, leader, index)
            envelope = encode_envelope(Envelope(1, "kv/1", 0, 0, 0, b"body %d" % index))
            made.append(Entry(at, 10 * index, BLANK if index == since else NORMAL, b"" if index == since else envelope))
        log = self.log(url, node_id)
        try:
            assert await log.open(self.context(node_id)) is None
            await log.save_identity(self.identity(node_id, cluster_id=cluster_id))
            last = made[-1].log_id
            await write_log(log, LogBatch(vote=vote or Vote(last.leader_id, True), entries=made))
            await write_log(log, LogBatch(committed=made[len(made) - 1 if committed is None else committed].log_id))
            if purged is not None:
                await self.publish(made[purged].log_id, node_id, cluster_id=cluster_id)
                await write_log(log, LogBatch(purge_upto=made[purged].log_id))
        finally:
            await log.close()
        return made

    def identity(self, node_id: str, *, cluster_id: str = "c" * 32) -> StoreIdentity:
        return StoreIdentity(
            node_id, node_id.removeprefix("n") * 32, "demo", cluster_id=cluster_id, machine="kv/1", largest_lease_ms=500
        )

    async def publish(self, last: LogId, node_id: str = "n1", *, cluster_id: str = "c" * 32) -> SnapshotMeta:
        meta = SnapshotMeta(last, StoredMembership(ZERO, MEMBERS), "a1", 10 * last.index)
        snapshots = self.snapshots(node_id)
        try:
            await snapshots.open(self.context(node_id))
            sink = await snapshots.sink("a1")
            header = SnapshotHeader.of(meta, cluster_id=cluster_id, machine="kv/1")
            async for piece in encode_snapshot(header, b"", _chunks()):
                await sink.write(piece)
            return await sink.publish(meta)
        finally:
            await snapshots.close()


async def _chunks() -> AsyncIterator[bytes]:
    yield b"\x81\xa1k\xc4\x01v" * 100


class Killed(Exception):
    """The process died here."""


class MortalStorage(RaftLogStorage):
    """A log storage that dies *before* its ``writes``-th write or saved identity."""

    def __init__(self, inner: RaftLogStorage, writes: int) -> None:
        self._inner = inner
        self.left = writes

    def _count(self) -> None:
        if self.left == 0:
            raise Killed
        self.left -= 1

    async def open(self, context: AdapterContext) -> StoreIdentity | None:
        return await self._inner.open(context)

    async def save_identity(self, identity: StoreIdentity) -> None:
        self._count()
        await self._inner.save_identity(identity)

    async def close(self) -> None:
        await self._inner.close()

    async def info(self) -> Any:
        return await self._inner.info()

    async def read_state(self) -> Any:
        return await self._inner.read_state()

    async def read(self, start: int, stop: int, max_bytes: int) -> list[Entry]:
        return await self._inner.read(start, stop, max_bytes)

    async def write(self, batch: LogBatch) -> None:
        self._count()
        await write_log(self._inner, batch)


@pytest.fixture
def stores(tmp_path: Path) -> Stores:
    return Stores(tmp_path)


@pytest.fixture
def mortal() -> Callable[[RaftLogStorage, int], MortalStorage]:
    return MortalStorage


@pytest.fixture
def killed() -> type[Exception]:
    return Killed
