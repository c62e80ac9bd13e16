"""What must hold after every step, judged by what is on the disks and never by what an engine says of itself.

Names S1, S2, … are those of the project's list of invariants: election safety, log matching, leader completeness and so
on (paper, figure 3), and what a durable answer promises.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

from raftkit_core.engine.engine import Engine
from raftkit_core.types.entry import Entry
from raftkit_core.types.ids import NodeId
from raftkit_core.types.log_id import LogId, index_of
from raftkit_core.types.membership import Membership
from raftkit_core.types.snapshot import SnapshotMeta
from raftkit_core.types.vote import ZERO_VOTE, LeaderId, Vote, vote_ge


class InvariantBroken(AssertionError):
    """A rule did not hold: names it, the node and the values."""


class Disk:
    """What of one node survives a crash."""

    def __init__(self) -> None:
        self.vote: Vote = ZERO_VOTE
        self.entries: dict[int, Entry] = {}
        self.purged: LogId | None = None
        self.committed: LogId | None = None
        self.snapshot: SnapshotMeta | None = None
        self.lease_ms = 0

    @property
    def last_log_id(self) -> LogId | None:
        return self.entries[max(self.entries)].log_id if self.entries else self.purged

    def holds(self, log_id: LogId) -> bool:
        """Whether the entry itself is here, or a published snapshot or a purge stands for it."""
        snapshot = None if self.snapshot is None else self.snapshot.last_log_id
        if snapshot == log_id:
            return True  # whatever the log has there: a restart goes by the snapshot
        entry = self.entries.get(log_id.index)
        if entry is not None:
            return entry.log_id == log_id
        return log_id.index <= max(index_of(self.purged), index_of(snapshot))


class Watched(Protocol):
    """What an observer needs to see of a node."""

    id: NodeId
    disk: Disk
    engine: Engine | None
    log: dict[int, Entry]


class Invariants:
    """Remembers the whole run: each check looks only at what one step touched."""

    def __init__(self, nodes: Mapping[NodeId, Watched], *, single_term_leader: bool = False) -> None:
        self._nodes = nodes
        self._single_term_leader = single_term_leader
        self.leaders: dict[LeaderId, NodeId] = {}
        self.grants: dict[LeaderId, set[NodeId]] = {}
        self.chain: dict[LogId, tuple[LogId | None, bytes]] = {}
        self.committed: dict[int, tuple[LogId, bytes]] = {}
        self.committed_under: dict[int, LeaderId] = {}
        """Under which leader an index was first committed."""
        self.digests: dict[int, int] = {}

    def _require(self, condition: bool, name: str, node: Watched, detail: str) -> None:
        if not condition:
            raise InvariantBroken(f"{name} at {node.id}: {detail}")

    # --- elections --------------------------------------------------------------------------------------------------

    def granted(self, node: Watched, vote: Vote) -> None:
        """A grant leaves ``node``. S15: the vote is durable."""
        durable = node.disk.vote
        is_durable = vote_ge(durable, vote, self._single_term_leader)
        self._require(is_durable, "S15", node, f"grants {vote}, its disk holds {durable}")
        self.grants.setdefault(vote.leader_id, set()).add(node.id)

    def members_of(self, node: Watched) -> Membership:
        """The membership ``node`` must go by."""
        assert node.engine is not None
        return node.engine.effective

    def established(self, node: Watched, vote: Vote) -> None:
        """``node`` leads under ``vote``. S1, S2, S7."""
        members = self.members_of(node)
        leader_id = vote.leader_id
        first = self.leaders.setdefault(leader_id, node.id)
        self._require(first == node.id == leader_id.node_id, "S1", node, f"{leader_id} is led by {first} too")
        if self._single_term_leader:
            others = [other for other in self.leaders if other.term == leader_id.term and other != leader_id]
            self._require(not others, "S1", node, f"term {leader_id.term} has leaders {leader_id} and {others}")
        durable = node.disk.vote
        self._require(durable.leader_id == leader_id, "S2", node, f"leads under {vote} while its disk holds {durable}")
        voters = self.grants.get(leader_id, set()) | {node.id}
        self._require(members.is_quorum(voters), "S2", node, f"leads with the votes of {sorted(voters)} only")
        snapshot = node.disk.snapshot
        covered = max(index_of(node.disk.purged), -1 if snapshot is None else index_of(snapshot.last_log_id))
        for index, (log_id, _) in self.committed.items():
            if self.committed_under[index] > leader_id:
                continue  # a greater leader has been: this one wins late, and can commit nothing any more
            entry = node.log.get(index)
            held = None if entry is None else entry.log_id
            is_held = held == log_id or (held is None and index <= covered)
            self._require(is_held, "S7", node, f"leads with {held} instead of {log_id}")

    # --- the log ----------------------------------------------------------------------------------------------------

    def appended(self, node: Watched, entries: Iterable[Entry]) -> None:
        """``entries`` became durable. S8: a log id names one entry after one entry, everywhere and for ever; S9."""
        disk = node.disk
        for entry in entries:
            prev = disk.entries.get(entry.index - 1)
            prev_id = disk.purged if prev is None else prev.log_id
            at = entry.log_id
            self._require(index_of(prev_id) == at.index - 1, "S9", node, f"{at} follows {prev_id}")
            self._require(prev_id is None or prev_id.leader_id <= at.leader_id, "S9", node, f"{at} after {prev_id}")
            self._require(at.leader_id <= disk.vote.leader_id, "S9", node, f"{at} under the vote {disk.vote}")
            if prev is None and at.index > 0:
                disk.entries[at.index] = entry
                continue  # what a purge or snapshot replaced is compared by its digest
            known = self.chain.setdefault(at, (prev_id, entry.payload))
            self._require(known == (prev_id, entry.payload), "S8", node, f"{at} after {prev_id}, elsewhere {known[0]}")
            disk.entries[at.index] = entry

    def truncating(self, node: Watched, since: int) -> None:
        """``since`` and all after are about to be removed. S11: nothing that is committed."""
        disk = node.disk
        self._require(since > index_of(disk.purged), "S11", node, f"truncates {since}, purged up to {disk.purged}")
        snapshot = -1 if disk.snapshot is None else index_of(disk.snapshot.last_log_id)
        for index, entry in disk.entries.items():
            known = self.committed.get(index)
            lost = index >= since and index > snapshot and known is not None and known[0] == entry.log_id
            self._require(not lost, "S11", node, f"truncates the committed {entry.log_id}")

    def purged(self, node: Watched) -> None:
        """The log begins anew behind a purge. S9: with what may follow it."""
        disk = node.disk
        upto = disk.purged
        if upto is None or not disk.entries:
            return
        first = disk.entries[min(disk.entries)].log_id
        follows = first.index == upto.index + 1 and first.leader_id >= upto.leader_id
        self._require(follows, "S9", node, f"keeps {first} behind {upto}, up to which it purged")

    def acknowledged(self, node: Watched, vote: Vote, matching: LogId | None) -> None:
        """``node`` says that it holds everything up to ``matching`` under ``vote``. S15."""
        disk = node.disk
        self._require(vote_ge(disk.vote, vote, False), "S15", node, f"answers under {vote}, its disk holds {disk.vote}")
        if matching is not None:
            self._require(disk.holds(matching), "S15", node, f"acknowledges {matching}, which is not on its disk")

    # --- commit and apply -------------------------------------------------------------------------------------------

    def committing(self, node: Watched, before: LogId | None, upto: LogId) -> None:
        """``node`` raises what it holds for committed. S5: a leader what a quorum holds, anybody else what a leader has
        committed before; S6."""
        engine = node.engine
        assert engine is not None
        if engine.is_leader:
            leader_id = engine.vote.leader_id
            self._require(upto.leader_id == leader_id, "S5", node, f"{leader_id} commits {upto} of another leader")
            holders = self._holders(upto)
            self._require(
                self.members_of(node).is_quorum(holders), "S5", node, f"commits {upto}, durable only at {holders}"
            )
        elif upto.index in node.log and upto.index not in self.committed:
            self._require(self._was_committed(node, upto), "S5", node, f"commits {upto}, which no leader has committed")
        for index in range(index_of(before) + 1, upto.index + 1):
            entry = node.log.get(index)
            if entry is not None:
                self.committed_under.setdefault(index, engine.vote.leader_id)
                first = self.committed.setdefault(index, (entry.log_id, entry.payload))
                self._require(
                    first == (entry.log_id, entry.payload), "S6", node, f"commits {entry.log_id}, not {first[0]}"
                )

    def _holders(self, log_id: LogId) -> list[NodeId]:
        return [other.id for other in self._nodes.values() if other.disk.holds(log_id)]

    def _was_committed(self, node: Watched, upto: LogId) -> bool:
        """Whether ``node`` committed it as a leader, in the very step in which it stopped to be one."""
        if self.leaders.get(upto.leader_id) != node.id:
            return False
        return self.members_of(node).is_quorum(self._holders(upto))

    def applied(self, node: Watched, index: int, digest: int) -> None:
        """The machine of ``node`` stands at ``index`` with ``digest``. S12."""
        first = self.digests.setdefault(index, digest)
        self._require(first == digest, "S12", node, f"its state at {index} differs from that of another node")

    def check_pointers(self, node: Watched) -> None:
        """S13 in memory and on the disk."""
        engine, disk = node.engine, node.disk
        if engine is not None:
            engine.state.check()
            snapshot = engine.state.snapshot
            covered = -1 if snapshot is None else index_of(snapshot.last_log_id)
            purged, committed = index_of(engine.state.log.purged), index_of(engine.state.committed)
            self._require(purged <= covered <= committed, "S13", node, f"{purged} ≤ {covered} ≤ {committed}")
        durable = -1 if disk.snapshot is None else index_of(disk.snapshot.last_log_id)
        self._require(index_of(disk.purged) <= durable, "S13", node, f"purged {disk.purged} beyond its snapshot")
