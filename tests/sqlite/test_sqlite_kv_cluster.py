"""``sqlite:`` and ``sqlite-kv:`` under whole nodes: write, restart, install a snapshot, purge, find the same state."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from raftkit_core import Config, Node, Raft, ReadPolicy, SnapshotPolicy, open_raft
from raftkit_core.errors import Compacted, Stopped, StoreLostWrites
from raftkit_core.types.kv import Delete, Get, ListKeys, Put
from raftkit_core.types.log_id import index_of

AMPLE_MS = 60_000
"""A disk that is busy with others does not cost the leader its place."""
CONFIG = Config(
    snapshot_policy=SnapshotPolicy.Never(),
    max_in_snapshot_log_to_keep=0,
    purge_batch_size=1,
    storage_stall_timeout_ms=AMPLE_MS,
)
VOTERS = ("n1", "n2", "n3")
WRITES = 30
_hubs = itertools.count(1)


class Nodes:
    """Nodes in folders of their own, on one memory hub."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.hub = f"sqlite-kv-{next(_hubs)}"
        self.rafts: dict[str, Raft] = {}
        self._stacks: dict[str, AsyncExitStack] = {}

    def node(self, node_id: str) -> Node:
        return Node(f"memory:{self.hub}/{node_id}")

    async def start(self, *node_ids: str, config: Config = CONFIG) -> None:
        for node_id in node_ids:
            stack = self._stacks[node_id] = AsyncExitStack()
            self.rafts[node_id] = await stack.enter_async_context(
                open_raft(
                    node_id,
                    storage="sqlite:log.db",
                    state_machine="sqlite-kv:kv.db",
                    network=f"memory:{self.hub}",
                    data_dir=self.folder / node_id,
                    config=config,
                )
            )

    async def stop(self, *node_ids: str) -> None:
        for node_id in node_ids:
            del self.rafts[node_id]
            await self._stacks.pop(node_id).aclose()

    async def stop_all(self) -> None:
        for node_id in list(self.rafts):
            self.rafts[node_id].fail(Stopped("all stop at once"))  # no time for handing leadership over
        await self.stop(*list(self.rafts))

    async def leader(self) -> Raft:
        for raft in self.rafts.values():
            metrics = await raft.wait(40).metrics(lambda m: m.current_leader in self.rafts, "a leader")
            return self.rafts[str(metrics.current_leader)]
        raise AssertionError("no node runs")

    async def digests(self, index: int) -> set[tuple[int | None, str | None]]:
        found = set()
        for raft in self.rafts.values():
            await raft.wait(40).applied_index_at_least(index)
            status = await raft.status(digest=True)
            found.add((status.applied, status.digest))
        return found


@asynccontextmanager
async def nodes(folder: Path) -> AsyncIterator[Nodes]:
    made = Nodes(folder)
    try:
        yield made
    finally:
        await made.stop_all()


def have_snapshot_files(folder: Path) -> set[str]:
    return {path.parent.parent.name for path in folder.glob("*/snapshots/*")}


async def last_index(raft: Raft) -> int:
    return index_of(await raft.ensure_linearizable(ReadPolicy.READ_INDEX))


async def test_three_nodes_restart_on_their_files_and_a_learner_gets_the_state_by_snapshot(tmp_path: Path) -> None:
    async with nodes(tmp_path) as made:
        await made.start(*VOTERS)
        await made.rafts["n1"].initialize({node_id: made.node(node_id) for node_id in VOTERS})
        leader = await made.leader()
        await leader.client_write_many([Put(f"k{number:03}", b"v" * number) for number in range(300)])
        index = (await leader.write(Put("k000", b"last", if_revision=None))).log_id.index
        [before] = await made.digests(index)
        times = {raft.id: (await raft.status()).applied_time_ms for raft in made.rafts.values()}

        await made.stop_all()
        await made.start(*VOTERS)
        for raft in made.rafts.values():
            status = await raft.status(digest=True)
            assert status.applied is not None
            assert status.applied >= index, "a durable machine stands where it stopped, before any leader speaks"
            assert status.applied_time_ms >= times[raft.id]
            assert raft.metrics().value.snapshot is None
        leader = await made.leader()
        assert (await made.rafts["n2"].read(Get("k000"))).value == b"last"
        assert len(await made.rafts["n3"].read(ListKeys("k"))) == 300
        [(applied, digest)] = await made.digests(await last_index(leader))
        assert digest == before[1]

        # A snapshot, a purge that goes no further, and a learner that can only get the snapshot.
        leader = await made.leader()
        leader.trigger().snapshot()
        held = await leader.wait(40).metrics(lambda m: m.purged is not None and m.purged == m.snapshot, "a purge")
        assert held.last_applied is not None
        assert index_of(held.purged) <= held.last_applied.index
        await made.start("n4")
        await leader.add_learner("n4", made.node("n4"), blocking=True)
        await leader.write(Put("after", b"snapshot"))
        [(applied, digest)] = await made.digests(await last_index(leader))
        n4 = made.rafts["n4"].metrics().value
        assert n4.snapshot is not None
        assert index_of(n4.purged) <= index_of(n4.last_applied)

        await made.stop("n4")
        await made.start("n4")
        status = await made.rafts["n4"].status(digest=True)
        assert (status.applied, status.digest) == (applied, digest)


