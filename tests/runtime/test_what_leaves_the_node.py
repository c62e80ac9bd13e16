"""The rows of "what may leave when" (DESIGN §4), watched on the wire, over a storage that finishes later.

Every answer is compared with what is durable at the moment it leaves, in elections, replication and failover.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from random import Random
from typing import Any

import pytest

from raftkit_core.config import Config
from raftkit_core.network.interface import RaftService
from raftkit_core.network.memory import MemoryNetworkFactory
from raftkit_core.storage.interface import LogBatch
from raftkit_core.storage.memory import MemoryDisk, MemoryLogStorage
from raftkit_core.testing.cluster import MemoryCluster, memory_cluster, outcome
from raftkit_core.types.entry import BLANK, Entry
from raftkit_core.types.identity import PeerIdentity
from raftkit_core.types.ids import NodeId
from raftkit_core.types.kv import Get, Put
from raftkit_core.types.log_id import LogId, index_of, log_id_le
from raftkit_core.types.messages import (
    AppendEntriesRequest,
    Busy,
    Conflict,
    HeartbeatRequest,
    HigherVote,
    Success,
    VoteRequest,
)
from raftkit_core.types.vote import LeaderId, Vote

pytestmark = pytest.mark.virtual_time


class LateStorage(MemoryLogStorage):
    """Every write takes some milliseconds; only then it is on the disk."""

    def __init__(self, disk: MemoryDisk) -> None:
        super().__init__(disk)
        self._random = Random(disk.name)
        self.gate = asyncio.Event()
        self.gate.set()

    def write(self, batch: LogBatch) -> Awaitable[None]:  # type: ignore[override]
        return self._later(batch)

    async def _later(self, batch: LogBatch) -> None:
        await asyncio.sleep(self._random.uniform(0.0, 0.03))
        await self.gate.wait()
        super().write(batch)


def holds(disk: MemoryDisk, log_id: LogId | None) -> bool:
    """Whether ``log_id`` is durable."""
    if log_id is None or log_id.index <= index_of(disk.last_purged):
        return True
    return any(entry.log_id == log_id for entry in disk.entries)


class Watched:
    """A node's service, with every answer checked as it leaves."""

    def __init__(self, service: RaftService, disk: MemoryDisk, seen: list[str]) -> None:
        self._service = service
        self._disk = disk
        self._seen = seen

    def __getattr__(self, name: str) -> Any:
        return getattr(self._service, name)

    def append_entries(self, request: AppendEntriesRequest, peer: PeerIdentity) -> Awaitable[Any]:
        return self._watch("append", self._service.append_entries(request, peer), request.vote, self._check_append)

    def heartbeat(self, request: HeartbeatRequest, peer: PeerIdentity) -> Awaitable[Any]:
        return self._watch("heartbeat", self._service.heartbeat(request, peer), request.vote, self._check_append)

    def vote(self, request: VoteRequest, peer: PeerIdentity) -> Awaitable[Any]:
        return self._watch("vote", self._service.vote(request, peer), request.vote, self._check_vote)

    def _watch(
        self, kind: str, answer: Awaitable[Any], vote: Vote, check: Callable[[Any, Vote], None]
    ) -> Awaitable[Any]:
        future = asyncio.ensure_future(answer)

        def leaves(done: asyncio.Future[Any]) -> None:
            if not done.cancelled() and done.exception() is None:
                check(done.result(), vote)
                self._seen.append(f"{kind} {type(done.result()).__name__}")

        future.add_done_callback(leaves)
        return future

    def _check_append(self, response: Any, vote: Vote) -> None:
        if isinstance(response, Success):
            assert self._disk.vote == vote, f"Success under {vote}, durable is {self._disk.vote}"
            assert holds(self._disk, response.matching), f"Success up to {response.matching} before it is durable"
        elif isinstance(response, Busy | Conflict):
            assert self._disk.vote == vote
        elif isinstance(response, HigherVote):
            assert self._disk.vote == response.vote

    def _check_vote(self, response: Any, vote: Vote) -> None:
        if response.granted:
            assert self._disk.vote == vote, f"granted {vote}, durable is {self._disk.vote}"
            assert log_id_le(response.last_log_id, self._disk.last_log_id) or holds(self._disk, response.last_log_id)


def watched_network(cluster_of: list[MemoryCluster], seen: list[str]) -> Callable[[str, NodeId], MemoryNetworkFactory]:
    class WatchedNetwork(MemoryNetworkFactory):
        async def serve(self, group: str, service: RaftService) -> None:
            watched: Any = Watched(service, cluster_of[0].disk(self.node_id), seen)
            await super().serve(group, watched)

    return WatchedNetwork


