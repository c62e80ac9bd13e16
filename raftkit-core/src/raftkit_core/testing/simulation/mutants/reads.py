"""Mutants of linearizable reads, leases and hand-overs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from raftkit_core.engine.commands import Respond
from raftkit_core.engine.engine import Engine
from raftkit_core.engine.handlers import replication
from raftkit_core.engine.handlers.replication import ReplicationHandler
from raftkit_core.testing.simulation.mutants.mutant import Patch, mutant
from raftkit_core.types.log_id import LogId


@mutant(
    "read-without-round",
    "safety",
    "engine",
    "A leader answers reads without asking anybody.",
)
def _(patch: Patch) -> None:
    def handle_read(self: Engine, request_ids: Sequence[int], by_lease: bool, now: float) -> None:
        leader = self._parts.leader
        for request_id in request_ids:
            at = None if leader is None else max(self._parts.state.committed or leader.noop_log_id, leader.noop_log_id)
            self._parts.output.push(Respond(0, request_id, at))

    patch.set(Engine, "handle_read", handle_read)


@mutant(
    "read-joins-a-round-under-way",
    "safety",
    "engine",
    "A read joins a round whose messages left before it arrived (openraft §2.14).",
)
def _(patch: Patch) -> None:
    original = Engine.handle_read

    def handle_read(self: Engine, request_ids: Sequence[int], by_lease: bool, now: float) -> None:
        leader = self._parts.leader
        seq = None if leader is None else leader.seq
        if leader is not None:
            leader.seq = max(0, leader.seq - 3)
            held = leader.seq
        original(self, request_ids, by_lease, now)
        if leader is not None and seq is not None:
            leader.seq = max(seq, leader.seq + seq - held)

    patch.set(Engine, "handle_read", handle_read)


@mutant(
    "read-round-minus-one",
    "safety",
    "engine",
    "A round of reads is confirmed by one answer less than a majority (openraft §6 item 6).",
)
def _(patch: Patch) -> None:
    def quorum_value(configs: Sequence[Sequence[str]], values: Any, default: float) -> float:
        lowest: float | None = None
        for config in configs:
            reached = sorted((values.get(voter, default) for voter in config), reverse=True)
            position = reached[max(0, len(config) // 2 - 1)]
            lowest = position if lowest is None or position < lowest else lowest
        return default if lowest is None else lowest

    patch.set(replication, "quorum_value", quorum_value)


@mutant(
    "read-at-committed-only",
    "safety",
    "engine",
    "A new leader serves reads at what it knows to be committed, before its own entry is.",
)
def _(patch: Patch) -> None:
    original = Engine.handle_read

    def handle_read(self: Engine, request_ids: Sequence[int], by_lease: bool, now: float) -> None:
        leader = self._parts.leader
        if leader is None or self._parts.state.committed is None:
            original(self, request_ids, by_lease, now)
            return
        noop, leader.noop_log_id = leader.noop_log_id, LogId(self._parts.state.committed.leader_id, 0)
        try:
            original(self, request_ids, by_lease, now)
        finally:
            leader.noop_log_id = noop

    patch.set(Engine, "handle_read", handle_read)


@mutant(
    "lease-from-the-answer",
    "safety",
    "engine",
    "The lease runs from the arrival of the answers instead of the sending of the messages.",
)
def _(patch: Patch) -> None:
    original = ReplicationHandler._count_contact

    def count(self: ReplicationHandler, leader: Any, target: str, seq: int, sent_at: float) -> None:
        original(self, leader, target, seq, sent_at)
        leader.acked_at[target] = max(leader.acked_at[target], self._now)  # type: ignore[attr-defined]

    for name in ("on_append_response", "on_heartbeat_response"):
        method = getattr(ReplicationHandler, name)

        def remember(self: Any, *arguments: Any, method: Any = method) -> None:
            self._now = arguments[-1]
            method(self, *arguments)

        patch.set(ReplicationHandler, name, remember)
    patch.set(ReplicationHandler, "_count_contact", count)


@mutant(
    "lease-without-quorum",
    "safety",
    "engine",
    "One answer renews the read lease, a majority or not.",
)
def _(patch: Patch) -> None:
    def until(self: Engine, now: float) -> float:
        leader = self._parts.leader
        if leader is None or not leader.reads_by_lease:
            return float("-inf")
        return max(leader.acked_at.values(), default=float("-inf")) + self._parts.config.leader_lease * 0.9

    patch.set(Engine, "read_lease_until", until)


@mutant(
    "lease-for-ever",
    "safety",
    "engine",
    "A leader reads by lease as long as it leads.",
)
def _(patch: Patch) -> None:
    patch.set(
        Engine, "read_lease_until", lambda self, now: float("-inf") if self._parts.leader is None else float("inf")
    )


@mutant(
    "lease-survives-the-transfer",
    "safety",
    "engine",
    "Reads by lease go on after a hand-over was started (openraft #1747).",
)
def _(patch: Patch) -> None:
    original = Engine.handle_transfer_leader

    def handle(self: Engine, to: str | None, request_id: int, now: float) -> None:
        original(self, to, request_id, now)
        if self._parts.leader is not None:
            self._parts.leader.reads_by_lease = True

    patch.set(Engine, "handle_transfer_leader", handle)


@mutant(
    "transfer-to-a-lagging-node",
    "liveness",
    "engine",
    "The target of a hand-over is asked to campaign before it holds the whole log.",
    equivalent="the target refuses what it does not hold durably and the hand-over fails within its deadline; "
    "nothing is lost but that hand-over (the engine tests compare the orders)",
)
def _(patch: Patch) -> None:
    original = ReplicationHandler._try_transfer

    def try_transfer(self: ReplicationHandler, leader: Any) -> None:
        transfer = leader.transfer
        entry = None if transfer is None else leader.progress.get(transfer.target)
        if entry is None:
            return
        matching, entry.matching = entry.matching, self._parts.state.log.last
        try:
            original(self, leader)
        finally:
            entry.matching = matching

    patch.set(ReplicationHandler, "_try_transfer", try_transfer)


@mutant(
    "transfer-never-ends",
    "liveness",
    "engine",
    "A hand-over that nobody takes up blocks writes for ever.",
)
def _(patch: Patch) -> None:
    patch.set(Engine, "_fail_transfer", lambda self, reason: None)


@mutant(
    "drift-forgotten",
    "safety",
    "engine",
    "The read lease is not shortened by the clocks' drift.",
)
def _(patch: Patch) -> None:
    def until(self: Engine, now: float) -> float:
        leader = self._parts.leader
        if leader is None or not leader.reads_by_lease:
            return float("-inf")
        return self._vote.last_quorum_acked(now) + self._parts.config.leader_lease

    patch.set(Engine, "read_lease_until", until)


@mutant(
    "read-answers-lost",
    "liveness",
    "engine",
    "A round of reads is sent once; if its answers are lost nobody asks again.",
    equivalent="the next heartbeat has a greater number and confirms the read as well; without heartbeats a "
    "read ends with QuorumNotEnough in time",
)
def _(patch: Patch) -> None:
    original = Engine._tick_reads

    def tick_reads(self: Engine, now: float) -> None:
        leader = self._parts.leader
        assert leader is not None
        leader.read_round_at = now
        original(self, now)

    patch.set(Engine, "_tick_reads", tick_reads)
