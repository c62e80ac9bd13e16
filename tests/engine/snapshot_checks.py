"""A follower that is sent a snapshot."""

from __future__ import annotations

from raftkit_core.engine.engine import Engine
from raftkit_core.testing.builders import engine_with, log_id, membership, store_of, vote
from raftkit_core.types.messages import InstallSnapshotRequest, InstallSnapshotResponse
from raftkit_core.types.snapshot import SnapshotMeta
from raftkit_core.types.vote import Vote

THREE = membership("n1 n2 n3")
ZERO = log_id(0, "", 0)
ME = store_of("n1")
LEADER = vote(3, "n3", committed=True)
DONE = InstallSnapshotResponse(ME, LEADER)


def following(**kwargs: object) -> Engine:
    """n1 follows n3; 1..2 of term 1 and 3..5 of term 2 are durable, 2 is committed."""
    defaults: dict[str, object] = {
        "vote": LEADER,
        "log": [ZERO, log_id(1, "n1", 1), log_id(2, "n2", 3), log_id(2, "n2", 5)],
        "committed": log_id(1, "n1", 2),
        "largest_lease_ms": 500,
    }
    return engine_with("n1", THREE, **(defaults | kwargs))  # type: ignore[arg-type]


def receive(engine: Engine, meta: SnapshotMeta, *, leader: Vote = LEADER, request_id: int = 7) -> list[object]:
    engine.handle_install_snapshot(InstallSnapshotRequest(leader, meta), request_id, 1.0)
    return list(engine.take_commands())


def installed(engine: Engine, meta: SnapshotMeta) -> list[object]:
    engine.on_snapshot_installed(meta, 7, 1.5)
    return list(engine.take_commands())
