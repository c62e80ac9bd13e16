"""What happened to a node lately, in words: role changes, elections, membership, snapshots, stalls, its end.

A bounded ring that an operator, ``/v1/events`` and ``/ui`` look at. Information only: nothing depends on it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from raftkit_core.clock import Clock
from raftkit_core.instrument import Instrument
from raftkit_core.types.ids import NodeId
from raftkit_core.types.log_id import index_of
from raftkit_core.types.membership import StoredMembership
from raftkit_core.types.metrics import NodeCounters, NodeEvent, ServerState
from raftkit_core.types.snapshot import SnapshotMeta

EVENTS_KEPT = 512

_ROLE_WORDS = {
    ServerState.LEADER: "won the election and leads",
    ServerState.CANDIDATE: "campaigns",
    ServerState.FOLLOWER: "is a follower",
    ServerState.LEARNER: "is a learner",
    ServerState.SHUTDOWN: "shuts down",
}


class EventLog(Instrument):
    """``counters`` counts the same facts for metrics.

    Numbers begin at the wall clock's milliseconds: who asks for what is new since a number gets it after a restart too.
    """

    def __init__(self, node_id: NodeId, clock: Clock, term: Callable[[], int], kept: int = EVENTS_KEPT) -> None:
        self._node_id = node_id
        self._clock = clock
        self._term = term
        self._events: deque[NodeEvent] = deque(maxlen=kept)
        self._last = 0
        self._role: ServerState | None = None
        self._leader: NodeId | None = None
        self.counters = NodeCounters()

    def since(self, after: int = 0, limit: int = EVENTS_KEPT) -> list[NodeEvent]:
        """The oldest ``limit`` events with a number above ``after`` that are kept."""
        return [event for event in self._events if event.number > after][:limit]

    def add(self, kind: str, message: str) -> None:
        at_ms = int(self._clock.wall() * 1000)
        self._last = self._last + 1 if self._last else at_ms
        self._events.append(NodeEvent(self._last, at_ms, self._term(), kind, f"{self._node_id} {message}"))

    def on_server_state(self, state: ServerState) -> None:
        before, self._role = self._role, state
        if state is ServerState.CANDIDATE:
            self.counters.elections_started += 1
        elif state is ServerState.LEADER:
            # Both within one turn, where nobody else had to answer: the campaign was not shown.
            self.counters.elections_started += before is not ServerState.CANDIDATE
            self.counters.elections_won += 1
        elif before is ServerState.CANDIDATE:
            self.counters.elections_lost += 1
        words = _ROLE_WORDS[state]
        if before is ServerState.LEADER and state is not ServerState.SHUTDOWN:
            words = "leads no more"
        self.add("election" if state is ServerState.CANDIDATE else "role", words)

    def on_leader_change(self, leader: NodeId | None, term: int) -> None:
        if leader == self._leader:
            return
        self._leader = leader
        if leader is None:
            self.add("leader", "knows no leader")
            return
        self.counters.leader_changes += 1
        if leader != self._node_id:
            self.add("leader", f"follows {leader}")

    def on_membership(self, membership: StoredMembership) -> None:
        held = membership.membership
        if not held.configs:
            return
        joint = " (joint: a change is under way)" if held.is_joint else ""
        learners = [node_id for node_id in held.nodes if not held.is_voter(node_id)]
        also = f", learners {', '.join(learners)}" if learners else ""
        self.add("membership", f"sees voters {', '.join(held.voter_ids)}{also}{joint}")

    def on_snapshot(self, meta: SnapshotMeta) -> None:
        self.counters.snapshots += 1
        self.add("snapshot", f"has a snapshot up to {index_of(meta.last_log_id)} ({meta.size_bytes} bytes)")

    def on_storage_stall(self, seconds: float) -> None:
        self.counters.storage_stalls += 1
        self.add("stall", f"waits for its disk for {seconds:.1f} s")

    def on_plugin_stall(self, name: str, seconds: float) -> None:
        self.counters.plugin_stalls += 1
        self.add("stall", f"was held up by {name} for {seconds:.1f} s")

    def on_fatal(self, error: BaseException) -> None:
        self.add("fatal", f"stopped for good: {error}")


__all__ = ["EVENTS_KEPT", "EventLog"]
