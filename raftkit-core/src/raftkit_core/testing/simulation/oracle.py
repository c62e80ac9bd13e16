"""Watches one simulation from outside: what is durable, what leaves a node, what is applied. Never asks an engine.

Every check has the number of the rule it proves (S1 … S30, docs/simulation.md). A check looks only at what one step
changed; what was promised is remembered for the whole run, across crashes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any
from zlib import crc32

import msgspec

from raftkit_core.errors import RaftError
from raftkit_core.network.wire import Kind
from raftkit_core.state_machine.kv_codec import KvCodec
from raftkit_core.state_machine.system import SYSTEM_MACHINE
from raftkit_core.testing.simulation.rules import NOT_RULES, RULES
from raftkit_core.testing.simulation.session_rules import SessionRules
from raftkit_core.testing.simulation.sim_disk import SimDisk
from raftkit_core.testing.simulation.trace import Trace
from raftkit_core.types.entry import MEMBERSHIP, NORMAL, Entry, decode_envelope, decode_membership
from raftkit_core.types.identity import StoreIdentity
from raftkit_core.types.ids import NodeId
from raftkit_core.types.kv import KV_MACHINE, CompareAndSet, Put
from raftkit_core.types.log_id import LogId, index_of, log_id_le, log_id_lt
from raftkit_core.types.membership import Membership, StoredMembership
from raftkit_core.types.messages import Busy, Conflict, HigherVote, Success, VoteRequest, VoteResponse
from raftkit_core.types.snapshot import SnapshotMeta
from raftkit_core.types.vote import LeaderId, Vote, vote_ge


class Breach:
    """A rule that did not hold."""

    def __init__(self, rule: str, node: NodeId, detail: str, at: float) -> None:
        self.rule = rule
        self.node = node
        self.detail = detail
        self.at = at

    def __str__(self) -> str:
        return f"{self.rule} at {self.node} after {self.at:.3f} s: {self.detail}"


class Oracle:
    """Remembers the whole run. ``breaches`` is empty as long as every rule held."""

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

    # --- elections --------------------------------------------------------------------------------------------------

    def _established(self, node: NodeId, vote: Vote) -> None:
        """The first message under a granted vote leaves ``node``. S1, S2, S7."""
        leader_id = vote.leader_id
        self.leaders[leader_id] = node
        self._led_in[leader_id] = self._disks[node].life
        self._trace.event("leads", node, leader_id)
        self._trace.seen("election.won")
        if leader_id.node_id != node:
            self.breach("S1", node, f"speaks as the leader {leader_id}")
        if self._single_term_leader:
            others = [other for other in self.leaders if other.term == leader_id.term and other != leader_id]
            if others:
                self.breach("S1", node, f"term {leader_id.term} has leaders {leader_id} and {others[0]}")
        disk = self._disks[node]
        if disk.held_vote.leader_id != leader_id:
            self.breach("S2", node, f"leads under {vote} while its disk holds {disk.vote}")
        voters = [*self.grants.get(leader_id, {}), node]
        members = self._effective(node)
        if not members.is_quorum(voters):
            self.breach("S2", node, f"leads with the votes of {sorted(voters)} only, of {members.configs}")
        purged = index_of(disk.last_purged)
        covered = max(purged, index_of(disk.snapshot_last))
        for index in range(max(covered, -1) + 1, self.committed_index + 1):
            known = self.committed.get(index)
            held = disk.entry_at(index)
            if known is None or self.committed_under[index] >= leader_id:
                continue  # a leader that is late, and lower, need not hold what a greater one committed
            if held is None or held.log_id != known.log_id:
                at = None if held is None else held.log_id
                self.breach("S7", node, f"leads as {leader_id} with {at} where {known.log_id} is committed")
                return

    # --- the disk ---------------------------------------------------------------------------------------------------

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

    def leases(self, holders: Sequence[NodeId]) -> None:
        """S22: ``holders`` would answer reads by lease at this moment."""
        if len(holders) > 1:
            self.breach("S22", holders[0], f"{holders} hold a read lease at one moment")

    # --- the wire ---------------------------------------------------------------------------------------------------

    def asks(self, src: NodeId, dst: NodeId, kind: Kind, message: Any) -> None:
        disk = self._disks[src]
        if kind is Kind.APPEND_ENTRIES or kind is Kind.HEARTBEAT:
            self._leader_speaks(src, disk, message.vote)
            if message.leader_commit is not None:
                self._commit_told(src, message.vote, message.leader_commit)
            if kind is Kind.HEARTBEAT and message.prev_log_id is not None:
                acked = self.said.get((dst, message.vote.leader_id), -1)
                if message.prev_log_id.index > acked:
                    self.breach("S26", src, f"believes that {dst} holds {message.prev_log_id}, it said {acked}")
        elif kind is Kind.VOTE:
            self._candidate_speaks(src, disk, message)
        elif kind is Kind.PRE_VOTE:
            self._trace.seen("prevote.asked")
        elif kind is Kind.INSTALL_SNAPSHOT:
            self._leader_speaks(src, disk, message.vote)
            self._trace.seen("snapshot.sent")

    def _leader_speaks(self, src: NodeId, disk: SimDisk, vote: Vote) -> None:
        """S15: nothing leaves under a vote that is not durable. S28: nothing leaves after a failed write."""
        if vote.leader_id not in self.leaders:
            self._established(src, vote)
            self.on_moment("winner", src)
        elif self.leaders[vote.leader_id] != src:
            self.breach("S1", src, f"speaks as {vote.leader_id}, which {self.leaders[vote.leader_id]} is")
        if not vote.committed or not vote_ge(disk.held_vote, vote.as_uncommitted(), self._single_term_leader):
            self.breach("S15", src, f"leads under {vote}, its disk holds {disk.vote}")
        self._check_alive(src, disk, "leads")

    def _candidate_speaks(self, src: NodeId, disk: SimDisk, message: VoteRequest) -> None:
        self._trace.seen("election.transfer" if message.transfer_of is not None else "election.asked")
        if not vote_ge(disk.held_vote, message.vote, self._single_term_leader):
            self.breach("S15", src, f"asks for {message.vote}, its disk holds {disk.vote}")
        known = [members for _, members in disk.memberships]
        if disk.snapshot is not None:
            known.append(disk.snapshot[0].membership.membership)
        # A membership without it may have come since the campaign began, while the request waited for a connection.
        if not self._effective(src).is_voter(src) and not any(members.is_voter(src) for members in known):
            self.breach("S19", src, "campaigns without being a voter")
        self._check_alive(src, disk, "campaigns")

    def _check_alive(self, node: NodeId, disk: SimDisk, what: str) -> None:
        if disk.failed is not None and self._trace.now() > disk.failed_at:
            self.breach("S28", node, f"{what} after a write failed: {disk.failed}")

    def answers(self, src: NodeId, dst: NodeId, kind: Kind, request: Any, answer: Any) -> None:
        disk = self._disks[src]
        if kind is Kind.VOTE:
            self._voted(src, dst, disk, request, answer)
        elif kind is Kind.APPEND_ENTRIES or kind is Kind.HEARTBEAT:
            if type(answer) is Success:
                self._acknowledged(src, disk, request.vote, answer.matching)
            else:
                self._trace.seen(f"append.{type(answer).__name__.lower()}")
                if isinstance(answer, HigherVote):
                    self._reports(src, disk, answer.vote)
                elif isinstance(answer, Conflict | Busy):
                    self._reports(src, disk, request.vote)
        elif kind is Kind.INSTALL_SNAPSHOT and answer.vote == request.vote:
            last = request.meta.last_log_id
            self._trace.seen("snapshot.installed")
            self._acknowledged(src, disk, request.vote, last)
        elif kind is Kind.INSTALL_SNAPSHOT:
            self._reports(src, disk, answer.vote)

    def _reports(self, src: NodeId, disk: SimDisk, vote: Vote) -> None:
        """A refusal, a conflict or "busy" says that ``src`` is at ``vote``. S15."""
        if not vote_ge(disk.held_vote, vote, self._single_term_leader):
            self.breach("S15", src, f"reports {vote}, its disk holds {disk.vote}")
        self._check_alive(src, disk, "answers")

    def _voted(self, src: NodeId, dst: NodeId, disk: SimDisk, request: VoteRequest, answer: VoteResponse) -> None:
        """A grant leaves ``src``. S3, S15."""
        if not answer.granted:
            greater = answer.vote != request.vote and vote_ge(answer.vote, request.vote, self._single_term_leader)
            reason = "vote" if greater else "log" if log_id_lt(request.last_log_id, answer.last_log_id) else "lease"
            self._trace.seen(f"vote.rejected_by_{reason}")
            return
        if answer.vote != request.vote:
            return
        self._trace.seen("vote.granted")
        vote = request.vote
        durable = disk.held_vote
        if not vote_ge(durable, vote, self._single_term_leader):
            self.breach("S15", src, f"grants {vote}, its disk holds {durable}")
        if durable.leader_id == vote.leader_id:
            for last in (disk.last_log_id, disk.snapshot_last):
                # What the candidate itself wrote since may be durable in the same write as the grant.
                if log_id_lt(request.last_log_id, last) and last is not None and last.leader_id != vote.leader_id:
                    self.breach("S3", src, f"grants {vote} whose log ends at {request.last_log_id}, its own at {last}")
        self._check_alive(src, disk, "grants a vote")
        self.grants.setdefault(vote.leader_id, {})[src] = None

    def _acknowledged(self, src: NodeId, disk: SimDisk, vote: Vote, matching: LogId | None) -> None:
        """``src`` says that it holds everything up to ``matching``. S15."""
        durable = disk.held_vote
        if not vote_ge(durable, vote, self._single_term_leader):
            self.breach("S15", src, f"answers under {vote}, its disk holds {durable}")
        self._check_alive(src, disk, "acknowledges")
        if matching is None:
            return
        if not disk.holds(matching):
            self.breach("S15", src, f"acknowledges {matching} to {vote}, which is not on its disk")
        acks = self.acks.setdefault(src, {})
        if matching.index > acks.get(vote.leader_id, -1):
            acks[vote.leader_id] = matching.index
        said = (src, vote.leader_id)
        self.said[said] = max(matching.index, self.said.get(said, -1))

    # --- clients ----------------------------------------------------------------------------------------------------

    def failed_for_certain(self, node: NodeId, key: str, value: bytes) -> None:
        """A client is told that ``value``, which is written once only, never takes effect. S23: no disk holds its
        entry, or another one is committed in its place."""
        for disk in self._disks.values():
            for entry in disk.entries:
                if entry.kind != NORMAL or value not in entry.payload or not _writes(entry, key, value):
                    continue
                known = self.committed.get(entry.index)
                if known is None or known.log_id == entry.log_id:
                    what = "which may still be committed" if known is None else "which is committed"
                    detail = f"says that {key}={value.decode()} failed; {disk.node_id} holds {entry.log_id}, {what}"
                    self.breach("S23", node, detail)
                    return

    def succeeded(self, node: NodeId, key: str, value: bytes, revision: int | None) -> None:
        """A client is told that ``value`` was written. S23: it is committed, at the index it was told."""
        known = None if revision is None else self.committed.get(revision)
        if known is None or not _writes(known, key, value):
            at = None if known is None else known.log_id
            self.breach("S23", node, f"says that {key}={value.decode()} was written at {revision}; committed is {at}")

    # --- commit and apply -------------------------------------------------------------------------------------------

    def _commit_told(self, leader: NodeId, vote: Vote, commit: LogId) -> None:
        """A leader tells others what is committed. S5, S6."""
        if self._commit_told_last == (leader, commit):
            return
        self._commit_told_last = (leader, commit)
        self._told_index = max(self._told_index, commit.index)
        known = self.committed.get(commit.index)
        if known is not None:
            if known.log_id != commit:
                self.breach("S6", leader, f"commits {commit}, elsewhere {known.log_id} is committed")
            return
        self._check_quorum(leader, vote.leader_id, commit)

    def _check_quorum(self, leader: NodeId, leader_id: LeaderId, commit: LogId) -> None:
        """S5: an entry of the leader's own term, durable on a quorum."""
        if commit.leader_id != leader_id:
            if not self._committed_by_its_own(commit, leader):
                self.breach("S5", leader, f"{leader_id} commits {commit} of another leader")
            # A quorum held it then; a store of that quorum may be lost by now, and its node come back empty.
        elif not self._is_held(leader, commit, self._holders(leader, commit)):
            holders = self._holders(leader, commit)
            members = self._effective(leader)
            self.breach("S5", leader, f"commits {commit}, durable only at {holders} of {members.configs}")
        for node in self._disks:
            entry = self._disks[node].entry_at(commit.index)
            if entry is not None and entry.log_id == commit:
                for index in range(self.committed_index + 1, commit.index + 1):
                    below = self._disks[node].entry_at(index)
                    if below is not None:
                        self._committed(leader, below)
                return

    def _holders(self, leader: NodeId, commit: LogId) -> list[NodeId]:
        """Who holds an entry of ``leader`` durably, or said so to it."""
        return [
            node
            for node, disk in self._disks.items()
            if disk.holds(commit)
            or (node != leader and self.acks.get(node, {}).get(commit.leader_id, -1) >= commit.index)
        ]

    def _is_held(self, leader: NodeId, commit: LogId, holders: list[NodeId]) -> bool:
        """Whether these are a quorum. A membership may have been appended since the commit."""
        governing = self._governing(self._disks[leader], commit.index)
        return self._effective(leader).is_quorum(holders) or (governing is not None and governing.is_quorum(holders))

    def _takes_for_committed(self, node: NodeId, upto: LogId) -> None:
        """``node`` takes ``upto`` for committed, and nobody was told of that yet: only who leads, or led before it was
        restarted, may be the first. S5."""
        if upto.index <= self._told_index:
            return
        led = [leader_id for leader_id, leader in self.leaders.items() if leader == node]
        if upto.leader_id.node_id == node and upto.leader_id not in self.leaders:
            led.append(upto.leader_id)  # a single voter speaks to nobody
        for leader_id in led:
            for own in self._ends_of(leader_id, upto):
                if self._is_held(node, own, self._holders(node, own)):
                    return
        self.breach("S5", node, f"takes {upto} for committed, which no leader told it, nor a quorum if it led itself")

    def _ends_of(self, leader_id: LeaderId, since: LogId) -> Iterator[LogId]:
        """``since`` if it is of the leader's own, and up to where else nodes hold what it wrote: one of these is where
        a quorum ends."""
        if since.leader_id == leader_id:
            yield since
        for disk in self._disks.values():
            for entry in reversed(disk.entries):
                if entry.log_id.index <= since.index or entry.log_id.leader_id < leader_id:
                    break
                if entry.log_id.leader_id == leader_id:
                    yield entry.log_id
                    break

    def _committed_by_its_own(self, commit: LogId, leader: NodeId) -> bool:
        """Whether a quorum said to the leader that proposed ``commit`` that it holds it: that leader committed it, and
        may have had no time to say so."""
        proposer = commit.leader_id
        sayers = [node for node in self._disks if self.said.get((node, proposer), -1) >= commit.index]
        members = self._governing(self._disks[leader], commit.index)
        return members is not None and members.is_quorum([*sayers, proposer.node_id])

    @staticmethod
    def _governing(disk: SimDisk, index: int) -> Membership | None:
        """The membership in force at ``index`` in the log on ``disk``."""
        for log_id, members in reversed(disk.memberships):
            if index_of(log_id) <= index:
                return members
        return None if disk.snapshot is None else disk.snapshot[0].membership.membership

    def _committed(self, node: NodeId, entry: Entry) -> None:
        """``node`` takes ``entry`` for committed. S6: for ever, and everywhere."""
        index = entry.log_id.index
        known = self.committed.get(index)
        if known is None:
            self.committed[index] = entry
            self.committed_under[index] = self._disks[node].held_vote.leader_id
            self.committed_index = max(self.committed_index, index)
            self.sessions.follow(self.committed)
        elif known is not entry and known != entry:
            self.breach("S6", node, f"commits {entry.log_id}, elsewhere {known.log_id} is committed")

    def applying(self, node: NodeId, before: int, log: Sequence[Entry], results: Mapping[int, Any]) -> None:
        """The machine of ``node``, which stood at index ``before``, applied ``log``. S6, S12, S15.

        What lies between is allowed to be what machines never see: blank and membership entries.
        """
        disk = self._disks[node]
        if any(entry.log_id.index not in self.committed for entry in log):
            self._takes_for_committed(node, log[-1].log_id)
        for index in range(before + 1, log[0].log_id.index):
            skipped = disk.entry_at(index) or self.committed.get(index)
            if skipped is not None:
                self._committed(node, skipped)
                if not _may_skip(skipped):
                    self.breach("S12", node, f"skips {skipped.log_id}")
        expected = max(before + 1, log[0].log_id.index)
        digest = self._digest_at(before)
        if digest is not None:
            self.digests.setdefault(expected - 1, digest)
        for entry in log:
            at = entry.log_id
            index = at.index
            if index != expected:
                self.breach("S12", node, f"applies {at} where {expected} was due")
            expected = index + 1
            if not disk.holds(at):
                self.breach("S15", node, f"applies {at}, which is not on its disk")
            self._committed(node, entry)
            if entry.kind == NORMAL:
                self.sessions.applied(node, entry, index in results)
            if digest is None:
                continue
            if index in results:
                result = results[index]
                shown = str(result) if isinstance(result, Exception) else repr(result)
                digest = crc32(shown.encode(), crc32(entry.payload, digest))
            first = self.digests.setdefault(index, digest)
            if first != digest:
                self.breach("S12", node, f"its results up to {at} differ from those of another node")
        self._trace.event("apply", node, log[-1].log_id, f"{log[-1].log_id} {digest}")

    def _digest_at(self, index: int) -> int | None:
        """What was applied up to ``index``; blank and membership entries change nothing. None: nobody saw it applied,
        as when a crash came between a transaction and its answer."""
        while index >= 0 and index not in self.digests:
            entry = self.committed.get(index)
            if entry is None or not _may_skip(entry):
                return None
            index -= 1
        return self.digests.get(index, 0)

    def applied(self, node: NodeId, at: LogId, state: str | None) -> None:
        """The machine of ``node`` stands at ``at`` in ``state`` (a digest). S12, S24."""
        if state is None:
            return
        first = self.states.setdefault(at.index, state)
        if first != state:
            self.breach("S12", node, f"its state at {at} differs from that of another node")

    def system_applied(self, node: NodeId, at: LogId, state: int) -> None:
        """The system machine of ``node`` (sessions, cluster time) stands at ``at`` in ``state``. S12."""
        if self.system_states.setdefault(at.index, state) != state:
            self.breach("S12", node, f"its sessions or its cluster time at {at} differ from those of another node")

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


def _writes(entry: Entry, key: str, value: bytes) -> bool:
    """Whether ``entry`` is a command of the key-value machine that writes ``value`` to ``key``."""
    try:
        envelope = decode_envelope(entry.payload)
        command = _CODEC.decode_command(envelope.body) if envelope.machine == KV_MACHINE else None
    except (msgspec.MsgspecError, ValueError, RaftError):
        return False
    return isinstance(command, Put | CompareAndSet) and command.key == key and bytes(command.value) == value


_CODEC = KvCodec()


def _may_skip(entry: Entry) -> bool:
    """Whether the user's machine may never see ``entry``: it is no command, one of the system machine, one of a
    session, which may have been carried out before, or unreadable."""
    if entry.kind != NORMAL:
        return True
    try:
        envelope = decode_envelope(entry.payload)
    except (msgspec.MsgspecError, ValueError):
        return True
    return envelope.machine == SYSTEM_MACHINE or envelope.session != 0
