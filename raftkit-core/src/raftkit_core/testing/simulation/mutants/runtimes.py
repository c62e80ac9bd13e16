"""Mutants of the runtime: what clients are told, the log lane, fail-stop, reads, and everything around whole nodes."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec

from raftkit_core.engine.commands import DeleteConflictLog, SaveVote
from raftkit_core.errors import NotApplied, RaftError
from raftkit_core.runtime import recovery
from raftkit_core.runtime.command_runner import CommandRunner
from raftkit_core.runtime.log_writer import LogWriter
from raftkit_core.runtime.messages import ClientWriteResponse
from raftkit_core.runtime.raft_core import RaftCore
from raftkit_core.runtime.read_index import SharedReadIndex
from raftkit_core.runtime.reads import LinearizableReads
from raftkit_core.runtime.state_machine_worker import StateMachineWorker
from raftkit_core.runtime.waiting_clients import WaitingClients
from raftkit_core.state_machine.kv import KvStateMachine
from raftkit_core.storage.interface import LogBatch
from raftkit_core.testing.simulation.mutants.mutant import Patch, mutant
from raftkit_core.testing.simulation.sim_disk import SimDisk
from raftkit_core.types.log_id import LogId
from raftkit_core.types.vote import LeaderId


def _waiters(waiting: WaitingClients) -> list[tuple[int, Any, float]]:
    """Everybody who waits for an entry: its index, the future, its deadline."""
    return [
        (index, future, deadline)
        for queue in waiting.writers.values()
        for writers in queue
        for index, (_, future, deadline) in enumerate(writers.writes, writers.first)
    ]


# --- what clients are told ------------------------------------------------------------------------------------------


@mutant(
    "truncated-is-not-applied",
    "safety",
    "runtime",
    "A client is told that its write failed for certain when the entry is truncated; it may still commit.",
)
def _(patch: Patch) -> None:
    original = CommandRunner.run

    def run(self: CommandRunner, now: float) -> None:
        commands = self._orders.copy()
        original(self, now)
        for command in commands:
            if not isinstance(command, DeleteConflictLog):
                continue
            for index, future, _ in _waiters(self._waiting):
                if index >= command.since and not future.done():
                    future.set_exception(NotApplied("the entry was truncated"))

    patch.set(CommandRunner, "run", run)


@mutant(
    "quit-is-not-applied",
    "safety",
    "runtime",
    "Whoever waits on a leader that steps down is told not applied.",
)
def _(patch: Patch) -> None:
    original = CommandRunner._close_streams

    def close(self: CommandRunner) -> None:
        original(self)
        for _, future, _ in _waiters(self._waiting):
            if not future.done():
                future.set_exception(NotApplied("leadership was lost"))

    patch.set(CommandRunner, "_close_streams", close)


@mutant(
    "timeout-is-not-applied",
    "safety",
    "runtime",
    "A write whose deadline passes is said to have failed for certain.",
)
def _(patch: Patch) -> None:
    original = WaitingClients.sweep

    def sweep(self: WaitingClients, now: float) -> None:
        for _, future, deadline in _waiters(self):
            if not future.done() and deadline <= now:
                future.set_exception(NotApplied("no answer in time"))
        original(self, now)

    patch.set(WaitingClients, "sweep", sweep)


@mutant(
    "answered-when-appended",
    "safety",
    "runtime",
    "A client is answered when its entry is in the leader's log.",
)
def _(patch: Patch) -> None:
    original = WaitingClients.wait_for_all

    def wait_for_all(self: WaitingClients, first: LogId, writes: Any) -> None:
        for index, (_, future, _) in enumerate(writes, first.index):
            if not future.done():
                future.set_result(ClientWriteResponse(LogId(first.leader_id, index), None))
        original(self, first, writes)

    patch.set(WaitingClients, "wait_for_all", wait_for_all)


@mutant(
    "waiters-by-index-only",
    "safety",
    "runtime",
    "Whoever waits at an index gets the result of whatever entry was committed there.",
)
def _(patch: Patch) -> None:
    original = WaitingClients._answer

    def answer(self: WaitingClients, future: Any, leader_id: LeaderId, log_id: LogId, response: Any) -> None:
        original(self, future, log_id.leader_id, log_id, response)

    patch.set(WaitingClients, "_answer", answer)


@mutant(
    "superseded-is-not-applied",
    "safety",
    "runtime",
    "A write superseded by a snapshot is said to have failed.",
)
def _(patch: Patch) -> None:
    def superseded(self: WaitingClients, upto: int) -> None:
        for index, future, _ in _waiters(self):
            if index <= upto and not future.done():
                future.set_exception(NotApplied("a snapshot took its place"))

    patch.set(WaitingClients, "superseded", superseded)


@mutant(
    "stopped-is-not-applied",
    "safety",
    "runtime",
    "A node that ends tells whoever waits that nothing was applied.",
)
def _(patch: Patch) -> None:
    original = WaitingClients.fail_all

    def fail_all(self: WaitingClients, make_error: Any) -> None:
        for _, future, _ in _waiters(self):
            if not future.done():
                future.set_exception(NotApplied("the node ended"))
        original(self, make_error)

    patch.set(WaitingClients, "fail_all", fail_all)


@mutant(
    "waiters-forgotten",
    "liveness",
    "runtime",
    "Whoever waits for an entry that a snapshot replaced waits for ever (D10).",
    equivalent="every wait has a deadline besides, which answers the same: unknown",
)
def _(patch: Patch) -> None:
    patch.set(WaitingClients, "superseded", lambda self, upto: None)


# --- the log lane ---------------------------------------------------------------------------------------------------


@mutant(
    "writes-not-awaited",
    "safety",
    "runtime",
    "A log write counts as durable as soon as it was handed over.",
)
def _(patch: Patch) -> None:
    original = LogWriter._start

    def start(self: LogWriter, write: Any, io_id: int, last_index: int) -> None:
        original(self, write, io_id, last_index)
        if io_id and not self._dead:
            self.written = io_id
            self._flushed(io_id)

    patch.set(LogWriter, "_start", start)


@mutant(
    "failed-write-retried",
    "safety",
    "runtime",
    "After a failed write the node goes on as if it had succeeded (D1).",
)
def _(patch: Patch) -> None:
    original = LogWriter._finished

    def finished(self: LogWriter, task: Any, io_id: int, last_index: int) -> None:
        if not task.cancelled() and task.exception() is not None:
            self._task = None
            self._done(io_id, last_index)
            return
        original(self, task, io_id, last_index)

    patch.set(LogWriter, "_finished", finished)


@mutant(
    "vote-left-out-of-the-batch",
    "safety",
    "runtime",
    "A vote that shares a batch with entries is not written.",
)
def _(patch: Patch) -> None:
    original = LogWriter._next_batch

    def next_batch(self: LogWriter) -> Any:
        io_id, batch, last_index = original(self)
        if batch.vote is not None and batch.entries:
            batch = LogBatch(None, batch.truncate_since, batch.purge_upto, batch.entries, batch.committed)
        return io_id, batch, last_index

    patch.set(LogWriter, "_next_batch", next_batch)


@mutant(
    "truncation-not-written",
    "safety",
    "runtime",
    "A truncation is done in memory only.",
)
def _(patch: Patch) -> None:
    original = LogWriter.submit

    def submit(self: LogWriter, command: Any) -> None:
        if isinstance(command, DeleteConflictLog):
            self.tail.truncate(command.since)
            return
        original(self, command)

    patch.set(LogWriter, "submit", submit)


@mutant(
    "votes-jump-the-queue",
    "safety",
    "runtime",
    "A vote overtakes the entries that were queued before it.",
    equivalent="a later vote that is durable early only makes the node stricter: entries still wait for their "
    "own flush",
)
def _(patch: Patch) -> None:
    original = LogWriter.submit

    def submit(self: LogWriter, command: Any) -> None:
        original(self, command)
        if isinstance(command, SaveVote) and len(self.queue) > 1:
            self.queue.rotate(1)

    patch.set(LogWriter, "submit", submit)


@mutant(
    "purge-without-mark",
    "safety",
    "runtime",
    "A purge forgets how far the log was purged.",
)
def _(patch: Patch) -> None:
    original = SimDisk._purge

    def purge(self: SimDisk, upto: LogId) -> None:
        before = self.last_purged
        original(self, upto)
        self.last_purged = before

    patch.set(SimDisk, "_purge", purge)


@mutant(
    "release-without-flush",
    "safety",
    "runtime",
    "What waits for the log leaves when it is emitted.",
)
def _(patch: Patch) -> None:
    patch.set(CommandRunner, "must_wait", lambda self, io_id: False)


@mutant(
    "answers-of-an-old-vote",
    "safety",
    "runtime",
    "An answer that was made under a vote the node no longer has still leaves.",
)
def _(patch: Patch) -> None:
    patch.set(
        CommandRunner, "_respond", lambda self, command: self._waiting.respond(command.request_id, command.response)
    )


@mutant(
    "fatal-node-goes-on",
    "safety",
    "runtime",
    "A node whose storage failed goes on answering (S28).",
)
def _(patch: Patch) -> None:
    patch.set(RaftCore, "fail", lambda self, error: None)


# --- reads and machines ---------------------------------------------------------------------------------------------


@mutant(
    "read-before-applied",
    "safety",
    "runtime",
    "A confirmed read does not wait until its entry is applied here.",
)
def _(patch: Patch) -> None:
    async def wait_applied(self: LinearizableReads, log_id: LogId | None, timeout: float) -> None:
        await asyncio.sleep(0)  # or whoever asks again and again never lets anybody else run

    patch.set(LinearizableReads, "wait_applied", wait_applied)


@mutant(
    "read-without-confirmation",
    "safety",
    "runtime",
    "A read is served from whatever is applied here.",
)
def _(patch: Patch) -> None:
    async def ensure(self: LinearizableReads, policy: Any, timeout: float) -> LogId:
        applied = self._core.worker.applied
        assert applied is not None
        return applied

    patch.set(LinearizableReads, "ensure", ensure)
    patch.set(LinearizableReads, "confirm", _nothing)


async def _nothing(self: Any, *arguments: Any) -> None:
    return None


def _on_apply(patch: Patch, change: Any) -> None:
    original = KvStateMachine.apply

    def apply(self: KvStateMachine, batch: Any) -> Any:
        change(self, batch)
        return original(self, batch)

    patch.set(KvStateMachine, "apply", apply)


@mutant(
    "machine-keeps-its-own-clock",
    "safety",
    "runtime",
    "A machine's results depend on how often it was called.",
)
def _(patch: Patch) -> None:
    original = KvStateMachine.apply

    def apply(self: KvStateMachine, batch: Any) -> Any:
        results = original(self, batch)
        return list(reversed(results)) if isinstance(results, list) and len(results) > 1 else results

    patch.set(KvStateMachine, "apply", apply)


@mutant(
    "machine-drops-a-command",
    "safety",
    "runtime",
    "A machine leaves out every fortieth entry it is given, silently.",
)
def _(patch: Patch) -> None:
    _on_apply(patch, lambda self, batch: _leave_out(batch))


def _leave_out(batch: Any) -> None:
    entries = batch.entries
    if entries and entries[0].log_id.index % 40 == 0 and len(entries) > 1:
        entries[0] = msgspec.structs.replace(entries[1]) if isinstance(entries[1], msgspec.Struct) else entries[1]


@mutant(
    "apply-starts-again",
    "safety",
    "runtime",
    "After a snapshot was restored a machine applies from the beginning.",
)
def _(patch: Patch) -> None:
    original = StateMachineWorker.restore_published

    async def restore(self: StateMachineWorker) -> Any:
        applied = self.applied
        meta = await original(self)
        if applied is not None:
            self.applied = applied
        return meta

    patch.set(StateMachineWorker, "restore_published", restore)


# --- recovery and disks ---------------------------------------------------------------------------------------------


@mutant(
    "recovery-ignores-the-snapshot",
    "safety",
    "runtime",
    "A restart leaves a log beside a snapshot that contradicts it.",
)
def _(patch: Patch) -> None:
    async def fit(storage: Any, snapshot: Any, log: Any) -> Any:
        return log

    patch.set(recovery, "fit_log_to_snapshot", fit)


@mutant(
    "disk-syncs-late",
    "safety",
    "runtime",
    "A disk reports a write as finished and keeps it in memory; a crash takes it.",
)
def _(patch: Patch) -> None:
    original = SimDisk.begin

    def begin(self: SimDisk, parts: Any, life: int) -> Any:
        if life == self.life and parts and self.random.random() < 0.1 and not self.hung and not self.full:
            return None
        return original(self, parts, life)

    patch.set(SimDisk, "begin", begin)


@mutant(
    "disk-drops-votes",
    "safety",
    "runtime",
    "A disk reports a vote as written and keeps the old one.",
)
def _(patch: Patch) -> None:
    original = SimDisk._apply

    def apply(self: SimDisk, parts: Any) -> None:
        original(self, [part for part in parts if part[0] != "vote" or self.random.random() > 0.3])

    patch.set(SimDisk, "_apply", apply)


@mutant(
    "disk-tears-what-it-acknowledged",
    "safety",
    "runtime",
    "A crash takes the last finished entry along.",
)
def _(patch: Patch) -> None:
    original = SimDisk.crash

    def crash(self: SimDisk) -> None:
        original(self)
        if self.entries:
            self.entries.pop()

    patch.set(SimDisk, "crash", crash)


@mutant(
    "disk-accepts-a-hole",
    "safety",
    "runtime",
    "A disk skips one entry in fifty and takes the next as if nothing were.",
)
def _(patch: Patch) -> None:
    original = SimDisk._apply

    def apply(self: SimDisk, parts: Any) -> None:
        original(self, [part for part in parts if part[0] != "entry" or self.random.random() > 0.02])

    patch.set(SimDisk, "_apply", apply)


@mutant(
    "unknown-is-forgotten",
    "liveness",
    "runtime",
    "A write that is not answered in time is never answered at all.",
)
def _(patch: Patch) -> None:
    patch.set(WaitingClients, "sweep", lambda self, now: None)


@mutant(
    "read-joins-a-call-under-way",
    "safety",
    "runtime",
    "A follower's read joins a call to the leader that has left before it began.",
)
def _(patch: Patch) -> None:
    async def call(self: SharedReadIndex, policy: Any, before: asyncio.Task[None] | None) -> None:
        found: Any
        try:
            found = await self._ask(policy)
        except RaftError as error:
            found = error
        for request_id in self._gathering.pop(policy):
            self._waiting.respond(request_id, (found,))

    patch.set(SharedReadIndex, "_call", call)