async def test_a_durable_machine_writes_no_snapshot_until_a_learner_needs_one(tmp_path: Path) -> None:
    kept = 2 * WRITES  # all are level before each batch: what a slow voter lacks of it is never purged before it has it
    config = Config(
        snapshot_policy=SnapshotPolicy.LogsSinceLast(20),
        max_in_snapshot_log_to_keep=kept,
        purge_batch_size=1,
        storage_stall_timeout_ms=AMPLE_MS,
    )
    async with nodes(tmp_path) as made:
        await made.start(*VOTERS, config=config)
        await made.rafts["n1"].initialize({node_id: made.node(node_id) for node_id in VOTERS})
        leader = await made.leader()
        for _ in range(8):
            await leader.client_write_many([Put(f"k{number:03}", b"v" * number) for number in range(WRITES)])
            await made.digests(await last_index(leader))
        for raft in made.rafts.values():
            held = await raft.wait(40).metrics(lambda m: index_of(m.purged) > 100, "a purge by policy")
            assert held.snapshot is None, "the log goes behind what is applied, no file was written for that"
            assert index_of(held.purged) <= index_of(held.last_applied) - kept
        assert have_snapshot_files(tmp_path) == set()

        await made.stop_all()
        await made.start(*VOTERS, config=config)
        leader = await made.leader()
        assert len(await leader.read(ListKeys("k"))) == WRITES, "a restart needs no snapshot"
        await made.start("n4", config=config)
        await leader.add_learner("n4", made.node("n4"), blocking=True)
        await made.digests(await last_index(leader))
        assert have_snapshot_files(tmp_path) == {leader.id, "n4"}


async def test_cluster_time_comes_with_a_snapshot_and_stays_when_the_node_restarts(tmp_path: Path) -> None:
    async with nodes(tmp_path) as made:
        await made.start("n1", "n2")
        raft = made.rafts["n1"]
        await raft.initialize({"n1": made.node("n1")})
        await raft.wait(40).current_leader("n1")
        await raft.write(Put("k", b"v"))
        await raft.add_learner("n2", made.node("n2"), blocking=True)
        await made.stop("n2")
        behind = (await raft.status()).applied_time_ms
        while (await raft.status()).applied_time_ms <= behind:  # it moves with entries, in milliseconds
            await raft.write(Put("k", b"v"))
        raft.trigger().snapshot()
        purged = (
            await raft.wait(40).metrics(lambda m: m.purged is not None and m.purged == m.snapshot, "a purge")
        ).purged
        time_ms = (await raft.status()).applied_time_ms

        for _ in range(2):  # by snapshot alone: nothing was written after it
            await made.start("n2")
            await made.rafts["n2"].wait(40).applied_index_at_least(index_of(purged))
            status = await made.rafts["n2"].status()
            assert (status.snapshot, status.applied, status.applied_time_ms) == (
                index_of(purged),
                index_of(purged),
                time_ms,
            )
            await made.stop("n2")


async def test_the_digest_of_a_busy_node_belongs_to_the_position_beside_it(tmp_path: Path) -> None:
    async with nodes(tmp_path) as made:
        await made.start("n1")
        raft = made.rafts["n1"]
        await raft.initialize({"n1": made.node("n1")})
        await (await made.leader()).write(Put("k", b"first"))
        digests: dict[int | None, str | None] = {}

        async def look() -> None:
            status = await raft.status(digest=True)
            assert status.digest is not None
            assert digests.setdefault(status.applied, status.digest) == status.digest

        writes: list[asyncio.Future[Any]] = []
        for number in range(30):
            writes.append(asyncio.ensure_future(raft.write(Put("k", b"%d" % number))))
            await asyncio.gather(look(), look())
        await asyncio.gather(*writes)
        await look()
        assert len(set(digests.values())) == len(digests)


async def test_a_state_without_its_log_is_refused_and_a_lost_state_is_rebuilt_from_the_log(tmp_path: Path) -> None:
    async with nodes(tmp_path) as made:
        await made.start("n1")
        await made.rafts["n1"].initialize({"n1": made.node("n1")})
        raft = await made.leader()
        index = (await raft.write(Put("a", b"1"))).log_id.index
        [(_, digest)] = await made.digests(index)
        await made.stop_all()

        for file in (tmp_path / "n1").glob("kv.db*"):
            file.rename(tmp_path / file.name)
        await made.start("n1")
        raft = await made.leader()
        assert (await raft.read(Get("a"))).value == b"1"
        [(_, rebuilt)] = await made.digests(index)
        assert rebuilt == digest
        await made.stop_all()

        for file in (tmp_path / "n1").glob("log.db*"):
            file.unlink()
        with pytest.raises(StoreLostWrites):
            await made.start("n1")


async def test_a_watch_sees_what_sqlite_applied_and_after_a_restart_begins_behind_its_disk(tmp_path: Path) -> None:
    async with nodes(tmp_path) as running:
        await running.start("n1")
        await running.rafts["n1"].initialize({"n1": running.node("n1")})
        raft = await running.leader()
        watch = raft.watch()
        await raft.client_write_many([Put("a", b"1"), Put("a", b"2", if_revision=99), Delete("absent"), Delete("a")])
        events = [await anext(watch), await anext(watch)]
        assert [(event.key, event.value) for event in events] == [("a", b"1"), ("a", None)]
        last = events[-1].revision
        await running.stop("n1")
        await running.start("n1")
        raft = await running.leader()
        with pytest.raises(Compacted) as caught:
            raft.watch("", last)
        assert caught.value.oldest == last + 1
        watch = raft.watch("", last + 1)
        await raft.write(Put("b", b""))
        assert (await anext(watch)).key == "b"
