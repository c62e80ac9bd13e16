"""The one owner of the state machine: applies in order, lets snapshots be built between two batches, installs received
ones.

What finishes at once is carried on in the same turn; what must be awaited runs in one task, serially. A snapshot is
written beside it (``machine_snapshots``), so that apply goes on meanwhile. Any exception is Fatal.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from heapq import heapify, heappop, heappush
from typing import Any, TypeVar

from raftkit_core.errors import Fatal, Overloaded, RaftError, Stopped, StorageCorrupt
from raftkit_core.runtime.batches import Batch, BatchMaker
from raftkit_core.runtime.log_writer import LogWriter
from raftkit_core.runtime.machine_snapshots import SnapshotBuilder, restore
from raftkit_core.runtime.stalls import STALL_SECONDS, StallDetector
from raftkit_core.runtime.timed_steps import Busy
from raftkit_core.state_machine.interface import RaftStateMachine
from raftkit_core.state_machine.kv_watch import ChangeRing
from raftkit_core.state_machine.system import SystemMachine
from raftkit_core.storage.interface import RaftSnapshotStorage, SnapshotSink
from raftkit_core.types.entry import Entry
from raftkit_core.types.ids import RequestId
from raftkit_core.types.kv import KV_MACHINE
from raftkit_core.types.log_id import LogId, index_of
from raftkit_core.types.membership import StoredMembership
from raftkit_core.types.snapshot import SnapshotMeta

APPLY_BYTES = 4 * 1024 * 1024
APPLY_ENTRIES = 4096
JOBS_KEPT = 64
"""Snapshots, restores and looks that may wait for the machine: a machine that hangs must cost no memory."""

Found = TypeVar("Found")


class StateMachineWorker:
    """``applied(batch, results)`` is told of every finished batch; ``failed`` of what ends the node."""

    def __init__(
        self,
        *,
        machine: RaftStateMachine,
        system: SystemMachine,
        snapshots: RaftSnapshotStorage,
        writer: LogWriter,
        applied: LogId | None,
        membership: StoredMembership,
        on_applied: Callable[[Batch, Sequence[Any]], None],
        on_built: Callable[[SnapshotMeta | None], None],
        on_installed: Callable[[RequestId, SnapshotMeta], None],
        on_refused: Callable[[RequestId, RaftError], None],
        failed: Callable[[BaseException], None],
        new_snapshot_id: Callable[[LogId], str],
        cluster_id: Callable[[], str | None],
        stalls: StallDetector | None = None,
    ) -> None:
        self._stalls = StallDetector() if stalls is None else stalls
        self.machine = machine
        self.system = system
        self.applied = applied
        self.applied_index = index_of(applied)
        self._batches = BatchMaker(machine, system)
        self._prepare = self._batches.prepare
        self.membership = membership
        self._is_durable = machine.durable
        self._now = self._stalls.now
        self.changes: ChangeRing | None = ChangeRing() if machine.name == KV_MACHINE else None
        """What a watch is served from; None for a machine without keys."""
        self._snapshots = snapshots
        self._writer = writer
        self._upto = index_of(applied)
        self.is_ordered = False
        """More is committed than :meth:`go_on` was told to apply."""
        self._on_applied = on_applied
        self._on_built = on_built
        self._on_installed = on_installed
        self._on_refused = on_refused
        self._failed = failed
        self._builder = SnapshotBuilder(
            machine,
            system,
            snapshots,
            self._stalls,
            new_snapshot_id=new_snapshot_id,
            cluster_id=cluster_id,
            built=self._built,
            failed=self._fail,
        )
        self._jobs: deque[Callable[[], Coroutine[Any, Any, None] | None]] = deque()
        self._received: dict[RequestId, SnapshotSink] = {}
        """Snapshots whose installation is not begun."""
        self._task: asyncio.Task[None] | None = None
        self._busy: Busy | None = None
        """What is awaited."""
        self._dead = False
        self._is_pumping = False
        self._waits: list[tuple[int, int, asyncio.Future[None]]] = []
        self._waits_kept = 64
        self._wait_number = 0

    def attach(
        self,
        on_applied: Callable[[Batch, Sequence[Any]], None],
        commands_of: Callable[[LogId, LogId], list[Any] | None],
    ) -> None:
        """Tell this of every batch from now on, and ask for the commands of entries that were proposed here."""
        self._on_applied = on_applied
        self._batches.commands_of = commands_of

    @property
    def is_awaited(self) -> bool:
        """Whether somebody waits for what is not applied yet."""
        return bool(self._waits)

    # --- orders -----------------------------------------------------------------------------------------------------

    def commit(self, upto: LogId) -> None:
        """Apply everything up to ``upto``, from the next :meth:`go_on` on: who waits for the log comes first."""
        self._upto = upto.index
        self.is_ordered = True

    def go_on(self) -> None:
        """Begin with what was ordered, unless something is under way."""
        self.is_ordered = False
        self._pump()

    def build_snapshot(self) -> None:
        """Snapshot what is applied when it is this order's turn."""
        self._pump()
        self._jobs.append(self._begin_build)
        self._pump()

    def install_snapshot(self, request_id: RequestId, meta: SnapshotMeta, sink: SnapshotSink) -> None:
        """Publish the received bytes, then replace the machine's state by them."""
        self._pump()
        self._received[request_id] = sink
        self._jobs.append(lambda: self._install(request_id, meta))
        self._pump()

    async def wait_applied(self, index: int) -> None:
        """Wait until everything up to ``index`` is applied; the caller bounds the time. Raises: Stopped."""
        if self.is_ordered and self.applied_index < index:
            self.go_on()
        if self.applied_index >= index:
            return
        if self._dead:
            raise Stopped("the state machine has stopped")
        if len(self._waits) >= self._waits_kept:
            # Callers that gave up are removed once they are the most of it: a machine that hangs must cost no memory.
            self._waits = [wait for wait in self._waits if not wait[2].done()]
            heapify(self._waits)
            self._waits_kept = max(64, 2 * len(self._waits))
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._wait_number += 1
        heappush(self._waits, (index, self._wait_number, future))
        await future

    async def between_batches(self, look: Callable[[], Found]) -> Found:
        """What ``look`` returns when no batch and no restore is under way, so that the machine's state is exactly that
        at ``applied``. The caller bounds the time. Raises: Stopped, Overloaded, what ``look`` raises."""
        if self._dead:
            raise Stopped("the state machine has stopped")
        if len(self._jobs) >= JOBS_KEPT:
            raise Overloaded(f"{len(self._jobs)} callers wait for the state machine {self.machine.name}")
        future: asyncio.Future[Found] = asyncio.get_running_loop().create_future()

        def run() -> None:
            if future.done():
                return
            try:
                future.set_result(look())
            except Exception as error:
                future.set_exception(error)

        self._jobs.append(run)
        self._pump()
        return await future

    # --- one thing after the other ----------------------------------------------------------------------------------

    def _pump(self) -> None:
        if self._is_pumping:
            return  # a machine that proposes while it applies: what that leads to is carried on when it is done
        self._is_pumping = True
        try:
            while self._task is None and not self._dead:
                if self._jobs:
                    work = self._jobs.popleft()()
                elif self.applied_index < self._upto:
                    work = self._apply_next()
                else:
                    return
                if work is not None:
                    if self._busy is None:
                        self._busy = self._begin("apply")
                    self._task = asyncio.ensure_future(work)
                    self._task.add_done_callback(self._task_done)
        except Exception as error:
            self._fail(error)
        finally:
            self._is_pumping = False

    def _task_done(self, task: asyncio.Task[None]) -> None:
        self._task = self._busy = None
        error = asyncio.CancelledError() if task.cancelled() else task.exception()
        if error is not None:
            self._fail(error)
        else:
            self._pump()

    def watch(self, now: float, seconds: float) -> None:
        """Name a machine that has not finished a step for ``seconds``, once for each step."""
        for busy in (self._busy, self._builder.busy):
            if busy is not None and not busy.is_named and now - busy.since >= seconds:
                busy.is_named = True
                self._stalls.unfinished(busy.plugin, busy.method, now - busy.since)

    def _begin(self, method: str) -> Busy:
        return Busy(self.machine, method, self._stalls.now())

    def _fail(self, error: BaseException) -> None:
        """Any end but a regular one stops the node; only an order to stop comes first."""
        if self._dead:
            return
        self._dead = True
        if isinstance(error, asyncio.CancelledError):
            error = Fatal(f"the work of the state machine {self.machine.name} was cancelled from outside")
        self._failed(error)

    # --- apply ------------------------------------------------------------------------------------------------------

    def _apply_next(self) -> Coroutine[Any, Any, None] | None:
        """Apply the next batch at once if its entries are in memory and the machine is quick; else give the rest."""
        start, stop = self.applied_index + 1, self._upto + 1
        if stop - start > APPLY_ENTRIES:
            stop = start + APPLY_ENTRIES
        entries = self._writer.tail.read(start, stop, APPLY_BYTES)
        if entries is None:
            return self._apply_from_storage(start, stop)
        batch = self._prepare(entries, self.applied_index)
        results = self._apply(batch)
        if type(results) is not list and not isinstance(results, Sequence):
            return self._finish_later(batch, results)
        self._finish(batch, results)
        return None

    async def _apply_from_storage(self, start: int, stop: int) -> None:
        self._busy = Busy(self._writer.storage, "read", self._stalls.now())
        entries = await self._writer.read(start, stop, APPLY_BYTES)
        self._busy = self._begin("apply")
        if not self._dead:
            await self.replay(entries)

    async def replay(self, entries: Sequence[Entry]) -> None:
        """Apply ``entries``, awaiting the machine."""
        batch = self._prepare(entries, self.applied_index)
        results = self._apply(batch)
        if not isinstance(results, Sequence):
            await self._finish_later(batch, results)
        else:
            self._finish(batch, results)

    async def _finish_later(self, batch: Batch, results: Awaitable[Sequence[Any]]) -> None:
        try:
            done = await results
        except Exception as error:
            raise self._apply_error(batch, error) from error
        self._finish(batch, done)

    def _apply(self, batch: Batch) -> Sequence[Any] | Awaitable[Sequence[Any]]:
        if not batch.is_alike and not batch.entries and not self._is_durable:
            return ()
        machine = self.machine
        began = self._now()
        try:
            results: Sequence[Any] | Awaitable[Sequence[Any]] = machine.apply(batch)
        except Exception as error:
            self._stalls.ran(machine, "apply", began)
            raise self._apply_error(batch, error) from error
        if self._now() - began > STALL_SECONDS:
            self._stalls.ran(machine, "apply", began)
        if type(results) is list:
            return results
        watched: Sequence[Any] | Awaitable[Sequence[Any]] = self._stalls.watched(results, machine, "apply")
        return watched

    def _apply_error(self, batch: Batch, error: Exception) -> Fatal:
        first = batch.entries[0].log_id if batch.entries else batch.log[0].log_id
        return Fatal(
            f"the state machine {self.machine.name} failed to apply {first}..{batch.last_log_id}:"
            f" {type(error).__name__}: {error}",
            hint="the entry is applied again at the next start; fix the machine first",
        )

    def _finish(self, batch: Batch, results: Sequence[Any]) -> None:
        count = len(batch.entries)
        if len(results) != count:
            raise Fatal(
                f"the state machine {self.machine.name} gave {len(results)} results for {count} entries"
                f" up to {batch.last_log_id}"
            )
        if not batch.is_alike:
            batch.settle(results)
            if not self._is_durable:
                self.system.sessions.drop_changes()
        if self._is_durable and not batch.is_sealed:
            raise Fatal(
                f"the durable state machine {self.machine.name} stored {batch.last_log_id} without batch.seal(results):"
                " what sessions remember would be lost at its next start"
            )
        self.applied = last = batch.last_log_id
        self.applied_index = last.index
        if batch.membership is not None:
            self.membership = batch.membership
        self._stalls.figures.applied_commands += count
        if self.changes is not None:
            self.changes.feed(batch.log, batch.commands(), results)
        self._on_applied(batch, results)
        if self._waits:
            self._wake(last.index)

    def _wake(self, index: int) -> None:
        while self._waits and self._waits[0][0] <= index:
            future = heappop(self._waits)[2]
            if not future.done():
                future.set_result(None)

    # --- snapshots --------------------------------------------------------------------------------------------------

    def _begin_build(self) -> None:
        self._builder.begin(self.applied, self.membership)

    def _built(self, meta: SnapshotMeta | None) -> None:
        if not self._dead:
            self._on_built(meta)

    async def _install(self, request_id: RequestId, meta: SnapshotMeta) -> None:
        sink = self._received.pop(request_id)
        self._busy = self._begin("restore_all")
        try:
            published = await sink.publish(meta)
        except StorageCorrupt as error:
            # The sender's bytes, not this node's: nothing was changed.
            await sink.abort()
            self._on_refused(request_id, error)
            return
        await self.restore_published()
        self._on_installed(request_id, published)

    async def restore_published(self) -> SnapshotMeta | None:
        """Replace the machine's state by the published snapshot; None if there is none."""
        meta = await restore(self._snapshots, self.machine, self.system, self._stalls)
        if meta is None:
            return None
        self.place(meta.last_log_id, meta.membership)
        self._builder.published = self.applied
        self._upto = max(self._upto, self.applied_index)
        self._wake(self.applied_index)
        return meta

    def place(self, applied: LogId | None, membership: StoredMembership) -> None:
        """The machine's state is that at ``applied``, by another way than applying what leads to it."""
        self.applied = applied
        self.applied_index = index_of(applied)
        self.membership = membership
        if self.changes is not None:
            self.changes.continue_after(self.applied_index)

    # --- the end ----------------------------------------------------------------------------------------------------

    def halt(self) -> None:
        """Begin nothing more. What is under way goes on to its end, and nobody hears of it."""
        self._dead = True
        self._jobs.clear()
        if self.changes is not None:
            self.changes.close()

    async def close(self, grace: float) -> None:
        """Stop. What is under way gets ``grace`` seconds, then it is cancelled (and abandoned if it resists)."""
        self.halt()
        tasks: list[asyncio.Task[Any]] = [
            task for task in (self._task, self._builder.task) if task is not None and not task.done()
        ]
        if self._builder.task is not None:
            self._builder.task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=grace)
            late = [task for task in tasks if not task.done()]
            for task in late:
                task.cancel()
            if late:
                await asyncio.wait(late, timeout=grace)
        for sink in self._received.values():
            await sink.abort(keep=True)
        self._received.clear()
        for _, _, future in self._waits:
            if not future.done():
                future.set_exception(Stopped("the node stopped before it was applied here"))
        self._waits.clear()
