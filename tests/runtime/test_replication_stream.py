"""One stream to one peer, over a transport in the hands of the test: what is sent when, and what a failure leaves."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from raftkit_core.engine.commands import AppendInputEntries, PurgeLog, Replicate
from raftkit_core.errors import NetworkError, RPCTimeout
from raftkit_core.network.reply import Reply
from raftkit_core.runtime.log_writer import LogTail, LogWriter
from raftkit_core.runtime.messages import Notification, ReplicationFailed, ReplicationProgress
from raftkit_core.runtime.replication import ReplicationStream, RequestCache
from raftkit_core.runtime.stalls import StallDetector
from raftkit_core.storage.memory import MemoryDisk, MemoryLogStorage
from raftkit_core.testing.builders import entry, log_id, vote
from raftkit_core.testing.virtual_time import VirtualClock
from raftkit_core.types.adapter import AdapterContext
from raftkit_core.types.entry import Entry
from raftkit_core.types.log_id import LogId
from raftkit_core.types.messages import AppendEntriesRequest, AppendEntriesResponse

pytestmark = pytest.mark.virtual_time

VOTE = vote(1, committed=True)


def at(index: int) -> LogId:
    return log_id(1, "n1", index)


class Peer:
    """A transport that keeps every request until the test answers it."""

    target = "n2"

    def __init__(self) -> None:
        self.sent: list[tuple[AppendEntriesRequest, Reply[AppendEntriesResponse]]] = []

    def append_entries(self, request: AppendEntriesRequest, timeout: float) -> Reply[AppendEntriesResponse]:
        reply: Reply[AppendEntriesResponse] = Reply()
        self.sent.append((request, reply))
        return reply

    def backoff(self) -> Iterator[float]:
        while True:
            yield 0.1

    def succeeded(self, target: str) -> None: ...

    def failed(self, target: str, error: BaseException) -> None: ...


class SlowReads(MemoryLogStorage):
    """A read that has begun ends when the test says so, and finds what is there then."""

    def __init__(self, disk: MemoryDisk) -> None:
        super().__init__(disk)
        self.gate = asyncio.Event()
        self.reading = 0

    async def read(self, start: int, stop: int, max_bytes: int) -> list[Entry]:
        self.reading += 1
        await self.gate.wait()
        return await super().read(start, stop, max_bytes)


class Stage:
    """A log with a stream that sends it."""

    async def __aenter__(self) -> Stage:
        self.peer = Peer()
        self.storage = SlowReads(MemoryDisk())
        await self.storage.open(AdapterContext("n1", clock=VirtualClock()))
        self.told: list[Notification] = []
        self.failures: list[BaseException] = []
        self.writer = LogWriter(self.storage, self._save_lease, lambda io_id: None, self.failures.append)
        self.writer.start_at(0, 0)
        self.stream = ReplicationStream(
            session=1,
            target="n2",
            network=self.peer,  # type: ignore[arg-type]
            writer=self.writer,
            peers=self.peer,  # type: ignore[arg-type]
            stalls=StallDetector(),
            requests=RequestCache(),
            answered=lambda command, response: self.told.append(ReplicationProgress(command, response)),
            notify=self.told.append,
            failed=self.failures.append,
            lease_ms=500,
            max_payload_bytes=1000,
            max_bytes_inflight=2000,
            base_timeout=1.0,
        )
        return self

    async def __aexit__(self, *error: object) -> None:
        self.stream.close()
        await self.storage.close()

    async def _save_lease(self, lease_ms: int) -> None: ...

    def append(self, *sizes: int) -> None:
        first = self.writer.tail.read(0, 1000, 10**9) or []
        entries = [entry(at(len(first) + n), bytes(size)) for n, size in enumerate(sizes)]
        self.writer.submit(AppendInputEntries(len(first) + 1, entries))
        self.writer.kick()

    def order(self, first: int, last: int, *, epoch: int = 1, single: bool = False) -> None:
        prev = at(first - 1) if first else None
        self.stream.replicate(Replicate(0, 1, "n2", epoch, 1, 0.0, VOTE, prev, last, None, single))


async def test_the_next_probe_leaves_when_the_last_call_of_a_full_window_fails() -> None:
    """A lost wake-up: the probe of the next epoch waited for room, and who made room by failing woke nobody."""
    async with Stage() as stage:
        stage.append(10, 1000, 1000, 10)
        for index in range(3):
            stage.order(index, index)
        (_, small), (_, large), (_, larger) = stage.peer.sent

        small.set_exception(RPCTimeout("lost"))
        await asyncio.sleep(1)
        assert stage.told == [ReplicationFailed(1, "n2", 1)]
        stage.order(0, 3, epoch=2, single=True)  # what the engine does then
        assert len(stage.peer.sent) == 3, "the window is full of what is still on its way"

        large.set_exception(NetworkError("broken"))
        larger.set_exception(NetworkError("broken"))

        assert len(stage.peer.sent) == 4, "the probe"


async def test_a_read_that_was_overtaken_by_a_failure_and_a_purge_ends_nothing() -> None:
    """The request that a read was for is given up, the engine purges what it was built on, and the read finds it gone:
    no damage, and no reason to stop the node."""
    async with Stage() as stage:
        stage.append(10, 10, 10, 10)
        stage.writer.tail = LogTail(4)  # all but the end is out of memory
        stage.order(3, 3)  # answered from the storage: it is being read
        await asyncio.sleep(0.01)
        assert stage.storage.reading == 1
        stage.stream._fail_epoch(1, 0.02)  # an earlier call of the epoch was lost
        await asyncio.sleep(1)
        assert stage.told == [ReplicationFailed(1, "n2", 1)]

        stage.writer.submit(PurgeLog(9, at(3)))
        stage.writer.kick()
        stage.storage.gate.set()
        await asyncio.sleep(1)

        assert stage.failures == []


async def test_the_order_after_a_read_that_was_overtaken_is_sent() -> None:
    async with Stage() as stage:
        stage.append(10, 10, 10, 10)
        stage.writer.tail = LogTail(4)
        stage.order(3, 3)
        await asyncio.sleep(0.01)
        stage.stream._fail_epoch(1, 0.02)
        await asyncio.sleep(1)
        stage.writer.submit(PurgeLog(9, at(3)))
        stage.writer.kick()
        stage.order(4, 3, epoch=2, single=True)  # a probe behind what is purged
        stage.storage.gate.set()
        await asyncio.sleep(1)

        assert stage.failures == []
        ((probe, _),) = stage.peer.sent
        assert (probe.prev_log_id, probe.entries) == (at(3), [])
