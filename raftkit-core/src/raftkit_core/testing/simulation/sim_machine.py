"""Watching a state machine without standing in its way, and a durable one whose disk can fail."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence
from typing import Any, Protocol

from raftkit_core.state_machine.interface import AppliedState, ApplyBatch, RaftStateMachine
from raftkit_core.state_machine.kv import KvStateMachine
from raftkit_core.state_machine.ordered_keys import OrderedKeys
from raftkit_core.testing.simulation.sim_disk import SimDisk
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
        self, cells: dict[str, Any], applied: LogId | None, membership: Any, records: dict[bytes, bytes]
    ) -> None:
        self.cells = cells
        self.applied = applied
        self.membership = membership
        self.records = records


class DurableKv(KvStateMachine):
    """``kv/1`` on a :class:`SimDisk`: data, applied position, membership and records in one transaction (M5)."""

    durable = True

    def __init__(self, disk: SimDisk) -> None:
        super().__init__()
        self._disk = disk
        self._life = disk.life
        held: DurableState | None = disk.machine
        self._state = DurableState({}, None, None, {}) if held is None else held
        if held is not None:
            self._cells = dict(held.cells)
            self._keys = OrderedKeys(sorted(self._cells, key=lambda key: key.encode()))

    async def applied_state(self) -> AppliedState:
        held = self._state
        if held.applied is None:
            return AppliedState()
        return AppliedState(held.applied, held.membership, dict(held.records))

    def apply(self, batch: ApplyBatch) -> Awaitable[Sequence[Any]]:  # type: ignore[override]
        results = list(super().apply(batch))
        records = dict(self._state.records)
        for key, value in batch.seal(results):
            if value is None:
                records.pop(key, None)
            else:
                records[key] = value
        membership = self._state.membership if batch.membership is None else batch.membership
        return self._store(DurableState(dict(self._cells), batch.last_log_id, membership, records), results)

    async def restore_all(
        self, meta: SnapshotMeta, chunks: AsyncIterator[bytes], records: Mapping[bytes, bytes]
    ) -> None:
        await self.restore(meta, chunks)
        await self._store(DurableState(dict(self._cells), meta.last_log_id, meta.membership, dict(records)), ())

    async def _store(self, state: DurableState, results: Sequence[Any]) -> Sequence[Any]:
        pending = self._disk.begin([("machine", state)], self._life)
        if pending is not None:
            await asyncio.shield(pending)
        self._state = state
        return results
