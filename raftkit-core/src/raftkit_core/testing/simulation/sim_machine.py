"""Watching a state machine without standing in its way, and a durable one whose disk can fail."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence
from typing import Any, Protocol

from raftkit_core.errors import IdentityError, StorageError, StorageLocked
from raftkit_core.state_machine.interface import AppliedState, ApplyBatch, RaftStateMachine
from raftkit_core.state_machine.kv import KvStateMachine
from raftkit_core.state_machine.ordered_keys import OrderedKeys
from raftkit_core.testing.simulation.sim_disk import SimDisk
from raftkit_core.types.adapter import AdapterContext
from raftkit_core.types.entry import Entry
from raftkit_core.types.ids import NodeId
from raftkit_core.types.log_id import LogId, index_of
from raftkit_core.types.snapshot import SnapshotMeta


class MachineObserver(Protocol):
    def applying(self, node: NodeId, before: int, log: Sequence[Entry], results: Mapping[int, Any]) -> None: ...
    def applied(self, node: NodeId, at: LogId, state: str | None) -> None: ...


class WatchedMachine:
    """What one life of a node's machine did. The machine stays the author's own object: its methods are watched."""

    def __init__(self, node: NodeId, machine: RaftStateMachine, observer: MachineObserver) -> None:
        self.node = node
        self.machine = machine
        self.index = -1
        """The last index seen here."""
        self._under_way = False
        self._observer = observer
        self._apply = machine.apply
        self._restore_all = machine.restore_all
        self._applied_state = machine.applied_state
        self._snapshot = machine.snapshot
        watched: Any = machine
        watched.apply = self.apply
        watched.restore_all = self.restore_all
        watched.applied_state = self.applied_state
        watched.snapshot = self.snapshot

    def apply(self, batch: ApplyBatch) -> Sequence[Any] | Awaitable[Sequence[Any]]:
        results = self._apply(batch)
        if isinstance(results, Sequence):
            self._done(batch, results)
            return results
        return self._later(batch, results)

    async def _later(self, batch: ApplyBatch, results: Awaitable[Sequence[Any]]) -> Sequence[Any]:
        self._under_way = True
        done = await results
        self._under_way = False
        self._done(batch, done)
        return done

    def is_at(self, index: int) -> bool:
        """Whether the machine's state is that of ``index``: no later batch is under way."""
        return self.index == index and not self._under_way

    def _done(self, batch: ApplyBatch, results: Sequence[Any]) -> None:
        log: Sequence[Entry] = batch.log  # type: ignore[attr-defined]
        by_index = {entry.log_id.index: result for entry, result in zip(batch.entries, results, strict=False)}
        self._observer.applying(self.node, self.index, log, by_index)
        self.index = log[-1].log_id.index

    async def restore_all(
        self, meta: SnapshotMeta, chunks: AsyncIterator[bytes], records: Mapping[bytes, bytes]
    ) -> None:
        await self._restore_all(meta, chunks, records)
        self.index = index_of(meta.last_log_id)
        if meta.last_log_id is not None:
            self._observer.applied(self.node, meta.last_log_id, self.digest())

    async def applied_state(self) -> AppliedState:
        state = await self._applied_state()
        self.index = index_of(state.applied)
        return state

    def snapshot(self) -> AsyncIterator[bytes]:
        return self._snapshot()

    def digest(self) -> str | None:
        found = self.machine.digest()
        if found is None or isinstance(found, str):
            return found
        close = getattr(found, "close", None)
        if close is not None:
            close()
        return None


class DurableState:
    """What :class:`DurableKv` keeps on its disk, replaced as a whole: that is its transaction."""

    def __init__(
        self,
        owner: tuple[NodeId, str],
        cells: dict[str, Any] | None = None,
        state: AppliedState | None = None,
    ) -> None:
        self.owner = owner
        """Node id and group."""
        self.cells = {} if cells is None else cells
        self.state = AppliedState() if state is None else state

    @property
    def applied(self) -> LogId | None:
        return self.state.applied


class DurableKv(KvStateMachine):
    """``kv/1`` on a :class:`SimDisk`: data, applied position, membership and records in one transaction (M5)."""

    durable = True

    def __init__(self, disk: SimDisk) -> None:
        super().__init__()
        self._disk = disk
        self._life = disk.life
        self._state = DurableState(("", ""))
        self._failure: StorageError | None = StorageError("the state machine is not open", subject="state machine")

    async def open(self, context: AdapterContext) -> None:
        disk = self._disk
        owner = (context.node_id, context.group)
        if disk.machine_opened_by is not None:
            raise StorageLocked(
                f"the state on {disk.location} is held by node {disk.machine.owner[0]}",
                hint="stop that node first, or give this one a disk of its own",
            )
        held = DurableState(owner) if disk.machine is None else disk.machine
        if held.owner != owner:
            raise IdentityError(
                f"the state on {disk.location} belongs to {held.owner}, not to {owner}",
                hint=f"start node {held.owner[0]} on it",
            )
        disk.machine_opened_by = self
        disk.machine = self._state = held
        self._life = disk.life
        self._failure = None
        self._cells = dict(held.cells)
        self._keys = OrderedKeys(sorted(self._cells))

    async def close(self) -> None:
        if self._disk.machine_opened_by is self:
            self._disk.machine_opened_by = None
            self._failure = StorageError("the state machine is closed", subject="state machine")

    async def applied_state(self) -> AppliedState:
        return self._state.state

    def apply(self, batch: ApplyBatch) -> Awaitable[Sequence[Any]]:  # type: ignore[override]
        if self._failure is not None:
            raise StorageError(f"an earlier write failed: {self._failure}", subject="state machine")
        before, cells = self._state.state, self._cells
        self._cells = dict(cells)
        try:
            results = list(super().apply(batch))
            records = dict(before.records)
            for key, value in batch.seal(results):
                if value is None:
                    records.pop(key, None)
                else:
                    records[key] = value
        except BaseException:
            self._cells, self._keys = cells, OrderedKeys(sorted(cells))
            raise
        membership = before.membership if batch.membership is None else batch.membership
        return self._store(AppliedState(batch.last_log_id, membership, records), results)

    async def restore_all(
        self, meta: SnapshotMeta, chunks: AsyncIterator[bytes], records: Mapping[bytes, bytes]
    ) -> None:
        await self.restore(meta, chunks)
        await self._store(AppliedState(meta.last_log_id, meta.membership, dict(records)), ())

    async def _store(self, state: AppliedState, results: Sequence[Any]) -> Sequence[Any]:
        made = DurableState(self._state.owner, dict(self._cells), state)
        try:
            pending = self._disk.begin([("machine", made)], self._life)
            if pending is not None:
                await asyncio.shield(pending)
        except StorageError as error:
            self._failure = error
            raise
        self._state = made
        return results
