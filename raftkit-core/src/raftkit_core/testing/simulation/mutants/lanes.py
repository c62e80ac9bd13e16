"""Mutants of the log lane of whole nodes: what waits for it, the disk below it, and what a restart finds there."""

from __future__ import annotations

from typing import Any

from raftkit_core.engine.commands import DeleteConflictLog, SaveVote
from raftkit_core.runtime import recovery
from raftkit_core.runtime.command_runner import CommandRunner
from raftkit_core.runtime.log_writer import LogWriter
from raftkit_core.runtime.raft_core import RaftCore
from raftkit_core.storage.interface import LogBatch
from raftkit_core.testing.simulation.mutants.mutant import Patch, mutant
from raftkit_core.testing.simulation.sim_disk import SimDisk
from raftkit_core.types.log_id import LogId

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
