"""The invariants that need to see a whole message or a whole engine: what the ring of engines asks at every step.

:class:`~.invariants.Invariants` judges the disks. Here an observer also remembers what left each node (acknowledged
leases, acknowledged entries, answered reads) and holds the engine to it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Protocol

from raftkit_core.engine.engine import Engine
from raftkit_core.testing.simulation.engine_node import Asked, AskedRead
from raftkit_core.testing.simulation.invariants import InvariantBroken, Invariants, Watched
from raftkit_core.types.entry import MEMBERSHIP, Entry, decode_membership
from raftkit_core.types.ids import NodeId
from raftkit_core.types.log_id import LogId, index_of, log_id_lt
from raftkit_core.types.membership import Membership, StoredMembership
from raftkit_core.types.messages import VoteRequest
from raftkit_core.types.snapshot import SnapshotMeta
from raftkit_core.types.vote import LeaderId, Vote, vote_ge


class WatchedNode(Watched, Protocol):
    """A node whose life the observer follows."""

    life: int
    applied: LogId | None


class RingInvariants(Invariants):
    """``seen`` counts what happened at least once."""

    def __init__(self, nodes: Mapping[NodeId, WatchedNode], *, single_term_leader: bool = False) -> None:
        super().__init__(nodes, single_term_leader=single_term_leader)
        self._single_term = single_term_leader
        self.seen: Counter[str] = Counter()
        self.holds: dict[NodeId, float] = {}
        """Until when a node promised its leader to grant nobody, on its own clock."""
        self.acks: dict[tuple[NodeId, LeaderId], int] = {}
        """The greatest index a node acknowledged to a leader."""
        self.told = -1
        """The greatest index whose write a client was told of: applied on a node that led."""
        self.followed_at: dict[tuple[NodeId, LeaderId], float] = {}
        """When the last message that a node answered as its leader's had come."""
        self.handed_over: set[LeaderId] = set()
        """Leaders that asked somebody to take over: no promise binds anybody to them any more."""
        self.began: dict[LeaderId, int] = {}
        """The index of a leader's first entry."""
        self.durable_votes: dict[NodeId, Vote] = {}
        self.members: dict[int, Membership] = {}
        """Committed memberships by index."""
        self._positions: dict[NodeId, tuple[int, Vote, int, int]] = {}
        self._needed_since: dict[NodeId, tuple[LeaderId, LogId | None, float]] = {}
        """Since when a leader needs the quorum it needs."""

    def broken(self, name: str, node: Watched, detail: str) -> None:
        raise InvariantBroken(f"{name} at {node.id}: {detail}")

    def begun(self, node: Watched) -> None:
        """A process begins with what an earlier one left. S17: what that acknowledged is still there, unless a greater
        leader cut it; S3, S8, S9: so are the vote and the log, as they were written."""
        disk = node.disk
        for (node_id, leader_id), index in self.acks.items():
            if node_id == node.id and index > index_of(disk.last_log_id) and disk.vote.leader_id <= leader_id:
                self.broken("S17", node, f"acknowledged {index} to {leader_id}, holds {disk.last_log_id}")
        written = self.durable_votes.get(node.id)
        if written is not None and disk.vote != written:
            self.broken("S3", node, f"wrote the vote {written}, begins with {disk.vote}")
        before = disk.purged
        for index, entry in sorted(disk.entries.items()):
            at = entry.log_id
            if at.index != index or index != index_of(before) + 1 or (before and before.leader_id > at.leader_id):
                self.broken("S9", node, f"begins with a log in which {at} follows {before}")
            known = self.chain.get(at)
            if known is not None and known[1] != entry.payload:
                self.broken("S8", node, f"begins with another {at} than was written")
            before = at

    def members_of(self, node: Watched) -> Membership:
        """The last membership in the log in memory, or that of the snapshot."""
        return self._last_membership(node).membership

    def _last_membership(self, node: Watched) -> StoredMembership:
        snapshot = node.disk.snapshot
        held = StoredMembership() if snapshot is None else snapshot.membership
        last = max((index for index, entry in node.log.items() if entry.kind == MEMBERSHIP), default=-1)
        if last <= index_of(held.log_id):
            return held
        return StoredMembership(node.log[last].log_id, decode_membership(node.log[last].payload))

    # --- votes ------------------------------------------------------------------------------------------------------

    def saving_vote(self, node: Watched, vote: Vote) -> None:
        """S3: the durable vote never falls."""
        if not vote_ge(vote, node.disk.vote, self._single_term):
            self.broken("S3", node, f"writes the vote {vote} over {node.disk.vote}")
        self.durable_votes[node.id] = vote

    def refusing(self, node: Watched, request: VoteRequest, asked: Asked) -> None:
        """A refusal leaves. S3: it must not have taken the refuser along."""
        assert node.engine is not None
        if node.engine.vote == request.vote != asked.vote:
            self.broken("S3", node, f"refuses {request.vote} and takes it over from {asked.vote}")

    def granting(self, node: Watched, request: VoteRequest, asked: Asked) -> None:
        """A grant leaves. S3: to nobody with a shorter log than was held when it asked; S15: that log is durable; S22:
        to nobody within a lease that was acknowledged, but for who brings the word of the leader it was given to."""
        assert node.engine is not None
        held, local_now = asked.held, asked.arrived_at
        self.granted(node, request.vote)
        if log_id_lt(request.last_log_id, held):
            self.broken("S3", node, f"grants {request.vote} with {request.last_log_id}, while it holds {held}")
        if held is not None and node.engine.vote == request.vote and not node.disk.holds(held):
            self.broken("S15", node, f"grants {request.vote} while {held} is not on its disk")
        proof = request.transfer_of
        if proof is not None and proof == asked.vote:
            if proof.leader_id not in self.handed_over:
                self.broken("S22", node, f"grants {request.vote} for a hand-over that {proof} never asked for")
        elif local_now < self.holds.get(node.id, 0.0) - 1e-6:
            self.broken("S22", node, f"grants {request.vote} {self.holds[node.id] - local_now:.3f} s within a lease")

    def willing(self, node: Watched, request: VoteRequest, held: LogId | None) -> None:
        """A pre-vote is granted. S3: not to a shorter log either."""
        if log_id_lt(request.last_log_id, held):
            self.broken("S3", node, f"would vote for {request.vote} with {request.last_log_id}; it holds {held}")

    def campaigning(self, node: Watched, request: VoteRequest, local_now: float) -> None:
        """S19: only a voter asks for votes; S15: its own vote is durable; S22: not within a lease it acknowledged."""
        engine = node.engine
        assert engine is not None
        vote = request.vote
        memberships = engine.state.membership
        if not any(each.membership.is_voter(node.id) for each in (memberships.effective, memberships.committed)):
            self.broken("S19", node, f"campaigns with {vote}, but is no voter of {engine.effective.configs}")
        if not vote_ge(node.disk.vote, vote, self._single_term):
            self.broken("S15", node, f"asks for {vote}, its disk holds {node.disk.vote}")
        alone = engine.effective.voter_ids == (node.id,)
        if request.transfer_of is None and not alone and local_now < self.holds.get(node.id, 0.0) - 1e-6:
            self.broken("S22", node, f"campaigns {self.holds[node.id] - local_now:.3f} s within a lease")

    def leading(self, node: Watched, vote: Vote) -> None:
        """A message leaves under ``vote``. S15: that vote is durable; S4: it was won, not heard of."""
        if not vote_ge(node.disk.vote, vote, self._single_term):
            self.broken("S15", node, f"leads with {vote}, its disk holds {node.disk.vote}")
        if self.leaders.get(vote.leader_id) != node.id:
            self.broken("S4", node, f"leads with {vote}, which it never won")

    def answering(self, node: Watched, vote: Vote) -> None:
        """A refusal or a conflict reports ``vote``. S15."""
        if not vote_ge(node.disk.vote, vote, self._single_term):
            self.broken("S15", node, f"reports {vote}, its disk holds {node.disk.vote}")

    # --- followers --------------------------------------------------------------------------------------------------

    def promised(self, node: Watched, leader_id: LeaderId, matching: LogId | None) -> None:
        """A success leaves: entries are acknowledged."""
        key = (node.id, leader_id)
        self.acks[key] = max(self.acks.get(key, -1), index_of(matching))

    def followed(self, node: Watched, leader_id: LeaderId, hold_until: float, at: float) -> None:
        """An answer leaves to a leader whose message came ``at``: it is followed, and nobody else until then."""
        self.holds[node.id] = max(self.holds.get(node.id, 0.0), hold_until)
        key = (node.id, leader_id)
        self.followed_at[key] = max(self.followed_at.get(key, -1.0), at)

    def handing_over(self, node: Watched) -> None:
        """Another is asked to campaign, with this leader's vote as proof that it may."""
        assert node.engine is not None
        self.handed_over.add(node.engine.vote.leader_id)

    def truncating(self, node: Watched, since: int) -> None:
        """S11, and S17: what was acknowledged to a leader is removed only by a greater one."""
        super().truncating(node, since)
        disk = node.disk
        covered = -1 if disk.snapshot is None else index_of(disk.snapshot.last_log_id)
        first = max(since, covered + 1)
        for (node_id, leader_id), index in self.acks.items():
            if node_id == node.id and index >= first and disk.vote.leader_id <= leader_id and first in disk.entries:
                self.broken("S17", node, f"removes {since}.., acknowledged up to {index} to {leader_id}")

    def appending(self, node: Watched, entries: Sequence[Entry]) -> None:
        """Entries enter the log in memory. S10: never over others; S18: a leader changes the membership only when an
        entry of its own is committed."""
        engine = node.engine
        assert engine is not None
        if engine.is_leader:
            self.began.setdefault(engine.vote.leader_id, entries[0].index)
        if engine.is_leader and any(entry.kind == MEMBERSHIP for entry in entries):
            committed = engine.state.committed
            if committed is None or committed.leader_id != engine.vote.leader_id:
                self.broken("S18", node, f"changes the membership with {committed} committed, nothing of its own")
        if entries[0].index in node.log:
            self.broken("S10", node, f"{entries[0].log_id} over {node.log[entries[0].index].log_id}")

    def cutting(self, node: Watched) -> None:
        """S10: a leader removes nothing of its log."""
        assert node.engine is not None
        if node.engine.is_leader:
            self.broken("S10", node, "a leader truncates its log")

    # --- membership -------------------------------------------------------------------------------------------------

    def check_membership(self, node: Watched) -> None:
        """S18: what is effective is the last in the log; of a leader's at most one is uncommitted; neighbours share a
        configuration."""
        engine = node.engine
        assert engine is not None
        if engine.is_installing:
            return
        found = [entry for _, entry in sorted(node.log.items()) if entry.kind == MEMBERSHIP]
        effective, last = engine.state.membership.effective, self._last_membership(node)
        if effective.log_id != last.log_id:
            self.broken("S18", node, f"follows the membership of {effective.log_id}, its log has {last.log_id}")
        committed = index_of(engine.state.committed)
        if engine.is_leader and sum(entry.index > committed for entry in found) > 1:
            self.broken("S18", node, "a leader has proposed two memberships at a time")
        for before, after in pairwise(found):
            old, new = decode_membership(before.payload), decode_membership(after.payload)
            if not set(old.configs) & set(new.configs):
                self.broken("S18", node, f"{after.log_id} goes from {old.configs} to {new.configs}")

    def committing(self, node: Watched, before: LogId | None, upto: LogId) -> None:
        super().committing(node, before, upto)
        for index in range(index_of(before) + 1, upto.index + 1):
            entry = node.log.get(index)
            if entry is not None and entry.kind == MEMBERSHIP and index not in self.members:
                self.members[index] = decode_membership(entry.payload)

    def publishing(self, node: Watched, meta: SnapshotMeta) -> None:
        """S24, S18: a snapshot is of what is committed, with the membership that was in force there."""
        last = meta.last_log_id
        assert last is not None
        known = self.committed.get(last.index)
        if known is not None and known[0] != last:
            self.broken("S24", node, f"publishes a snapshot up to {last}, committed is {known[0]}")
        earlier = [index for index in self.members if index <= last.index]
        if earlier and meta.membership.membership != self.members[max(earlier)]:
            self.broken("S18", node, f"publishes {last} with the membership of {meta.membership.log_id}")

    def ticked(self, node: Watched, now: float, patience: float) -> None:
        """S20: a leader whose removal is committed and applied here no longer leads after its next tick. V14: nor does
        one that no quorum has followed for its ``patience``, on whatever clock."""
        engine = node.engine
        if engine is None or not engine.is_leader:
            return
        leader_id = engine.vote.leader_id
        last = self._last_membership(node)
        members = last.membership
        needed = self._needed_since.get(node.id)
        if needed is None or needed[:2] != (leader_id, last.log_id):
            needed = self._needed_since[node.id] = (leader_id, last.log_id, now)
        since = now - patience
        followers = {
            voter for voter in members.voter_ids if self.followed_at.get((voter, leader_id), -1.0) >= since
        } | {node.id}
        if needed[2] < since and not members.is_quorum(followers):
            self.broken("V14", node, f"leads {patience:.2f} s after a quorum followed it; now {sorted(followers)} do")
        effective = engine.state.membership.effective
        if node.id not in effective.membership.nodes and index_of(engine.state.applied) >= index_of(effective.log_id):
            self.broken("S20", node, f"leads, but {effective.log_id} removed it")

    # --- reads ------------------------------------------------------------------------------------------------------

    def wrote(self, index: int) -> None:
        """A leader has applied ``index``: whoever wrote it was told."""
        self.told = max(self.told, index)

    def read(self, node: Watched, at: LogId, asked: AskedRead, clocks: Mapping[NodeId, float]) -> None:
        """S21 (S22 by lease): a read sees every write that a client was told of before the read began, and the leader
        is known to be one: a quorum followed it after the read began, or is bound to it still. ``clocks`` are the
        nodes' own."""
        engine = node.engine
        assert engine is not None
        name = "S22" if asked.by_lease else "S21"
        if at.index < asked.floor:
            self.broken(name, node, f"reads at {at}, but {asked.floor} was applied and told before the read began")
        leader_id = engine.vote.leader_id
        if at.index < self.began.get(leader_id, -1):
            self.broken(name, node, f"reads at {at}, but leads since {self.began[leader_id]} only")
        members = self.members_of(node)
        followers = {
            voter for voter in members.voter_ids if self.followed_at.get((voter, leader_id), -1.0) >= asked.at
        } | {node.id}
        if members.is_quorum(followers):
            return
        if not asked.by_lease:
            self.broken(name, node, f"serves a read that only {sorted(followers)} confirmed")
        bound = {
            voter
            for voter in members.voter_ids
            if (voter, leader_id) in self.followed_at and clocks[voter] < self.holds.get(voter, 0.0)
        } | {node.id}
        if leader_id in self.handed_over or not members.is_quorum(bound):
            self.broken(name, node, f"reads by lease while only {sorted(bound)} are bound to it")

    # --- everything else --------------------------------------------------------------------------------------------

    def check_pointers(self, node: Watched) -> None:
        super().check_pointers(node)
        engine = node.engine
        if engine is None:
            return
        self._check_progress(node, engine)
        state = engine.state
        life = getattr(node, "life", 0)
        now = (life, state.vote, index_of(state.committed), index_of(state.applied))
        before = self._positions.get(node.id)
        self._positions[node.id] = now
        if before is None or before[0] != life:
            return
        if before[2] > now[2] or before[3] > now[3]:
            self.broken("S14", node, f"committed, applied fall from {before[2:]} to {now[2:]}")
        if not vote_ge(state.vote, before[1], self._single_term):
            self.broken("S14", node, f"the vote falls from {before[1]} to {state.vote}")

    def _check_progress(self, node: Watched, engine: Engine) -> None:
        """S26: a leader believes of a peer only what that peer acknowledged to it."""
        progress = engine.progress
        if progress is None:
            return
        leader_id = engine.vote.leader_id
        for target, entry in progress.items():
            held = self.acks.get((target, leader_id), -1)
            if index_of(entry.matching) > held:
                self.broken("S26", node, f"believes that {target} holds {entry.matching}; it acknowledged {held}")