@pytest.mark.parametrize("seed", range(4))
async def test_no_answer_leaves_before_what_it_says_is_durable(seed: int) -> None:
    seen: list[str] = []
    holder: list[MemoryCluster] = []
    cluster = MemoryCluster(seed=seed, storage=LateStorage, network=watched_network(holder, seen))
    holder.append(cluster)
    names = ("n1", "n2", "n3")
    try:
        for node_id in names:
            await cluster.start(node_id)
        await cluster.raft("n1").initialize(cluster.members(*names))
        acknowledged: list[str] = []
        random = Random(seed)
        for turn in range(6):
            leader = await cluster.leader()
            results = await asyncio.gather(
                *(outcome(leader.write(Put(f"{turn}/{number}", b"v"), timeout=5)) for number in range(20))
            )
            acknowledged += [f"{turn}/{n}" for n, result in enumerate(results) if not isinstance(result, Exception)]
            victim = random.choice(names)
            await cluster.restart(victim)
        leader = await cluster.leader()
        for key in acknowledged:
            assert await leader.read(Get(key)) is not None
        assert len(acknowledged) >= 100
    finally:
        await cluster.close()
    assert {"append Success", "heartbeat Success", "vote VoteResponse"} <= set(seen)


# --- one row at a time ------------------------------------------------------------------------------------------------

L2 = LeaderId(2, "n1")


class Follower:
    """n2 of a cluster whose other nodes are played by the test."""

    def __init__(self, cluster: MemoryCluster, storages: list[LateStorage]) -> None:
        self.cluster = cluster
        self.raft = cluster.raft("n2")
        self.disk = cluster.disk("n2")
        self.gate = storages[-1].gate
        self.peer = PeerIdentity("n1", self.raft._core.engine.effective.nodes["n1"].store_id or "")
        self.prev = self.raft.metrics().value.last_log_id
        assert self.prev is not None

    def entry(self, index: int, leader: LeaderId = L2) -> Entry:
        return Entry(LogId(leader, index), 0, BLANK, b"")

    def append(self, *entries: Entry, prev: LogId | None = None, lease_ms: int = 500) -> asyncio.Task[Any]:
        request = AppendEntriesRequest(Vote(L2, True), prev or self.prev, list(entries), None, lease_ms)
        return asyncio.ensure_future(self.raft.append_entries(request, self.peer))

    async def answers_only_after_the_flush(self, call: asyncio.Task[Any]) -> Any:
        await asyncio.sleep(0.5)
        assert not call.done()
        self.gate.set()
        return await call


async def follower_of_three(storages: list[LateStorage]) -> MemoryCluster:
    def storage(disk: MemoryDisk) -> LateStorage:
        storages.append(LateStorage(disk))
        return storages[-1]

    cluster = MemoryCluster(storage=storage, config=Config(enable_elect=False))
    for node_id in ("n1", "n2", "n3"):
        await cluster.start(node_id)
    await cluster.raft("n1").initialize(cluster.members("n1", "n2", "n3"))
    leader = await cluster.leader()
    await cluster.applied(leader.metrics().value.last_log_index or 0)
    for node_id in ("n1", "n3"):
        await cluster.kill(node_id)
    await cluster.restart("n2")
    await asyncio.sleep(2)
    return cluster


async def test_each_row_waits_for_its_write() -> None:
    storages: list[LateStorage] = []
    cluster = await follower_of_three(storages)
    try:
        node = Follower(cluster, storages)
        prev = node.prev
        assert prev is not None
        start = prev.index + 1

        # A grant waits for the vote.
        node.gate.clear()
        request = VoteRequest(Vote(L2, False), prev)
        call = asyncio.ensure_future(node.raft.vote(request, node.peer))
        granted = await node.answers_only_after_the_flush(call)
        assert granted.granted
        assert node.disk.vote == Vote(L2, False)

        # Success waits for the vote it was checked against, even without entries.
        node.gate.clear()
        success = await node.answers_only_after_the_flush(node.append())
        assert isinstance(success, Success)
        assert node.disk.vote == Vote(L2, True)

        # Success waits for the entries.
        node.gate.clear()
        success = await node.answers_only_after_the_flush(node.append(node.entry(start), node.entry(start + 1)))
        assert success.matching == LogId(L2, start + 1)
        assert holds(node.disk, success.matching)

        # Success waits for accepted entries of earlier requests, whether or not this request appended anything.
        node.gate.clear()
        first = node.append(node.entry(start + 2), prev=LogId(L2, start + 1))
        await asyncio.sleep(0.1)
        again = node.append(node.entry(start + 2), prev=LogId(L2, start + 1))
        probe = node.append(prev=LogId(L2, start + 2))
        await asyncio.sleep(0.2)
        assert not first.done()
        assert not again.done()
        assert not probe.done()

        # A refused vote and a pre-vote leave at once, whatever the disk does.
        lower = VoteRequest(Vote(LeaderId(1, "n1"), False), LogId(L2, 99))
        assert not (await asyncio.wait_for(node.raft.vote(lower, node.peer), 0.1)).granted
        assert not (await asyncio.wait_for(node.raft.pre_vote(lower, node.peer), 0.1)).granted
        node.gate.set()
        for waiting in (first, again, probe):
            assert (await waiting).matching == LogId(L2, start + 2)

        # A larger lease is acknowledged only once it would be remembered after a crash.
        assert cluster.disk("n2").identity is not None
        node.append(prev=LogId(L2, start + 2), lease_ms=900)
        await asyncio.sleep(0.2)
        assert cluster.disk("n2").identity.largest_lease_ms == 900

        # A grant waits for the entries that were compared.
        await asyncio.sleep(2)
        node.gate.clear()
        appended = node.append(node.entry(start + 3), prev=LogId(L2, start + 2))
        await asyncio.sleep(0.1)
        node.raft._core.engine.state.hold_until = 0.0
        candidate = VoteRequest(Vote(LeaderId(3, "n1"), False), LogId(L2, start + 3))
        call = asyncio.ensure_future(node.raft.vote(candidate, node.peer))
        granted = await node.answers_only_after_the_flush(call)
        assert granted.granted
        assert holds(node.disk, LogId(L2, start + 3))
        assert await outcome(appended) is not None
    finally:
        await cluster.close()


