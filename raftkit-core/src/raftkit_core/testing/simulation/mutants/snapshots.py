"""Mutants of snapshots and purging."""

from __future__ import annotations

from typing import Any

from raftkit_core.engine.handlers.following import FollowingHandler
from raftkit_core.engine.handlers.log import LogHandler
from raftkit_core.engine.handlers.snapshot import SnapshotHandler
from raftkit_core.engine.raft_state import RaftState
from raftkit_core.testing.simulation.engine_machines import RingMachines
from raftkit_core.testing.simulation.engine_node import RingNode
from raftkit_core.testing.simulation.mutants.mutant import Patch, mutant
from raftkit_core.types.log_id import LogId, index_of
from raftkit_core.types.snapshot import SnapshotMeta


@mutant(
    "purge-beyond-snapshot",
    "safety",
    "engine",
    "The log is purged up to what is committed, whether a snapshot holds it or not.",
)
def _(patch: Patch) -> None:
    original = SnapshotHandler.plan_purge

    def plan(self: SnapshotHandler) -> None:
        original(self)
        self._raise_purge(self._parts.state.committed)

    patch.set(SnapshotHandler, "plan_purge", plan)


@mutant(
    "purge-on-request-unclamped",
    "safety",
    "engine",
    "A purge that was asked for is done as asked, beyond the snapshot.",
)
def _(patch: Patch) -> None:
    def request(self: SnapshotHandler, index: int) -> None:
        self._raise_purge(self._parts.state.log.get(min(index, index_of(self._parts.state.committed))))

    patch.set(SnapshotHandler, "request_purge", request)


@mutant(
    "snapshot-keeps-the-tail",
    "safety",
    "engine",
    "A snapshot that the log does not hold is installed beside a conflicting tail (openraft §6 item 13).",
)
def _(patch: Patch) -> None:
    def installed(self: FollowingHandler, meta: SnapshotMeta, request_id: int, now: float) -> None:
        undo = Patch()
        undo.set(LogHandler, "cut", lambda self, since, now: None)
        try:
            finish(self, meta, request_id, now)
        finally:
            undo.undo()

    finish = FollowingHandler.on_snapshot_installed
    patch.set(FollowingHandler, "on_snapshot_installed", installed)


@mutant(
    "snapshot-goes-back",
    "safety",
    "engine",
    "A snapshot older than what is committed is installed.",
)
def _(patch: Patch) -> None:
    original = FollowingHandler.handle_install_snapshot

    def handle(self: FollowingHandler, request: Any, request_id: int, now: float) -> None:
        state = self._parts.state
        committed, state.committed = state.committed, None
        try:
            original(self, request, request_id, now)
        finally:
            state.committed = committed

    patch.set(FollowingHandler, "handle_install_snapshot", handle)


@mutant(
    "snapshot-acked-before-install",
    "safety",
    "engine",
    "A snapshot is acknowledged when its bytes are here, before it is published.",
)
def _(patch: Patch) -> None:
    original = FollowingHandler.handle_install_snapshot

    def handle(self: FollowingHandler, request: Any, request_id: int, now: float) -> None:
        original(self, request, request_id, now)
        if self._parts.installing is request.meta:
            self._respond_snapshot(request_id, 0)

    patch.set(FollowingHandler, "handle_install_snapshot", handle)


@mutant(
    "snapshot-acked-from-memory",
    "safety",
    "engine",
    "A snapshot that brings nothing new is acknowledged although the log it stands for is not on the disk.",
)
def _(patch: Patch) -> None:
    original = FollowingHandler._respond_snapshot
    patch.set(
        FollowingHandler,
        "_respond_snapshot",
        lambda self, request_id, when: original(self, request_id, min(when, self._parts.state.vote_io)),
    )


