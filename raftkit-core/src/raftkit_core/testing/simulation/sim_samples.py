"""What has to hold at every moment of a simulation, looked at now and then."""

from __future__ import annotations

from typing import TYPE_CHECKING

from raftkit_core.runtime.inbox import MAX_QUEUED
from raftkit_core.runtime.state_machine_worker import JOBS_KEPT
from raftkit_core.types.ids import NodeId

if TYPE_CHECKING:
    from raftkit_core.testing.simulation.simulation import Simulation

SAMPLE_SECONDS = 0.05
OVERDUE_SECONDS = 1.0
"""V10: how long after its deadline a call may still wait."""
JOBS_BESIDES = 16
"""Jobs of a machine that are no callers': builds and restores."""


class SimSamples:
    """S22, S29, S31 and V10."""

    def __init__(self, sim: Simulation) -> None:
        self.sim = sim
        self._paused_at: dict[NodeId, float] = {}
        """When a node was last seen to stand still."""

    def look(self) -> None:
        """One sample, and the next one in a while."""
        if self.sim.is_closed:
            return
        self.sim.loop.call_later(SAMPLE_SECONDS, self.look)
        holders = []
        for node_id, life in self.sim.lives.items():
            if life.raft is None:
                continue
            core = life.raft._core
            now = self.sim.clock_of(node_id).monotonic()
            if core.fatal is None and core.engine.is_leader and now < core.engine.read_lease_until(now):
                holders.append(node_id)
            self.sim.oracle.sessions.look_at(core.worker.applied_index, core.worker.system.sessions.__contains__)
            if len(core._inbox) > MAX_QUEUED or len(core.worker._jobs) > JOBS_KEPT + JOBS_BESIDES:
                self.sim.oracle.breach("S29", node_id, "a queue is longer than its bound")
            if self.sim.is_paused(node_id):
                self._paused_at[node_id] = self.sim.now
            elif core.fatal is None and self._paused_at.get(node_id, -1.0) < self.sim.now - OVERDUE_SECONDS:
                late = core.waiting.overdue(now - OVERDUE_SECONDS)
                if late:
                    self.sim.oracle.breach("V10", node_id, f"{late} calls still wait, long after their deadlines")
        self.sim.oracle.leases(holders)