async def test_an_answer_made_under_a_vote_that_changed_meanwhile_is_dropped() -> None:
    storages: list[LateStorage] = []
    cluster = await follower_of_three(storages)
    try:
        node = Follower(cluster, storages)
        assert node.prev is not None
        await node.append()
        node.gate.clear()
        appended = node.append(node.entry(node.prev.index + 1))
        await asyncio.sleep(0.1)
        greater = AppendEntriesRequest(Vote(LeaderId(5, "n1"), True), node.prev, [], None, 500)
        other = asyncio.ensure_future(node.raft.append_entries(greater, node.peer))
        await asyncio.sleep(0.1)
        node.gate.set()
        assert isinstance(await other, Success)
        assert getattr(await outcome(appended), "code", None) == "PEER_BUSY"
    finally:
        await cluster.close()


# --- following, request by request (openraft t11_append_conflicts) ---------------------------------------------------


async def test_a_follower_s_log_after_a_sequence_of_requests() -> None:
    async with memory_cluster(3, config=Config(enable_elect=False)) as cluster:
        leader = await cluster.leader()
        peer = PeerIdentity(leader.id, leader.store_id)
        follower = cluster.raft(next(node_id for node_id in ("n1", "n2", "n3") if node_id != leader.id))
        base = leader.metrics().value.last_log_id
        assert base is not None
        await cluster.applied(base.index)
        for node_id in sorted(set(cluster.rafts) - {follower.id}):
            await cluster.kill(node_id)

        def log() -> list[tuple[int, int]]:
            return [(e.log_id.leader_id.term, e.index) for e in cluster.log(follower.id) if e.index > base.index]

        async def append(term: int, prev: tuple[int, int] | None, *entries: tuple[int, int]) -> Any:
            def at(term: int, index: int) -> LogId:
                return LogId(LeaderId(term, leader.id), base.index + index)

            before = base if prev is None else at(*prev)
            sent = [Entry(at(*entry), 0, BLANK, b"") for entry in entries]
            request = AppendEntriesRequest(Vote(LeaderId(term, leader.id), True), before, sent, None, 500)
            return await follower.append_entries(request, peer)

        b = base.index
        assert isinstance(await append(2, None), Success)
        assert isinstance(await append(2, None, (2, 1), (2, 2), (2, 3), (2, 4)), Success)
        assert isinstance(await append(2, None, (2, 1), (2, 2)), Success)
        assert log() == [(2, b + 1), (2, b + 2), (2, b + 3), (2, b + 4)], "the same again changes nothing"
        assert isinstance(await append(3, (2, 2), (3, 3)), Success)
        assert log() == [(2, b + 1), (2, b + 2), (3, b + 3)], "the first conflict and what follows is replaced"
        conflict = await append(3, (2, 2000))
        assert isinstance(conflict, Conflict)
        assert conflict.last_log_id == LogId(LeaderId(3, leader.id), b + 3)
        assert log() == [(2, b + 1), (2, b + 2), (3, b + 3)]
        assert isinstance(await append(4, (4, 3)), Conflict)
        assert log() == [(2, b + 1), (2, b + 2)], "a conflicting prev is removed"
        assert isinstance(await append(3, (2, 2), (3, 3)), HigherVote)
        assert log() == [(2, b + 1), (2, b + 2)]
