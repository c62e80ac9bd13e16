"""Votes: the gate every message passes, and who gets this node's vote (paper §5.2, openraft.md §2.5)."""

from __future__ import annotations

from raftkit_core.engine.commands import Respond, SaveVote
from raftkit_core.engine.handlers.server_state import ServerStateHandler
from raftkit_core.engine.parts import EngineParts
from raftkit_core.engine.quorum import quorum_value
from raftkit_core.types.ids import RequestId
from raftkit_core.types.log_id import LogId, index_of, log_id_lt, max_log_id
from raftkit_core.types.messages import VoteRequest, VoteResponse
from raftkit_core.types.vote import Vote


class VoteHandler:
    def __init__(self, parts: EngineParts, server_state: ServerStateHandler) -> None:
        self._parts = parts
        self._server_state = server_state

    def update_vote(self, vote: Vote, now: float) -> bool:
        """Take over ``vote`` if it is not lower than the own one; says whether it was taken.

        A greater vote ends leadership and campaign; it is emitted as ``SaveVote`` before anything that depends on it.
        """
        parts = self._parts
        if not parts.accepts(vote):
            return False
        if vote != parts.state.vote:
            self.save(vote, now)
            if parts.leader is not None or parts.candidate is not None:
                self._server_state.step_down(f"{vote} is greater", now)
        return True

    def save(self, vote: Vote, now: float) -> int:
        """Make ``vote`` the own one; gives the write's io_id."""
        state = self._parts.state
        io_id = state.io.submit(now)
        state.vote = vote
        state.revision += 1
        state.vote_io = io_id
        self._parts.output.push(SaveVote(io_id, vote))
        return io_id

    def compared_log_id(self) -> LogId | None:
        """What a candidate's log is compared with: a snapshot being installed counts, or a vote could be granted to a
        candidate that lacks what the snapshot holds."""
        parts = self._parts
        installing = None if parts.installing is None else parts.installing.last_log_id
        published = None if parts.state.snapshot is None else parts.state.snapshot.last_log_id
        return max_log_id(max_log_id(parts.state.log.last, published), installing)

    def leads_with_quorum(self, now: float) -> bool:
        """Whether this node leads and a quorum answered within the lease."""
        leader = self._parts.leader
        return leader is not None and now < self.quorum_lease_until(now)

    def quorum_lease_until(self, now: float) -> float:
        """Until when the quorum lease of this leader lasts; for a new leader it starts when it is established."""
        parts = self._parts
        leader = parts.leader
        assert leader is not None, "only a leader has a quorum lease"
        return max(self.last_quorum_acked(now), leader.established_at) + parts.config.leader_lease

    def quits_at(self, now: float) -> float:
        """When a leader that hears no quorum gives up: one timeout after its lease, and not sooner after it began to
        need another quorum, whose first answers are still under way."""
        parts = self._parts
        leader = parts.leader
        assert leader is not None, "only a leader needs a quorum"
        needed_since = leader.membership_since + parts.config.leader_lease
        return max(self.quorum_lease_until(now), needed_since) + parts.config.election_timeout_max

    def last_quorum_acked(self, now: float) -> float:
        """The greatest time at which messages were *sent* that a quorum has answered; -inf for never."""
        parts = self._parts
        leader = parts.leader
        assert leader is not None, "only a leader counts answers"
        acked = dict(leader.acked_at)
        if not parts.needs_rejoin:
            acked[parts.config.id] = now
        return quorum_value(parts.effective.configs, acked, float("-inf"))

    def handle_vote_request(self, request: VoteRequest, store_id: str, request_id: RequestId, now: float) -> None:
        """Grant or refuse. A refusal by hold, lease or log changes nothing, not even the term."""
        parts = self._parts
        state = parts.state
        mine = self.compared_log_id()
        refused = (
            self._is_no_candidate(request, store_id)
            or self._withholds(request, now)
            or (self.leads_with_quorum(now) and not self._hands_over_to(request))
            or log_id_lt(request.last_log_id, mine)
        )
        if refused or not self.update_vote(request.vote, now):
            response = VoteResponse(parts.config.store_id, state.vote, False, mine)
            parts.output.push(Respond(0, request_id, response))
            return
        state.last_contact = now
        parts.redraw_election_timeout(now)
        # The grant vouches for the vote and for the log it compared: both must be durable when it leaves.
        when = max(state.vote_io, 0 if mine is None else state.io.io_of(index_of(mine)))
        parts.output.push(Respond(when, request_id, VoteResponse(parts.config.store_id, state.vote, True, mine)))

    def _is_no_candidate(self, request: VoteRequest, store_id: str) -> bool:
        """Whether nobody may be granted here at all: a wrong store on either side, a leader's vote, or the own name
        (which comes back only through a wrong address, and would count as a second voter's grant)."""
        parts = self._parts
        candidate = request.vote.node_id
        return (
            parts.needs_rejoin
            or parts.is_foreign_store(candidate, store_id)
            or candidate == parts.config.id
            or request.vote.committed
        )

    def _withholds(self, request: VoteRequest, now: float) -> bool:
        """Within a lease it acknowledged a node grants nobody, but for a hand-over by that very leader."""
        if now >= self._parts.state.hold_until:
            return False
        return request.transfer_of is None or request.transfer_of != self._parts.state.vote

    def _hands_over_to(self, request: VoteRequest) -> bool:
        """Whether this leader asked that very candidate to campaign: its own vote may be the one that is needed."""
        leader = self._parts.leader
        return (
            leader is not None
            and leader.transfer is not None
            and leader.transfer.target == request.vote.node_id
            and request.transfer_of == leader.vote
        )

    def handle_pre_vote_request(self, request: VoteRequest, store_id: str, request_id: RequestId, now: float) -> None:
        """Would this node vote so? Changes nothing; the answer leaves at once."""
        parts = self._parts
        mine = self.compared_log_id()
        granted = not (
            self._is_no_candidate(request, store_id)
            or now < parts.state.hold_until
            or self.leads_with_quorum(now)
            or log_id_lt(request.last_log_id, mine)
            or not parts.accepts(request.vote)
        )
        vote = request.vote if granted else parts.state.vote
        parts.output.push(Respond(0, request_id, VoteResponse(parts.config.store_id, vote, granted, mine)))
