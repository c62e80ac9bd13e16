"""Mutants of votes and campaigns."""

from __future__ import annotations

from typing import Any

import msgspec

from raftkit_core.engine import parts as parts_module
from raftkit_core.engine.candidate import Candidate
from raftkit_core.engine.commands import Respond, SaveVote, SendVote
from raftkit_core.engine.engine import Engine
from raftkit_core.engine.handlers.establish import EstablishHandler
from raftkit_core.engine.handlers.following import FollowingHandler
from raftkit_core.engine.handlers.vote import VoteHandler
from raftkit_core.engine.parts import EngineParts
from raftkit_core.testing.simulation.mutants.mutant import Patch, mutant
from raftkit_core.types.log_id import index_of
from raftkit_core.types.messages import VoteRequest, VoteResponse
from raftkit_core.types.vote import LeaderId, Vote


def released_at_once(patch: Patch, owner: type, name: str) -> None:
    """Whatever the method answers leaves without waiting for the disk."""
    original = getattr(owner, name)

    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        before = self._parts.output.take()
        result = original(self, *args, **kwargs)
        after = self._parts.output.take()
        for command in before:
            self._parts.output.push(command)
        for command in after:
            early = isinstance(command, Respond | SendVote) and command.when > 0
            self._parts.output.push(msgspec.structs.replace(command, when=0) if early else command)
        return result

    patch.set(owner, name, method)


@mutant(
    "grant-before-flush",
    "safety",
    "engine",
    "A vote is granted before it is on the disk.",
)
def _(patch: Patch) -> None:
    released_at_once(patch, VoteHandler, "handle_vote_request")


@mutant(
    "ask-before-flush",
    "safety",
    "engine",
    "A candidate asks for votes before its own vote is on the disk.",
)
def _(patch: Patch) -> None:
    released_at_once(patch, EstablishHandler, "elect")


@mutant(
    "own-grant-before-flush",
    "safety",
    "engine",
    "A candidate counts its own grant before that is on the disk.",
)
def _(patch: Patch) -> None:
    original = EstablishHandler.elect

    def elect(self: EstablishHandler, now: float, transfer_of: Vote | None = None) -> None:
        original(self, now, transfer_of)
        candidate = self._parts.candidate
        if candidate is not None and candidate.grant(self._parts.config.id):
            self._establish(candidate, now)

    patch.set(EstablishHandler, "elect", elect)


@mutant(
    "grant-to-shorter-log",
    "safety",
    "engine",
    "A vote is granted whatever the candidate's log holds.",
)
def _(patch: Patch) -> None:
    patch.set(VoteHandler, "compared_log_id", lambda self: None)


@mutant(
    "compare-logs-by-index",
    "safety",
    "engine",
    "The longer log wins, whoever wrote its end.",
)
def _(patch: Patch) -> None:
    from raftkit_core.engine.handlers import vote as module

    patch.set(module, "log_id_lt", lambda left, right: index_of(left) < index_of(right))


@mutant(
    "grant-ignores-snapshot",
    "safety",
    "engine",
    "A vote compares the log only, not a snapshot being installed.",
)
def _(patch: Patch) -> None:
    patch.set(VoteHandler, "compared_log_id", lambda self: self._parts.state.log.last)


@mutant(
    "grant-every-vote",
    "safety",
    "engine",
    "Every candidate with a long enough log is granted, also for a lower vote.",
)
def _(patch: Patch) -> None:
    original = VoteHandler.handle_vote_request

    def handle(self: VoteHandler, request: VoteRequest, store_id: str, request_id: int, now: float) -> None:
        state = self._parts.state
        if state.vote.leader_id > request.vote.leader_id and not request.vote.committed and now >= state.hold_until:
            response = VoteResponse(self._parts.config.store_id, request.vote, True, None)
            self._parts.output.push(Respond(state.vote_io, request_id, response))
            return
        original(self, request, store_id, request_id, now)

    patch.set(VoteHandler, "handle_vote_request", handle)


@mutant(
    "two-votes-in-a-term",
    "safety",
    "engine",
    "In single-term mode a node votes for two candidates of one term.",
)
def _(patch: Patch) -> None:
    def accepts(self: EngineParts, vote: Vote) -> bool:
        mine = self.state.vote
        if vote.term == mine.term and not mine.committed:
            return True
        return vote.leader_id > mine.leader_id or (
            vote.leader_id == mine.leader_id and vote.committed >= mine.committed
        )

    patch.set(EngineParts, "accepts", accepts)


