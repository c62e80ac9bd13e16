"""A follower that is sent a snapshot."""

from __future__ import annotations

from following import LEADER, ME

from raftkit_core.engine.engine import Engine
from raftkit_core.types.messages import InstallSnapshotRequest, InstallSnapshotResponse
from raftkit_core.types.snapshot import SnapshotMeta
from raftkit_core.types.vote import Vote

DONE = InstallSnapshotResponse(ME, LEADER)


def receive(engine: Engine, meta: SnapshotMeta, *, leader: Vote = LEADER, request_id: int = 7) -> list[object]:
    engine.handle_install_snapshot(InstallSnapshotRequest(leader, meta), request_id, 1.0)
    return list(engine.take_commands())


def installed(engine: Engine, meta: SnapshotMeta) -> list[object]:
    engine.on_snapshot_installed(meta, 7, 1.5)
    return list(engine.take_commands())
