"""The oracle on what disks are given to hold: S3, S4, S6, S8 to S11, S13, S14, S16 to S18, S24, S25."""

from __future__ import annotations

from zlib import crc32

from raftkit_core.testing.simulation.oracle_commits import CommitRules
from raftkit_core.testing.simulation.sim_disk import SimDisk
from raftkit_core.types.entry import MEMBERSHIP, Entry, decode_membership
from raftkit_core.types.identity import StoreIdentity
from raftkit_core.types.ids import NodeId
from raftkit_core.types.log_id import LogId, index_of, log_id_le, log_id_lt
from raftkit_core.types.membership import Membership
from raftkit_core.types.snapshot import SnapshotMeta
from raftkit_core.types.vote import Vote, vote_ge


class DiskRules(CommitRules):
    """Called by :class:`~.sim_disk.SimDisk` for every change, as it becomes durable."""

    def disk_vote(self, disk: SimDisk, vote: Vote) -> None:
        """S3: a durable vote never falls. S4: it counts as granted only if somebody won it."""
        if not vote_ge(vote, disk.held_vote, self._single_term_leader):
            self.breach("S3", disk.node_id, f"its vote falls from {disk.vote} to {vote}")
        if vote.committed and vote.node_id != disk.node_id and vote.leader_id not in self.leaders:
            self.breach("S4", disk.node_id, f"holds {vote} for granted, which nobody won")
        self._trace.event("disk", disk.node_id, ("vote", str(vote)))

    def disk_truncate(self, disk: SimDisk, since: int) -> None:
        """S10, S11, S17: never what is committed, never by the leader itself, never what was acknowledged under a
        leader that is not superseded."""
        node = disk.node_id
        self._trace.event("disk", node, ("truncate", since))
        last = index_of(disk.last_log_id)
        if since <= last:
            self._trace.seen("log.truncated")
        if since <= index_of(disk.last_purged):
            self.breach("S11", node, f"truncates {since}, purged up to {disk.last_purged}")
        snapshot = index_of(disk.snapshot_last)
        for index in range(max(since, snapshot + 1), last + 1):
            known, held = self.committed.get(index), disk.entry_at(index)
            if known is not None and held is not None and held.log_id == known.log_id:
                self.breach("S11", node, f"truncates the committed {held.log_id}")
                break
        vote = disk.held_vote
        leads = self.leaders.get(vote.leader_id) == node and self._led_in[vote.leader_id] == disk.life
        if vote.committed and leads and since <= last:
            self.breach("S10", node, f"truncates {since} while it leads as {vote.leader_id}")
        acks = self.acks.get(node)
        for leader_id in list(acks or ()):
            assert acks is not None
            acked = acks[leader_id]
            if acked >= since and acked > snapshot:
                if leader_id >= vote.leader_id and since <= last:
                    self.breach("S17", node, f"loses {since}, acknowledged to {leader_id} up to {acked}, under {vote}")
                acks[leader_id] = since - 1

    def disk_purge(self, disk: SimDisk, upto: LogId) -> None:
        """S25, S13: only what a durable snapshot or a durable machine stands for."""
        self._trace.event("disk", disk.node_id, ("purge", str(upto)))
        self._trace.seen("log.purged")
        if disk.last_log_id == upto:
            self._trace.seen("log.purged_to_the_tip")
        covered = index_of(disk.snapshot_last)
        if disk.machine is not None:
            covered = max(covered, index_of(disk.machine.applied))
        if upto.index > covered:
            self.breach("S25", disk.node_id, f"purges up to {upto}, its snapshot ends at {disk.snapshot_last}")

    def disk_append(self, disk: SimDisk, entry: Entry) -> None:
        """S8: a log id names one entry after one entry, everywhere and for ever. S9: no hole, no older leader."""
        at, prev = entry.log_id, disk.last_log_id
        if at.index != index_of(prev) + 1:
            self.breach("S9", disk.node_id, f"{at} follows {prev}")
        elif prev is not None and at.leader_id < prev.leader_id:
            self.breach("S9", disk.node_id, f"{at} follows {prev} of a later leader")
        if at.leader_id > disk.held_vote.leader_id:
            self.breach("S9", disk.node_id, f"{at} under the vote {disk.vote}")
        stamp = crc32(entry.payload, entry.kind)
        known = self.chain.get(at)
        if known is None:
            self.chain[at] = (prev, stamp)
        elif known != (prev, stamp):
            self.breach("S8", disk.node_id, f"{at} after {prev}, elsewhere after {known[0]}, or with another payload")
        if entry.kind == MEMBERSHIP and at.index > 0:
            self._membership_appended(disk, entry)
        self._trace.event("disk", disk.node_id, at, f"{at}{stamp}")

    def _membership_appended(self, disk: SimDisk, entry: Entry) -> None:
        """S18: one step at a time, and each shares a configuration with the one before."""
        before_id, before = self._last_membership(disk)
        if not before.configs:
            return
        after = decode_membership(entry.payload)
        if not after.configs or not all(after.configs):
            self.breach("S18", disk.node_id, f"{entry.log_id} leaves no voter")
        elif not any(config in before.configs for config in after.configs):
            self.breach("S18", disk.node_id, f"{entry.log_id} changes {before.configs} to {after.configs} at once")
        if before_id is not None and before_id.index > 0 and not self._is_committed(before_id, before):
            self.breach("S18", disk.node_id, f"{entry.log_id} while the change {before_id} is not committed")
        if len(after.configs) > 1:
            self._trace.seen("membership.joint")
        elif len(before.configs) > 1:
            self._trace.seen("membership.joint_left")

    def _is_committed(self, log_id: LogId, members: Membership) -> bool:
        """Whether it is known to be, or its leader may know already because a quorum of ``members`` holds it."""
        if log_id.index in self.committed:
            return True
        return members.is_quorum([node for node, disk in self._disks.items() if disk.holds(log_id)])

    def disk_committed(self, disk: SimDisk, committed: LogId) -> None:
        """S5, S6, S13, S14."""
        if log_id_lt(committed, disk.committed):
            self.breach("S14", disk.node_id, f"saves {committed} as committed after {disk.committed}")
        if committed.index > index_of(disk.last_log_id):
            self.breach("S13", disk.node_id, f"saves {committed} as committed, its log ends at {disk.last_log_id}")
        known = self.committed.get(committed.index)
        if known is None:
            if committed.index > self.committed_index:
                self._takes_for_committed(disk.node_id, committed)
        elif known.log_id != committed:
            self.breach("S6", disk.node_id, f"saves {committed} as committed, elsewhere it is {known.log_id}")

    def disk_identity(self, disk: SimDisk, identity: StoreIdentity) -> None:
        self._trace.event("disk", disk.node_id, identity)
        if identity.retired:
            self._trace.seen("store.retired")

    def disk_snapshot(self, disk: SimDisk, meta: SnapshotMeta) -> None:
        """S14, S6, S24."""
        self._trace.event("disk", disk.node_id, ("snapshot", str(meta.last_log_id)))
        last = meta.last_log_id
        if log_id_lt(last, disk.snapshot_last):
            self.breach("S14", disk.node_id, f"its snapshot falls from {disk.snapshot_last} to {last}")
        known = self.committed.get(index_of(last))
        if known is not None and known.log_id != last:
            self.breach("S24", disk.node_id, f"publishes a snapshot at {last}, committed is {known.log_id}")
        held = disk.entry_at(index_of(last))
        if last is not None and held is None and last.index > index_of(disk.last_log_id):
            self._trace.seen("snapshot.beyond_the_log")
            self.on_moment("install", disk.node_id)
        elif held is not None and held.log_id != last:
            self._trace.seen("snapshot.over_a_conflict")
            self.on_moment("install", disk.node_id)

    def disk_overlap(self, disk: SimDisk) -> None:
        """S16: one write at a time."""
        self.breach("S16", disk.node_id, "a write begins while another is under way")

    def check_pointers(self, node: NodeId) -> None:
        """S13 on the disk."""
        disk = self._disks[node]
        covered = index_of(disk.snapshot_last)
        if disk.machine is not None:
            covered = max(covered, index_of(disk.machine.applied))
        if index_of(disk.last_purged) > covered:
            self.breach("S13", node, f"purged {disk.last_purged} beyond its snapshot {disk.snapshot_last}")
        if not log_id_le(disk.last_purged, disk.last_log_id):
            self.breach("S13", node, f"purged {disk.last_purged} beyond its log {disk.last_log_id}")
