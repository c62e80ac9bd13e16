"""The least that replicates: three nodes on one loop, a log, a term, a quorum, a dict. What Python can reach at all.

No elections, timers, durable votes, sessions, back-pressure, snapshots or errors. It coalesces what is proposed in one
turn of the loop into one append per peer, and delivers by callbacks: the shape raftkit's own write path aims at.
"""

from __future__ import annotations

import asyncio

import msgspec


class BareEntry(msgspec.Struct, frozen=True, gc=False):
    term: int
    node: str
    index: int
    kind: int
    payload: bytes


class BareAppend(msgspec.Struct, gc=False):
    term: int
    prev_index: int
    prev_term: int
    commit: int
    entries: list[BareEntry]


class BareNode:
    """A log and a dict: applies what is committed, keyed by the first eight bytes."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.term = 1
        self.log: list[BareEntry] = []
        self.commit = 0
        self.applied = 0
        self.cells: dict[bytes, bytes] = {}

    def append(self, request: BareAppend) -> tuple[str, bool, int]:
        """Check the place, drop what conflicts, append, commit, apply; answer with what is held."""
        log = self.log
        prev = request.prev_index
        if request.term < self.term or prev > len(log) or (prev and log[prev - 1].term != request.prev_term):
            return self.name, False, len(log)
        if len(log) > prev:
            del log[prev:]
        log.extend(request.entries)
        if request.commit > self.commit:
            self.commit = min(request.commit, len(log))
            self.apply()
        return self.name, True, len(log)

    def apply(self) -> int:
        """Apply up to ``commit``; gives the first index applied now."""
        first = self.applied
        for entry in self.log[first : self.commit]:
            self.cells[entry.payload[:8]] = entry.payload
        self.applied = self.commit
        return first


class BareCluster:
    """One leader and its followers; ``client_write`` as an application would await it."""

    def __init__(self, followers: int = 2) -> None:
        self._loop = asyncio.get_running_loop()
        self._leader = BareNode("n1")
        self._followers = [BareNode(f"n{number + 2}") for number in range(followers)]
        self._sent = [0] * followers
        self._matched = [0] * followers
        self._majority = (followers + 1) // 2
        self._waiting: dict[int, asyncio.Future[int]] = {}
        self._scheduled = False

    async def client_write(self, payload: bytes) -> int:
        log = self._leader.log
        index = len(log) + 1
        log.append(BareEntry(1, "n1", index, 0, payload))
        future = self._waiting[index] = self._loop.create_future()
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._flush)
        return await future

    def _flush(self) -> None:
        self._scheduled = False
        log = self._leader.log
        for number in range(len(self._followers)):
            prev = self._sent[number]
            if prev < len(log):
                term = log[prev - 1].term if prev else 0
                self._sent[number] = len(log)
                self._loop.call_soon(self._deliver, number, BareAppend(1, prev, term, self._leader.commit, log[prev:]))

    def _deliver(self, number: int, request: BareAppend) -> None:
        self._loop.call_soon(self._answered, number, self._followers[number].append(request))

    def _answered(self, number: int, answer: tuple[str, bool, int]) -> None:
        _, accepted, matching = answer
        assert accepted, "the bare replicator never conflicts"
        if matching <= self._matched[number]:
            return
        self._matched[number] = matching
        # The own log counts as one of the majority.
        position = sorted(self._matched, reverse=True)[self._majority - 1]
        leader = self._leader
        if position > leader.commit:
            leader.commit = position
            first = leader.apply()
            waiting = self._waiting
            for index in range(first + 1, leader.applied + 1):
                future = waiting.pop(index, None)
                if future is not None and not future.done():
                    future.set_result(index)
