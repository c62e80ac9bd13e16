"""Campaigns: from the first pre-vote to the leader's own first entry (openraft.md §2.5)."""

from __future__ import annotations

from raftkit_core.engine.candidate import Candidate
from raftkit_core.engine.commands import BecomeLeader, SendPreVote, SendVote
from raftkit_core.engine.handlers.leader import LeaderHandler
from raftkit_core.engine.handlers.replication import ReplicationHandler
from raftkit_core.engine.handlers.server_state import ServerStateHandler
from raftkit_core.engine.handlers.vote import VoteHandler
from raftkit_core.engine.leader import Leader
from raftkit_core.engine.parts import EngineParts
from raftkit_core.types.entry import BLANK
from raftkit_core.types.ids import NodeId
from raftkit_core.types.log_id import LogId, log_id_lt
from raftkit_core.types.messages import VoteRequest, VoteResponse
from raftkit_core.types.vote import LeaderId, Vote


class EstablishHandler:
    def __init__(
        self,
        parts: EngineParts,
        server_state: ServerStateHandler,
        vote: VoteHandler,
        leader: LeaderHandler,
        replication: ReplicationHandler,
    ) -> None:
        self._parts = parts
        self._server_state = server_state
        self._vote = vote
        self._leader = leader
        self._replication = replication

    def may_campaign(self, now: float) -> bool:
        """A node campaigns only as a voter, with the store its membership names, outside any hold and any install.

        Its removal must be committed before it stops: until then it may hold entries that every remaining voter needs
        and refuses to win without (dissertation, §4.2.2).
        """
        parts = self._parts
        is_voter = parts.is_voter or parts.state.membership.committed.membership.is_voter(parts.config.id)
        if parts.leader is not None or not is_voter or parts.needs_rejoin or parts.installing is not None:
            return False
        if now >= parts.state.hold_until:
            return True
        # A single voter whose own vote is in force has nobody whose lease it could break. Under another's vote it may
        # have acknowledged the lease of the leader that made it the only voter, and which reads by it still (S22).
        return parts.effective.voter_ids == (parts.config.id,) and parts.state.vote.node_id == parts.config.id

    def campaign(self, now: float) -> None:
        """Start a campaign: a pre-vote first, if that is on and there is anybody to ask."""
        parts = self._parts
        if parts.config.pre_vote and parts.effective.voter_ids != (parts.config.id,):
            self._pre_elect(now)
        else:
            self.elect(now)

    def _next_vote(self) -> Vote:
        term = max(self._parts.state.vote.term, self._parts.term_hint) + 1
        return Vote(LeaderId(term, self._parts.config.id))

    def _others(self) -> tuple[NodeId, ...]:
        me = self._parts.config.id
        return tuple(voter for voter in self._parts.effective.voter_ids if voter != me)

    def _pre_elect(self, now: float) -> None:
        parts = self._parts
        vote = self._next_vote()
        last = self._vote.compared_log_id()
        parts.candidate = Candidate(vote, last, parts.effective, now, is_pre_vote=True)
        parts.redraw_election_timeout(now)
        self._server_state.refresh()
        parts.output.push(SendPreVote(self._others(), VoteRequest(vote, last)))
        # No quorum yet: whoever is a quorum alone asks nobody (see `campaign`).
        parts.candidate.grant(parts.config.id)

    def elect(self, now: float, transfer_of: Vote | None = None) -> None:
        """Vote for itself in a new term and ask the others. The own grant counts when that vote is flushed, no sooner:
        so a single voter, too, wins only after its vote is durable."""
        parts = self._parts
        vote = self._next_vote()
        last = self._vote.compared_log_id()
        vote_io = self._vote.save(vote, now)
        parts.candidate = Candidate(vote, last, parts.effective, now, vote_io=vote_io, transfer_of=transfer_of)
        parts.redraw_election_timeout(now)
        self._server_state.refresh()
        others = self._others()
        if others:
            parts.output.push(SendVote(vote_io, others, VoteRequest(vote, last, transfer_of)))

    def handle_vote_response(self, sender: Vote, target: NodeId, response: VoteResponse, now: float) -> None:
        """Count a grant, or learn from a refusal. ``sender`` is the vote that was asked for: another campaign's answers
        are dropped."""
        parts = self._parts
        candidate = parts.candidate
        if candidate is None or candidate.is_pre_vote or candidate.vote != sender:
            return
        if parts.is_foreign_store(target, response.store_id):
            return
        # An equal vote alone is no grant: that node may have merely copied it.
        if response.granted and response.vote == candidate.vote:
            if candidate.grant(target):
                self._establish(candidate, now)
            return
        if log_id_lt(candidate.last_log_id, response.last_log_id):
            parts.seen_greater_log = True
        # Only the uncommitted form: a node that lost its log must not take its own old leadership back from a refusal.
        refused_by = response.vote.as_uncommitted()
        if refused_by != parts.state.vote and parts.accepts(refused_by):
            self._vote.update_vote(refused_by, now)

    def handle_pre_vote_response(self, sender: Vote, target: NodeId, response: VoteResponse, now: float) -> None:
        """Count a willing voter. A refusal raises the term hint and nothing else."""
        parts = self._parts
        candidate = parts.candidate
        if candidate is None or not candidate.is_pre_vote or candidate.vote != sender:
            return
        if parts.is_foreign_store(target, response.store_id):
            return
        if response.granted and response.vote == candidate.vote:
            if candidate.grant(target):
                self.elect(now)
            return
        if log_id_lt(candidate.last_log_id, response.last_log_id):
            parts.seen_greater_log = True
        parts.term_hint = max(parts.term_hint, response.vote.term)

    def on_own_vote_flushed(self, now: float) -> None:
        """The own vote is durable: the own grant counts from now on."""
        parts = self._parts
        candidate = parts.candidate
        if candidate is None or candidate.is_pre_vote or parts.config.id in candidate.granted:
            return
        if parts.state.io.flushed_io >= candidate.vote_io and candidate.grant(parts.config.id):
            self._establish(candidate, now)

    def _establish(self, candidate: Candidate, now: float) -> None:
        """Become leader: save the granted vote, then propose a blank entry (openraft order)."""
        parts = self._parts
        state = parts.state
        assert candidate.vote == state.vote, f"campaign for {candidate.vote} outlived {state.vote}"
        assert parts.leader is None, "a leader does not campaign"
        parts.candidate = None
        parts.seen_greater_log = False
        parts.sessions += 1
        vote = candidate.vote.as_committed()
        vote_io = self._vote.save(vote, now)
        noop = LogId(vote.leader_id, state.log.last_index + 1)
        parts.leader = Leader(
            vote=vote,
            vote_io=vote_io,
            session=parts.sessions,
            noop_log_id=noop,
            now=now,
            base_time_ms=state.last_time_ms,
        )
        parts.output.push(BecomeLeader(parts.sessions, vote))
        self._server_state.refresh()
        self._replication.rebuild(now)
        self._leader.append(BLANK, [b""], now)
        self._replication.initiate(now)
