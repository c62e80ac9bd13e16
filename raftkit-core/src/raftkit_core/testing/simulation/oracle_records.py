"""What the oracle knows of a run: who led and who granted, what is committed and acknowledged, what was broken."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from raftkit_core.testing.simulation.rules import NOT_RULES, RULES
from raftkit_core.testing.simulation.session_rules import SessionRules
from raftkit_core.testing.simulation.sim_disk import SimDisk
from raftkit_core.testing.simulation.trace import Trace
from raftkit_core.types.entry import Entry
from raftkit_core.types.ids import NodeId
from raftkit_core.types.log_id import LogId, index_of
from raftkit_core.types.membership import Membership, StoredMembership
from raftkit_core.types.vote import LeaderId


class Breach:
    """A rule that did not hold."""

    def __init__(self, rule: str, node: NodeId, detail: str, at: float) -> None:
        self.rule = rule
        self.node = node
        self.detail = detail
        self.at = at

    def __str__(self) -> str:
        return f"{self.rule} at {self.node} after {self.at:.3f} s: {self.detail}"


class OracleRecords:
    """Remembers, for the whole run and across crashes. ``breaches`` is empty as long as every rule held."""

    def __init__(
        self,
        disks: Mapping[NodeId, SimDisk],
        trace: Trace,
        *,
        single_term_leader: bool,
        effective: Callable[[NodeId], StoredMembership],
    ) -> None:
        self._disks = disks
        self._trace = trace
        self._single_term_leader = single_term_leader
        self._told_of = effective
        self.breaches: list[Breach] = []
        self.on_breach: Callable[[], None] = lambda: None
        """Is told of every breach."""
        self.leaders: dict[LeaderId, NodeId] = {}
        self._led_in: dict[LeaderId, int] = {}
        """In which life of its disk a leader led: a node that was restarted does not lead."""
        self.grants: dict[LeaderId, dict[NodeId, None]] = {}
        self.chain: dict[LogId, tuple[LogId | None, int]] = {}
        self.committed: dict[int, Entry] = {}
        self.committed_under: dict[int, LeaderId] = {}
        """The leader that was followed where an index was first seen to be committed: at least the one that did it."""
        self.committed_index = -1
        self.digests: dict[int, int] = {}
        self.states: dict[int, str] = {}
        self.system_states: dict[int, int] = {}
        self.acks: dict[NodeId, dict[LeaderId, int]] = {}
        """Up to where each node holds, durably and still, what it acknowledged to a leader."""
        self.said: dict[tuple[NodeId, LeaderId], int] = {}
        """Up to where it ever said so."""
        self._commit_told_last: tuple[NodeId, LogId] | None = None
        self._told_index = -1
        """Up to where some leader told others that it is committed."""
        self.sessions = SessionRules(trace, self.breach)
        self.on_moment: Callable[[str, NodeId], None] = lambda moment, node: None
        """Is told when somebody becomes leader ("winner"), or has published a snapshot of others ("install")."""

    def breach(self, rule: str, node: NodeId, detail: str) -> None:
        assert rule in RULES or rule in NOT_RULES, f"{rule} is no rule"
        self._trace.event("breach", node, f"{rule} {detail}")
        self.breaches.append(Breach(rule, node, detail, self._trace.now()))
        self.on_breach()

    def _effective(self, node: NodeId) -> Membership:
        """The membership ``node`` must go by: the last in its log on the disk, or of its snapshot. A node is asked only
        for one that is still on its way to the disk: behind the end of what that holds."""
        disk = self._disks[node]
        told = self._told_of(node)
        if index_of(told.log_id) > index_of(disk.last_log_id) and index_of(told.log_id) > index_of(disk.snapshot_last):
            return told.membership
        return self._last_membership(disk)[1]

    @staticmethod
    def _last_membership(disk: SimDisk) -> tuple[LogId | None, Membership]:
        """The last membership that is durable in the log, or that of the snapshot."""
        at, members = None, Membership()
        if disk.snapshot is not None:
            stored = disk.snapshot[0].membership
            at, members = stored.log_id, stored.membership
        if disk.memberships and index_of(disk.memberships[-1][0]) > index_of(at):
            at, members = disk.memberships[-1]
        return at, members
