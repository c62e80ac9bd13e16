"""What a node says about itself, read straight from its state: never through the queue, never from the disk."""

from __future__ import annotations

from raftkit_core.errors import Stopped
from raftkit_core.runtime.raft_core import RaftCore
from raftkit_core.runtime.service import Identity
from raftkit_core.types.ids import NodeId
from raftkit_core.types.log_id import index_of
from raftkit_core.types.metrics import (
    PeerMetrics,
    RaftDataMetrics,
    RaftMetrics,
    RaftServerMetrics,
    ServerState,
)


def _millis(since: float | None, now: float) -> int | None:
    return None if since is None else max(0, int((now - since) * 1000))


class NodeView:
    """Computes metrics when somebody looks."""

    def __init__(self, core: RaftCore, identity: Identity) -> None:
        self._core = core
        self._identity = identity

    def peers(self) -> dict[NodeId, PeerMetrics] | None:
        """The leader's view of every member but itself; None if not the leader."""
        core = self._core
        progress = core.engine.progress
        if progress is None:
            return None
        now = core.clock.monotonic()
        last = core.engine.state.log.last_index
        members = core.engine.effective.nodes
        return {
            target: PeerMetrics(
                matching=entry.matching,
                lag=max(0, last - index_of(entry.matching)),
                state=entry.state.value,
                last_contact_ms=_millis(core.engine.acked_at(target), now),
                last_error=core.peers.last_error.get(target),
            )
            for target, entry in progress.items()
            if target in members
        }

    def metrics(self) -> RaftMetrics:
        core = self._core
        engine = core.engine
        state = engine.state
        now = core.clock.monotonic()
        running = core.fatal is None
        acked = engine.last_quorum_acked(now) if running else None
        fatal = None if running or isinstance(core.fatal, Stopped) else str(core.fatal)
        rejoin = f"this store is not the one the membership names for {engine.config.id}"
        return RaftMetrics(
            id=engine.config.id,
            running=running,
            fatal=fatal,
            state=state.server_state if running else ServerState.SHUTDOWN,
            current_term=state.vote.term,
            vote=state.vote,
            current_leader=engine.known_leader if running else None,
            last_log_id=state.log.last,
            flushed=state.io.flushed_log_id,
            committed=state.committed,
            last_applied=core.worker.applied,
            snapshot=None if state.snapshot is None else state.snapshot.last_log_id,
            purged=state.log.purged,
            membership=state.membership.effective,
            committed_membership=state.membership.committed,
            replication=self.peers() if running else None,
            millis_since_quorum_ack=_millis(acked, now),
            millis_since_leader_contact=_millis(state.last_contact, now),
            cluster_id=self._identity.current.cluster_id,
            needs_rejoin=rejoin if engine.needs_rejoin else None,
            pending_writes=len(core.waiting),
        )

    def data_metrics(self) -> RaftDataMetrics:
        full = self.metrics()
        return RaftDataMetrics(
            last_log_id=full.last_log_id,
            committed=full.committed,
            last_applied=full.last_applied,
            snapshot=full.snapshot,
            purged=full.purged,
            replication=full.replication,
            millis_since_quorum_ack=full.millis_since_quorum_ack,
        )

    def server_metrics(self) -> RaftServerMetrics:
        engine = self._core.engine
        running = self._core.fatal is None
        return RaftServerMetrics(
            id=engine.config.id,
            vote=engine.vote,
            state=engine.state.server_state if running else ServerState.SHUTDOWN,
            current_leader=engine.known_leader if running else None,
            membership=engine.state.membership.effective,
        )
