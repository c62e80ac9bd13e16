"""Sending snapshots: one transfer per peer, cancelled when the leadership or the stream ends."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from raftkit_core.engine.commands import ReplicateSnapshot
from raftkit_core.errors import StorageError
from raftkit_core.runtime.messages import Notification, SnapshotSent
from raftkit_core.runtime.replication import ReplicationStream
from raftkit_core.storage.interface import RaftSnapshotStorage
from raftkit_core.types.ids import NodeId
from raftkit_core.types.messages import InstallSnapshotRequest


class SnapshotTransfers:
    """Streams the published snapshot, whichever is newest when the transfer begins."""

    def __init__(
        self,
        *,
        snapshots: RaftSnapshotStorage,
        notify: Callable[[Notification], None],
        failed: Callable[[BaseException], None],
        chunk_timeout: float,
    ) -> None:
        self._snapshots = snapshots
        self._notify = notify
        self._failed = failed
        self._chunk_timeout = chunk_timeout
        self._tasks: dict[NodeId, asyncio.Task[None]] = {}
        self._all: dict[asyncio.Task[None], None] = {}
        """The cancelled ones that have not ended yet, too."""

    def send(self, command: ReplicateSnapshot, stream: ReplicationStream) -> None:
        self.cancel(stream.target)
        task = asyncio.ensure_future(self._send(command, stream))
        self._tasks[stream.target] = task
        self._all[task] = None
        task.add_done_callback(lambda done: self._done(done, command, stream))

    async def _send(self, command: ReplicateSnapshot, stream: ReplicationStream) -> None:
        source = await self._snapshots.source()
        if source is None:
            raise StorageError("the snapshot to send is gone", subject="snapshot", verb="read")
        try:
            request = InstallSnapshotRequest(command.vote, source.meta)
            response = await stream.network.install_snapshot(request, source, self._chunk_timeout)
        finally:
            await source.close()
        stream.snapshot_succeeded()
        self._notify(SnapshotSent(command, source.meta.last_log_id, response))

    def _done(self, task: asyncio.Task[None], command: ReplicateSnapshot, stream: ReplicationStream) -> None:
        self._all.pop(task, None)
        if self._tasks.get(stream.target) is task:
            del self._tasks[stream.target]
        if task.cancelled():
            return
        error = task.exception()
        if isinstance(error, StorageError):
            self._failed(error)
        elif error is not None:
            stream.snapshot_failed(command, error)

    def cancel(self, target: NodeId) -> None:
        task = self._tasks.pop(target, None)
        if task is not None:
            task.cancel()

    async def close(self, grace: float) -> None:
        """Cancel every transfer, and wait for their ends for ``grace`` seconds."""
        for target in list(self._tasks):
            self.cancel(target)
        if self._all:
            await asyncio.wait(list(self._all), timeout=grace)