@mutant(
    "snapshot-of-an-old-leader",
    "safety",
    "engine",
    "A snapshot is taken from whoever sends one.",
    equivalent="what a snapshot holds is committed, whoever sends it, and the answer carries the vote it was "
    "made under",
)
def _(patch: Patch) -> None:
    original = FollowingHandler.handle_install_snapshot

    def handle(self: FollowingHandler, request: Any, request_id: int, now: float) -> None:
        undo = Patch()
        undo.set(FollowingHandler, "_accept_leader", lambda self, vote, lease_ms, now: True)
        try:
            original(self, request, request_id, now)
        finally:
            undo.undo()

    patch.set(FollowingHandler, "handle_install_snapshot", handle)


@mutant(
    "snapshot-with-the-latest-membership",
    "safety",
    "engine",
    "A snapshot carries the membership in force, not the one at its last entry.",
)
def _(patch: Patch) -> None:
    original = RingMachines.build

    def build(self: Any, each: RingNode) -> None:
        state = each.engine.state.membership  # type: ignore[union-attr]
        kept = state.effective, state.committed
        applied = each.applied
        if applied is not None and index_of(state.effective.log_id) > applied.index:
            from raftkit_core.types.membership import StoredMembership

            state.committed = StoredMembership(applied, state.effective.membership)
        try:
            original(self, each)
        finally:
            state.effective, state.committed = kept

    patch.set(RingMachines, "build", build)


@mutant(
    "commit-moves-before-install",
    "safety",
    "engine",
    "The committed position moves when a snapshot's bytes are here, before the machine has it.",
)
def _(patch: Patch) -> None:
    original = FollowingHandler.handle_install_snapshot

    def handle(self: FollowingHandler, request: Any, request_id: int, now: float) -> None:
        original(self, request, request_id, now)
        last = request.meta.last_log_id
        if self._parts.installing is request.meta:
            self._parts.state.committed = last

    patch.set(FollowingHandler, "handle_install_snapshot", handle)


@mutant(
    "appends-during-install",
    "safety",
    "engine",
    "Entries are taken while a snapshot is being installed.",
)
def _(patch: Patch) -> None:
    original = FollowingHandler.handle_append

    def handle(self: FollowingHandler, request: Any, request_id: int, now: float) -> None:
        installing, self._parts.installing = self._parts.installing, None
        try:
            original(self, request, request_id, now)
        finally:
            self._parts.installing = installing

    patch.set(FollowingHandler, "handle_append", handle)


@mutant(
    "snapshot-wish-forgotten",
    "liveness",
    "engine",
    "A snapshot asked for while one is being built is never built (D05, openraft #1829).",
    equivalent="the policy looks again at every commit; only a wish on a quiet node is lost, which the ported "
    "snapshot tests see (test_seed_defects, D05)",
)
def _(patch: Patch) -> None:
    def look_again(self: SnapshotHandler) -> None:
        self._parts.snapshot_wanted = False

    patch.set(SnapshotHandler, "look_again", look_again)


@mutant(
    "install-never-ends",
    "liveness",
    "engine",
    "A node that has installed a snapshot goes on answering that it is busy.",
)
def _(patch: Patch) -> None:
    original = FollowingHandler.on_snapshot_installed

    def installed(self: FollowingHandler, meta: SnapshotMeta, request_id: int, now: float) -> None:
        original(self, meta, request_id, now)
        self._parts.installing = meta

    patch.set(FollowingHandler, "on_snapshot_installed", installed)


@mutant(
    "old-snapshot-replaces-new",
    "safety",
    "engine",
    "A build that ends late replaces a newer snapshot.",
)
def _(patch: Patch) -> None:
    def adopt(self: SnapshotHandler, meta: SnapshotMeta) -> None:
        self._parts.state.snapshot = meta

    patch.set(SnapshotHandler, "adopt", adopt)


@mutant(
    "anything-committed-matches",
    "safety",
    "engine",
    "A leader that contradicts a committed entry is believed (openraft #1892).",
    equivalent="it is the last line of defence: without another mutant no leader contradicts what is committed",
)
def _(patch: Patch) -> None:
    def has(self: RaftState, log_id: LogId) -> bool:
        return log_id.index <= index_of(self.committed) or self.log.get(log_id.index) == log_id

    patch.set(RaftState, "has_log_id", has)
