"""Mutants of the runtime: what clients are told, reads, and machines of whole nodes."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec

from raftkit_core.engine.commands import DeleteConflictLog
from raftkit_core.errors import NotApplied, RaftError
from raftkit_core.runtime.command_runner import CommandRunner
from raftkit_core.runtime.messages import ClientWriteResponse
from raftkit_core.runtime.read_index import SharedReadIndex
from raftkit_core.runtime.reads import LinearizableReads
from raftkit_core.runtime.state_machine_worker import StateMachineWorker
from raftkit_core.runtime.waiting_clients import WaitingClients
from raftkit_core.state_machine.interface import AppliedEntries
from raftkit_core.state_machine.kv import KvStateMachine
from raftkit_core.testing.simulation.mutants.mutant import Patch, mutant
from raftkit_core.types.kv import WriteResult
from raftkit_core.types.log_id import LogId
from raftkit_core.types.vote import LeaderId


def _waiters(waiting: WaitingClients) -> list[tuple[int, Any, float]]:
    """Everybody who waits for an entry: its index, the future, its deadline."""
    return [waiter for queue in waiting.writers.values() for writers in queue for waiter in writers.waiting()]


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

    def wait_for_all(self: WaitingClients, first: LogId, messages: Any) -> None:
        futures = [future for message in messages for future in message.futures]
        for index, future in enumerate(futures, first.index):
            if not future.done():
                future.set_result(ClientWriteResponse(LogId(first.leader_id, index), WriteResult(index)))
        original(self, first, messages)

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
    "commands-by-index-only",
    "safety",
    "runtime",
    "A leader applies what it once proposed at an index, whoever's entry was committed there.",
)
def _(patch: Patch) -> None:
    original = WaitingClients.commands_of

    def commands_of(self: WaitingClients, first: LogId, last: LogId) -> list[Any] | None:
        found = (
            original(self, LogId(leader_id, first.index), LogId(leader_id, last.index)) for leader_id in self.writers
        )
        return next((commands for commands in found if commands is not None), None)

    patch.set(WaitingClients, "commands_of", commands_of)


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


@mutant(
    "unknown-is-forgotten",
    "liveness",
    "runtime",
    "A write that is not answered in time is never answered at all.",
)
def _(patch: Patch) -> None:
    patch.set(WaitingClients, "sweep", lambda self, now: None)


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
    original = KvStateMachine.apply

    def apply(self: KvStateMachine, batch: Any) -> Any:
        entries = batch.entries
        if len(entries) > 1 and entries[0].log_id.index % 40 == 0:
            if isinstance(entries, AppliedEntries):
                entries.commands[0] = entries.commands[1]
            else:
                entries[0] = msgspec.structs.replace(entries[0], command=entries[1].command)
        return original(self, batch)

    patch.set(KvStateMachine, "apply", apply)


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
            self.applied, self.applied_index = applied, applied.index
        return meta

    patch.set(StateMachineWorker, "restore_published", restore)
