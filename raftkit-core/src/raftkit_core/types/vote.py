"""Leader ids and votes (openraft ``Vote``, ``LeaderId``).

A vote plays the role of the paper's (currentTerm, votedFor) plus "a quorum has granted it". Every incoming message is
accepted or refused by comparing its vote with the local one, so the order of votes is the heart of election safety.

Two modes. By default leader ids are totally ordered by (term, node id): several leaders may be elected in one term and
the greater one wins. With ``single_term_leader`` two leader ids of one term and different nodes are *incomparable*,
which gives the paper's one leader per term. Never write "reject if vote < mine": accept iff ``vote_ge(new, mine)``.
"""

from __future__ import annotations

import msgspec

from raftkit_core.types.ids import Natural


class LeaderId(msgspec.Struct, frozen=True, order=True, array_like=True, gc=False):
    """Who leads (or wants to), and in which term."""

    term: Natural
    node_id: str

    def __str__(self) -> str:
        return f"T{self.term}-{self.node_id}"


class Vote(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A leader id, and whether a quorum has granted it. Not ordered by ``<``: use :func:`vote_ge`."""

    leader_id: LeaderId
    committed: bool = False

    @property
    def term(self) -> int:
        return self.leader_id.term

    @property
    def node_id(self) -> str:
        return self.leader_id.node_id

    def as_committed(self) -> Vote:
        """The same vote, granted by a quorum."""
        return Vote(self.leader_id, True)

    def as_uncommitted(self) -> Vote:
        """The same vote, not (known to be) granted."""
        return Vote(self.leader_id, False)

    def __str__(self) -> str:
        return f"{self.leader_id}{'Q' if self.committed else '-'}"


ZERO_LEADER_ID = LeaderId(0, "")
ZERO_VOTE = Vote(ZERO_LEADER_ID, False)
"""The vote of a node that has never voted."""


def vote_ge(new: Vote, mine: Vote, single_term_leader: bool) -> bool:
    """Whether ``new`` may replace (or repeats) ``mine``: the only gate for incoming messages.

    Incomparable votes (single-term mode, same term, different nodes) are not ``>=`` unless only ``new`` is committed.
    """
    left, right = new.leader_id, mine.leader_id
    if left == right:
        return new.committed >= mine.committed
    if single_term_leader and left.term == right.term and left.node_id and right.node_id:
        # A quorum chose `new` in this term, so nobody else can be chosen in it. Two committed ones cannot exist.
        assert not (new.committed and mine.committed), f"two leaders in one term: {new} and {mine}"
        return new.committed
    return left > right
