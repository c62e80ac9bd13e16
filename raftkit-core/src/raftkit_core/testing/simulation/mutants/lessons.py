"""Mutants that this project has once had as bugs: each was found by a seed, and its fix is undone here."""

from __future__ import annotations

from raftkit_core.engine.handlers.following import FollowingHandler
from raftkit_core.engine.handlers.server_state import ServerStateHandler
from raftkit_core.engine.membership_state import MembershipState
from raftkit_core.testing.simulation.mutants.mutant import Patch, mutant
from raftkit_core.types.snapshot import SnapshotMeta


@mutant(
    "install-truncates-memberships",
    "safety",
    "engine",
    "A restarted node that does not know its committed index dies of a snapshot over its log.",
)
def _(patch: Patch) -> None:
    original = FollowingHandler.on_snapshot_installed

    def installed(self: FollowingHandler, meta: SnapshotMeta, request_id: int, now: float) -> None:
        state = self._parts.state
        last = meta.last_log_id
        if last is not None and state.log.get(last.index) != last:
            committed = -1 if state.committed is None else state.committed.index
            state.membership.truncate(committed + 1)
        original(self, meta, request_id, now)

    patch.set(FollowingHandler, "on_snapshot_installed", installed)


@mutant(
    "deposed-leader-campaigns-at-once",
    "liveness",
    "engine",
    "A leader that stepped down campaigns against its successor at once.",
    equivalent="its campaign is refused within the successor's lease and costs nothing after it; the engine "
    "tests compare the deadline",
)
def _(patch: Patch) -> None:
    original = ServerStateHandler.step_down

    def step_down(self: ServerStateHandler, reason: str, now: float) -> None:
        deadline = self._parts.state.election_deadline
        original(self, reason, now)
        self._parts.state.election_deadline = min(deadline, now)

    patch.set(ServerStateHandler, "step_down", step_down)


@mutant(
    "snapshot-membership-ignored",
    "safety",
    "engine",
    "A snapshot that covers the effective membership changes nothing about it.",
)
def _(patch: Patch) -> None:
    patch.set(MembershipState, "install", lambda self, snapshot_last, membership: None)
    patch.set(MembershipState, "replace", lambda self, membership: None)
