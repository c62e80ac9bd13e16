"""Snapshots and purging: when to build, what to remove (openraft.md §2.9).

A volatile machine is restored from the snapshot, so the policy builds one, and only what it covers is purged. A durable
machine keeps what it has applied: the policy purges behind its applied position, and a snapshot is built when a peer
needs one, or when somebody asks.
"""

from __future__ import annotations

from raftkit_core.config import LogBytesSinceLast, LogsSinceLast
from raftkit_core.engine.commands import BuildSnapshot
from raftkit_core.engine.handlers.log import LogHandler
from raftkit_core.engine.parts import EngineParts
from raftkit_core.types.ids import IoId
from raftkit_core.types.log_id import LogId, index_of
from raftkit_core.types.snapshot import SnapshotMeta

PURGE_STEP_ENTRIES = 1024
"""As many as a store deletes within a few milliseconds."""


class SnapshotHandler:
    def __init__(self, parts: EngineParts, log: LogHandler) -> None:
        self._parts = parts
        self._log = log
        self._purge_upto: LogId | None = None
        self.step_io: IoId = 0
        """The write of a purge that is only a part of what is planned; 0: the last one was the whole."""
        self._step_at = 0.0
        self._due_when_applied = False
        self.looks_at_applied = parts.config.machine_is_durable
        """Whether it matters what is applied: :meth:`on_applied` is to be told."""
        policy = parts.config.snapshot_policy
        self._least_bytes = policy.minimum_bytes if isinstance(policy, LogBytesSinceLast) else 0
        """No snapshot is due by policy before the log has grown by so much."""
        self._mark_before = 0
        """Where the bytes policy counted from before the build under way; it does again if that gives nothing."""

    @property
    def purge_upto(self) -> LogId | None:
        """What may be purged as soon as nobody reads it."""
        return self._purge_upto

    def check_policy(self, *, after_build: bool = False) -> None:
        """Build a snapshot if the policy asks for one at this commit.

        A build covers what is applied: where that lags behind the commits, another build right after one would give the
        same again, endlessly. It waits until something more is applied.
        """
        state = self._parts.state
        if state.log_bytes - state.snapshot_mark < self._least_bytes:
            if self._due_when_applied:
                self._wait_for_applied(False)
            return
        if self._parts.config.machine_is_durable:
            return
        policy = self._parts.config.snapshot_policy
        snapshot = state.snapshot
        if isinstance(policy, LogsSinceLast):
            last = -1 if snapshot is None else index_of(snapshot.last_log_id)
            due = index_of(state.committed) - last >= policy.count
        elif isinstance(policy, LogBytesSinceLast):
            size_bytes = 0 if snapshot is None else snapshot.size_bytes
            due = state.log_bytes - state.snapshot_mark >= max(policy.minimum_bytes, size_bytes)
        else:
            due = False
        covered = -1 if snapshot is None else index_of(snapshot.last_log_id)
        self._wait_for_applied(due and after_build and index_of(state.applied) <= covered)
        if due and not self._due_when_applied:
            self.build()

    def _wait_for_applied(self, due: bool) -> None:
        self._due_when_applied = due
        self.looks_at_applied = due or self._parts.config.machine_is_durable

    def on_applied(self, now: float) -> None:
        """The machine has gone on: a build that waited for it may be due; behind a durable one the log may go."""
        if self._parts.config.machine_is_durable:
            self._purge_behind_machine(now)
        elif self._due_when_applied:
            self.check_policy(after_build=True)

    def _purge_behind_machine(self, now: float) -> None:
        """Purge behind what a durable machine has applied, as often as the policy would have built a snapshot.

        Not while a snapshot is built: what follows it must be there for the peer that gets it, or that peer needs the
        next snapshot, endlessly. For the same reason the bytes count from the build's view, and up to its size.
        """
        parts = self._parts
        state = parts.state
        policy = parts.config.snapshot_policy
        if parts.building_snapshot or parts.installing is not None:
            return
        if isinstance(policy, LogsSinceLast):
            held = index_of(state.applied) - index_of(state.log.purged)
            due = held >= policy.count + parts.config.snapshot_logs_to_keep
        elif isinstance(policy, LogBytesSinceLast):
            size_bytes = 0 if state.snapshot is None else state.snapshot.size_bytes
            due = state.log_bytes - state.snapshot_mark >= max(policy.minimum_bytes, size_bytes)
        else:
            due = False
        if due and self._plan_purge_behind(state.applied):
            state.snapshot_mark = state.log_bytes
            self.try_purge(now)

    def trigger(self) -> None:
        """Build now; while that cannot be remember the wish and look again when it can (§6 item 27)."""
        if not self.build():
            self._parts.snapshot_wanted = True

    def build(self) -> bool:
        """Build unless a build or an install is under way; says whether it was ordered."""
        parts = self._parts
        if parts.building_snapshot or parts.installing is not None:
            return False
        parts.building_snapshot = True
        parts.snapshot_wanted = False
        self._mark_before = parts.state.snapshot_mark
        parts.state.snapshot_mark = parts.state.log_bytes
        parts.output.push(BuildSnapshot())
        return True

    def on_built(self, meta: SnapshotMeta | None, now: float) -> None:
        """A build ended, with a published snapshot or without (nothing applied yet, or given up)."""
        state = self._parts.state
        self._parts.building_snapshot = False
        if meta is None or index_of(meta.last_log_id) > index_of(state.committed):
            # Beyond what is committed here nothing was built: a snapshot that is being installed was published
            # meanwhile, and is newer. It counts when it is installed; until then this log may hold other entries there.
            state.snapshot_mark = self._mark_before
            self.look_again()
            return
        self.adopt(meta)
        self.plan_purge()
        self.try_purge(now)
        self.look_again()
        self.check_policy(after_build=True)

    def look_again(self) -> None:
        """A build or an install has ended: somebody may have asked for more than it covers."""
        parts = self._parts
        snapshot = parts.state.snapshot
        covered = -1 if snapshot is None else index_of(snapshot.last_log_id)
        wanted, parts.snapshot_wanted = parts.snapshot_wanted, False
        if wanted and index_of(parts.state.committed) > covered:
            self.trigger()

    def adopt(self, meta: SnapshotMeta) -> None:
        """``meta`` is published; an older or equal one changes nothing (§6 item 53)."""
        current = self._parts.state.snapshot
        if current is None or index_of(meta.last_log_id) > index_of(current.last_log_id):
            self._parts.state.snapshot = meta

    def plan_purge(self) -> None:
        """Keep some entries behind the snapshot for peers that lag a little, and purge in batches only."""
        snapshot = self._parts.state.snapshot
        assert snapshot is not None, "purging is planned after a snapshot"
        self._plan_purge_behind(snapshot.last_log_id)

    def _plan_purge_behind(self, position: LogId | None) -> bool:
        """Says whether there was enough to plan."""
        parts = self._parts
        end = index_of(position) + 1 - parts.config.snapshot_logs_to_keep
        if end <= 0 or parts.state.log.first_index + parts.config.purge_batch_size > end:
            return False
        self._raise_purge(parts.state.log.get(end - 1))
        return True

    def request_purge(self, index: int) -> None:
        """Purge up to ``index`` on request, never beyond the snapshot, or what a durable machine has applied; keeps
        nothing behind it."""
        state = self._parts.state
        covered = -1 if state.snapshot is None else index_of(state.snapshot.last_log_id)
        if self._parts.config.machine_is_durable:
            covered = max(covered, index_of(state.applied))
        if covered >= 0:
            self._raise_purge(state.log.get(min(index, covered)))

    def _raise_purge(self, upto: LogId | None) -> None:
        if upto is not None and upto.index > index_of(self._purge_upto):
            self._purge_upto = upto

    def try_purge(self, now: float) -> None:
        """Purge what is planned, but nothing that a request in flight was built on.

        In steps, each after the one before is durable: to delete a million entries takes a store seconds, in which it
        takes no write, and a leader that waits for it steps down.
        """
        upto, state = self._purge_upto, self._parts.state
        purged = index_of(state.log.purged)
        if upto is None or upto.index <= purged:
            return
        if self.step_io and (state.io.flushed_io < self.step_io or now <= self._step_at):
            return
        is_part = upto.index - purged > PURGE_STEP_ENTRIES
        if is_part:
            upto = state.log.get(purged + PURGE_STEP_ENTRIES)
            assert upto is not None, "what is planned is in the log"
        leader = self._parts.leader
        if leader is not None:
            for entry in leader.progress.values():
                lowest = entry.lowest_prev_inflight
                if lowest is not None and lowest < upto.index:
                    return
        self._log.purge(upto, now)
        self.step_io, self._step_at = (state.io.last_io if is_part else 0), now

    def go_on_purging(self, now: float) -> None:
        """A write is durable, or time has passed: the next step of a long purge may be due."""
        if self.step_io:
            self.try_purge(now)
