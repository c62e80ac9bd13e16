"""Snapshots of the machine: written from a consistent view in a task of its own, and put back from what is published.

How far the machine is, and when it is whose turn, is the worker's to know: see ``state_machine_worker``.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

from raftkit_core.errors import Fatal, StorageCorrupt
from raftkit_core.runtime.stalls import StallDetector
from raftkit_core.runtime.timed_steps import Busy, timed_chunks
from raftkit_core.state_machine.interface import RaftStateMachine
from raftkit_core.state_machine.system import SystemMachine
from raftkit_core.storage.interface import RaftSnapshotStorage
from raftkit_core.storage.snapshot_format import SnapshotHeader, encode_snapshot, read_snapshot
from raftkit_core.types.log_id import LogId
from raftkit_core.types.membership import StoredMembership
from raftkit_core.types.snapshot import SnapshotMeta


class SnapshotBuilder:
    """One build at a time. ``built`` is told of its end (None: there was nothing to build), ``failed`` of a failure."""

    def __init__(
        self,
        machine: RaftStateMachine,
        system: SystemMachine,
        snapshots: RaftSnapshotStorage,
        stalls: StallDetector,
        *,
        new_snapshot_id: Callable[[LogId], str],
        cluster_id: Callable[[], str | None],
        built: Callable[[SnapshotMeta | None], None],
        failed: Callable[[BaseException], None],
    ) -> None:
        self._machine = machine
        self._system = system
        self._snapshots = snapshots
        self._stalls = stalls
        self._new_snapshot_id = new_snapshot_id
        self._cluster_id = cluster_id
        self._built = built
        self._failed = failed
        self.task: asyncio.Task[SnapshotMeta] | None = None
        self.published: LogId | None = None
        """Where the last snapshot built or restored here ends."""
        self.busy: Busy | None = None
        """The machine's last step, chunk by chunk."""
        self._began = 0.0

    def begin(self, applied: LogId | None, membership: StoredMembership) -> None:
        """Take the view now, between two batches, with the machine at ``applied``; write it in a task of its own."""
        if applied is None or self.task is not None or applied == self.published:
            # Nothing that a snapshot does not hold already.
            self._built(None)
            return
        meta = SnapshotMeta(applied, membership, self._new_snapshot_id(applied), self._system.time_ms)
        header = SnapshotHeader.of(meta, cluster_id=self._cluster_id(), machine=self._machine.name)
        chunks = self._stalls.call(self._machine, "snapshot")
        chunks = timed_chunks(chunks, self._stalls, self._machine, self._chunk_begins, self._chunks_ended)
        self._chunk_begins()
        self._began = self._stalls.now()
        self.task = asyncio.ensure_future(self._write_snapshot(meta, header, self._system.encode(), chunks))
        self.task.add_done_callback(self._build_done)

    def _chunk_begins(self) -> None:
        self.busy = Busy(self._machine, "snapshot", self._stalls.now())

    def _chunks_ended(self) -> None:
        self.busy = None

    async def _write_snapshot(
        self, meta: SnapshotMeta, header: SnapshotHeader, system: bytes, chunks: AsyncIterator[bytes]
    ) -> SnapshotMeta:
        sink = await self._snapshots.sink(meta.snapshot_id)
        try:
            async for piece in encode_snapshot(header, system, chunks):
                await sink.write(piece)
            return await sink.publish(meta)
        except BaseException:
            await sink.abort()
            raise

    def _build_done(self, task: asyncio.Task[SnapshotMeta]) -> None:
        """Told only when the builder is free: the engine may order the next build at once."""
        self.task = self.busy = None
        error = asyncio.CancelledError() if task.cancelled() else task.exception()
        if error is not None:
            self._failed(error)
        else:
            self.published = task.result().last_log_id
            self._stalls.figures.snapshot.observe(self._stalls.now() - self._began)
            self._built(task.result())


async def restore(
    snapshots: RaftSnapshotStorage, machine: RaftStateMachine, system: SystemMachine, stalls: StallDetector
) -> SnapshotMeta | None:
    """Replace the state of both machines by the published snapshot; None if there is none.

    Raises: Fatal, StorageCorrupt, what the machine raises; the system machine is left as it was then.
    """
    source = await snapshots.source()
    if source is None:
        return None
    try:
        reader = await read_snapshot(source.open(0))
        if reader.header.machine != machine.name:
            raise Fatal(
                f"the snapshot holds the machine {reader.header.machine}, this node runs {machine.name}",
                hint="start every node of a cluster with the same state machine",
            )
        if reader.header.last_log_id != source.meta.last_log_id:
            raise StorageCorrupt(
                f"the snapshot storage gave one up to {reader.header.last_log_id} as one up to"
                f" {source.meta.last_log_id}",
                subject="snapshot",
                verb="read",
            )
        decoded = SystemMachine()
        decoded.restore(reader.system)
        await stalls.call(machine, "restore_all", source.meta, reader.machine_chunks(), decoded.records())
        system.restore(reader.system)
    finally:
        await source.close()
    return source.meta