@mutant(
    "votes-of-partial-order-less",
    "safety",
    "engine",
    "Votes are refused with 'lower than mine' instead of taken with 'at least mine'.",
)
def _(patch: Patch) -> None:
    def vote_ge(new: Vote, mine: Vote, single_term_leader: bool) -> bool:
        if single_term_leader and new.term == mine.term and new.node_id != mine.node_id:
            return True  # incomparable is not lower
        return (new.leader_id, new.committed) >= (mine.leader_id, mine.committed)

    patch.set(parts_module, "vote_ge", vote_ge)


@mutant(
    "majority-minus-one",
    "safety",
    "engine",
    "An election is won with one vote less than a majority.",
)
def _(patch: Patch) -> None:
    def grant(self: Candidate, node_id: str) -> bool:
        self.granted.add(node_id)
        return all(
            sum(voter in self.granted for voter in config) >= max(1, len(config) // 2)
            for config in self.membership.configs
        )

    patch.set(Candidate, "grant", grant)


@mutant(
    "joint-election-by-one-config",
    "safety",
    "engine",
    "In a joint membership the majority of the new configuration elects alone.",
)
def _(patch: Patch) -> None:
    def grant(self: Candidate, node_id: str) -> bool:
        self.granted.add(node_id)
        config = self.membership.configs[-1]
        return 2 * sum(voter in self.granted for voter in config) > len(config)

    patch.set(Candidate, "grant", grant)


@mutant(
    "equal-vote-is-a-grant",
    "safety",
    "engine",
    "A refusal that reports the candidate's own vote counts as a grant (openraft #1236).",
)
def _(patch: Patch) -> None:
    original = EstablishHandler.handle_vote_response

    def handle(self: EstablishHandler, sender: Vote, target: str, response: VoteResponse, now: float) -> None:
        if response.vote == sender:
            response = msgspec.structs.replace(response, granted=True)
        original(self, sender, target, response, now)

    patch.set(EstablishHandler, "handle_vote_response", handle)


@mutant(
    "pre-vote-counts-as-vote",
    "safety",
    "engine",
    "Who won the pre-vote leads at once.",
)
def _(patch: Patch) -> None:
    original = EstablishHandler.handle_pre_vote_response

    def handle(self: EstablishHandler, sender: Vote, target: str, response: VoteResponse, now: float) -> None:
        candidate = self._parts.candidate
        if candidate is not None and candidate.is_pre_vote and candidate.vote == sender and response.granted:
            if candidate.grant(target) and self._parts.accepts(candidate.vote):
                self._vote.save(candidate.vote, now)
                self._establish(candidate, now)
            return
        original(self, sender, target, response, now)

    patch.set(EstablishHandler, "handle_pre_vote_response", handle)


@mutant(
    "late-answers-of-another-campaign",
    "safety",
    "engine",
    "Answers to an earlier campaign count for the present one.",
)
def _(patch: Patch) -> None:
    original = EstablishHandler.handle_vote_response

    def handle(self: EstablishHandler, sender: Vote, target: str, response: VoteResponse, now: float) -> None:
        candidate = self._parts.candidate
        if candidate is not None and response.granted:
            sender = candidate.vote
            response = msgspec.structs.replace(response, vote=candidate.vote)
        original(self, sender, target, response, now)

    patch.set(EstablishHandler, "handle_vote_response", handle)


@mutant(
    "adopts-a-leadership-it-heard-of",
    "safety",
    "engine",
    "A node whose own granted vote comes back in a refusal leads with it again (openraft §6 item 10).",
)
def _(patch: Patch) -> None:
    original = Engine.startup

    def startup(self: Engine, now: float) -> None:
        original(self, now)
        state = self._parts.state
        if state.vote.committed and state.vote.node_id == self._parts.config.id and self._parts.leader is None:
            candidate = Candidate(state.vote.as_uncommitted(), state.log.last, self._parts.effective, now)
            state.vote = candidate.vote
            self._establish._establish(candidate, now)

    patch.set(Engine, "startup", startup)


@mutant(
    "term-not-raised",
    "safety",
    "engine",
    "A campaign repeats the term of the last one.",
)
def _(patch: Patch) -> None:
    def next_vote(self: EstablishHandler) -> Vote:
        return Vote(LeaderId(max(1, self._parts.state.vote.term), self._parts.config.id))

    patch.set(EstablishHandler, "_next_vote", next_vote)


@mutant(
    "learner-campaigns",
    "safety",
    "engine",
    "A node campaigns whether it is a voter or not.",
)
def _(patch: Patch) -> None:
    def may_campaign(self: EstablishHandler, now: float) -> bool:
        parts = self._parts
        return parts.leader is None and parts.installing is None and now >= parts.state.hold_until

    patch.set(EstablishHandler, "may_campaign", may_campaign)


@mutant(
    "grants-within-the-lease",
    "safety",
    "engine",
    "A node grants votes within a lease it has acknowledged.",
)
def _(patch: Patch) -> None:
    patch.set(VoteHandler, "_withholds", lambda self, request, now: False)


@mutant(
    "restart-forgets-the-lease",
    "safety",
    "engine",
    "A restarted node forgets the lease it acknowledged.",
)
def _(patch: Patch) -> None:
    original = Engine.startup

    def startup(self: Engine, now: float) -> None:
        self.state.largest_lease_ms = 0
        original(self, now)

    patch.set(Engine, "startup", startup)


@mutant(
    "campaigns-within-the-lease",
    "safety",
    "engine",
    "A node campaigns, and so grants itself, within a lease it has acknowledged.",
)
def _(patch: Patch) -> None:
    original = EstablishHandler.may_campaign

    def may_campaign(self: EstablishHandler, now: float) -> bool:
        return original(self, max(now, self._parts.state.hold_until))

    patch.set(EstablishHandler, "may_campaign", may_campaign)


@mutant(
    "transfer-proof-not-checked",
    "safety",
    "engine",
    "Any hand-over skips the hold, also one of a leader of long ago.",
)
def _(patch: Patch) -> None:
    original = VoteHandler._withholds

    def withholds(self: VoteHandler, request: VoteRequest, now: float) -> bool:
        return original(self, request, now) and request.vote.term % 2 == 0

    patch.set(VoteHandler, "_withholds", withholds)


@mutant(
    "vote-not-saved",
    "safety",
    "engine",
    "A vote is answered without being written.",
)
def _(patch: Patch) -> None:
    def save(self: VoteHandler, vote: Vote, now: float) -> int:
        state = self._parts.state
        state.vote = vote
        state.vote_io = 0
        if vote.committed or vote.node_id == self._parts.config.id:
            state.vote_io = state.io.submit(now)
            self._parts.output.push(SaveVote(state.vote_io, vote))
        return state.vote_io

    patch.set(VoteHandler, "save", save)


@mutant(
    "rejection-raises-the-vote",
    "liveness",
    "engine",
    "A refused vote request takes the refuser along into its term.",
)
def _(patch: Patch) -> None:
    original = VoteHandler.handle_vote_request

    def handle(self: VoteHandler, request: VoteRequest, store_id: str, request_id: int, now: float) -> None:
        self.update_vote(request.vote, now)
        original(self, request, store_id, request_id, now)

    patch.set(VoteHandler, "handle_vote_request", handle)


@mutant(
    "elect-on-a-leader",
    "liveness",
    "engine",
    "A leader campaigns when its timer runs out (D03).",
)
def _(patch: Patch) -> None:
    original = Engine.handle_tick

    def tick(self: Engine, now: float) -> None:
        original(self, now)
        if self._parts.leader is not None and now >= self._parts.state.election_deadline:
            self._server_state.step_down("it campaigns", now)
            self._establish.elect(now)

    patch.set(Engine, "handle_tick", tick)


@mutant(
    "one-timeout-for-all",
    "liveness",
    "engine",
    "Every node waits equally long before it campaigns (D11).",
)
def _(patch: Patch) -> None:
    def redraw(self: EngineParts, now: float) -> None:
        self.state.election_deadline = now + self.config.election_timeout_min

    patch.set(EngineParts, "redraw_election_timeout", redraw)


@mutant(
    "never-campaigns-again",
    "liveness",
    "engine",
    "Who lost a campaign does not start another.",
)
def _(patch: Patch) -> None:
    original = EstablishHandler.may_campaign

    def may_campaign(self: EstablishHandler, now: float) -> bool:
        return self._parts.candidate is None and original(self, now)

    patch.set(EstablishHandler, "may_campaign", may_campaign)


@mutant(
    "leader-contact-does-not-wake-down",
    "liveness",
    "engine",
    "A leader's message does not restart the election timer.",
)
def _(patch: Patch) -> None:
    original = FollowingHandler._accept_leader

    def accept(self: FollowingHandler, vote: Vote, lease_ms: int, now: float) -> bool:
        state = self._parts.state
        deadline, hold = state.election_deadline, state.hold_until
        taken = original(self, vote, lease_ms, now)
        state.election_deadline, state.hold_until = deadline, hold
        return taken

    patch.set(FollowingHandler, "_accept_leader", accept)


@mutant(
    "leader-needs-no-quorum",
    "liveness",
    "engine",
    "A leader that nobody answers goes on leading.",
)
def _(patch: Patch) -> None:
    patch.set(VoteHandler, "quits_at", lambda self, now: float("inf"))
    patch.set(VoteHandler, "leads_with_quorum", lambda self, now: self._parts.leader is not None)
