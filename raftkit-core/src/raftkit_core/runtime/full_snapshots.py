"""Snapshots in the hands of an application: the published one to read, a complete one to install."""

from __future__ import annotations

from raftkit_core.errors import OutcomeUnknown, WaitTimeout
from raftkit_core.runtime.limits import seconds_for_bytes, within
from raftkit_core.runtime.raft_core import RaftCore
from raftkit_core.runtime.service import PeerService
from raftkit_core.storage.interface import RaftSnapshotStorage
from raftkit_core.types.identity import PeerIdentity
from raftkit_core.types.messages import InstallSnapshotRequest, InstallSnapshotResponse
from raftkit_core.types.snapshot import SnapshotSource
from raftkit_core.types.vote import Vote

OPEN_TIMEOUT = 5.0


class FullSnapshots:
    """``Raft.get_snapshot`` and ``Raft.install_full_snapshot`` say the contracts."""

    def __init__(self, core: RaftCore, snapshots: RaftSnapshotStorage, service: PeerService) -> None:
        self._core = core
        self._snapshots = snapshots
        self._service = service

    async def published(self) -> SnapshotSource | None:
        self._core.check_running()
        held = self._core.engine.state.snapshot
        seconds = seconds_for_bytes(OPEN_TIMEOUT, 0 if held is None else held.size_bytes)  # it is read whole first
        try:
            return await within(self._snapshots.source(), seconds, "opening the snapshot")
        except TimeoutError as error:
            raise WaitTimeout(str(error), hint="look at the disk of the snapshots") from None

    async def install(self, vote: Vote, snapshot: SnapshotSource, timeout: float) -> InstallSnapshotResponse:
        self._core.check_running()
        request = InstallSnapshotRequest(vote, snapshot.meta)
        node = self._core.engine.effective.nodes.get(vote.node_id)
        peer = PeerIdentity(vote.node_id, "" if node is None or node.store_id is None else node.store_id)
        installing = self._service.install_snapshot(request, 0, snapshot.open(0), peer)
        try:
            return await within(installing, timeout, "installing the snapshot")
        except TimeoutError as error:
            raise OutcomeUnknown(str(error), hint="look at: raftkit status") from None
