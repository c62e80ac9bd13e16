"""The oracle on what leaves a node: S1 to S3, S7, S15, S19, S26, S28."""

from __future__ import annotations

from typing import Any

from raftkit_core.network.wire import Kind
from raftkit_core.testing.simulation.oracle_commits import CommitRules
from raftkit_core.testing.simulation.sim_disk import SimDisk
from raftkit_core.types.ids import NodeId
from raftkit_core.types.log_id import LogId, index_of, log_id_lt
from raftkit_core.types.messages import Busy, Conflict, HigherVote, Success, VoteRequest, VoteResponse
from raftkit_core.types.vote import Vote, vote_ge


class WireRules(CommitRules):
    """Called by the network for every request and every answer, before anybody else has it."""

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
            self._voted(src, disk, request, answer)
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

    def _voted(self, src: NodeId, disk: SimDisk, request: VoteRequest, answer: VoteResponse) -> None:
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
