"""What the handlers share: the state, the settings, the way out, and the roles a node may hold."""

from __future__ import annotations

from raftkit_core.engine.candidate import Candidate
from raftkit_core.engine.engine_config import EngineConfig
from raftkit_core.engine.leader import Leader
from raftkit_core.engine.output import EngineOutput
from raftkit_core.engine.raft_state import RaftState
from raftkit_core.types.entropy import Entropy
from raftkit_core.types.ids import NodeId
from raftkit_core.types.membership import Membership, StoredMembership
from raftkit_core.types.snapshot import SnapshotMeta
from raftkit_core.types.vote import Vote, vote_ge


class View:
    """What the effective membership means for this node, looked up once per membership."""

    __slots__ = ("bound", "is_voter", "membership", "needs_rejoin", "stored")

    def __init__(self, stored: StoredMembership, config: EngineConfig) -> None:
        self.stored = stored
        self.membership = stored.membership
        self.is_voter = self.membership.is_voter(config.id)
        self.bound = {
            node_id: node.store_id for node_id, node in self.membership.nodes.items() if node.store_id is not None
        }
        """The store each bound member has."""
        self.needs_rejoin = self.bound.get(config.id, config.store_id) != config.store_id


class EngineParts:
    """The engine's own things, handed to every handler."""

    __slots__ = (
        "_least_timeout",
        "_random",
        "_timeout_spread",
        "_view",
        "building_snapshot",
        "candidate",
        "config",
        "entropy",
        "installing",
        "leader",
        "output",
        "seen_greater_log",
        "sessions",
        "snapshot_wanted",
        "state",
        "term_hint",
    )

    def __init__(self, config: EngineConfig, state: RaftState, entropy: Entropy) -> None:
        self.config = config
        self.state = state
        self.entropy = entropy
        self._random = entropy.random
        self._least_timeout = config.election_timeout_min
        self._timeout_spread = config.election_timeout_max - config.election_timeout_min
        self.output = EngineOutput()
        self._view = View(state.membership.effective, config)
        self.leader: Leader | None = None
        self.candidate: Candidate | None = None
        self.sessions = 0
        self.seen_greater_log = False
        """A lost campaign met a longer log: wait longer before the next one."""
        self.term_hint = 0
        """The greatest term seen in a refused pre-vote: the next campaign starts above it."""
        self.installing: SnapshotMeta | None = None
        """A snapshot being published and restored; until it is done appends are answered ``Busy``."""
        self.building_snapshot = False
        self.snapshot_wanted = False
        """Somebody asked for a snapshot while a build or an install was under way."""

    @property
    def view(self) -> View:
        """The effective membership, as it concerns this node."""
        view = self._view
        if view.stored is not self.state.membership.effective:
            view = self._view = View(self.state.membership.effective, self.config)
        return view

    @property
    def effective(self) -> Membership:
        return self.state.membership.effective.membership

    @property
    def is_voter(self) -> bool:
        return self.view.is_voter

    def accepts(self, vote: Vote) -> bool:
        """The gate for every message: accept iff ``vote >= mine`` in this cluster's mode."""
        return vote_ge(vote, self.state.vote, self.config.single_term_leader)

    def bound_store(self, node_id: NodeId) -> str | None:
        """The store the membership binds ``node_id`` to; None if it is unbound or no member."""
        return self.view.bound.get(node_id)

    def is_foreign_store(self, node_id: NodeId, store_id: str) -> bool:
        """Whether ``store_id`` is not the one the membership names: such a node's grants and acks do not count."""
        view = self._view
        if view.stored is not self.state.membership.effective:
            view = self.view
        return view.bound.get(node_id, store_id) != store_id

    @property
    def needs_rejoin(self) -> bool:
        """Whether this very store is not the one the membership names."""
        return self.view.needs_rejoin

    def redraw_election_timeout(self, now: float) -> None:
        """A new timeout per campaign and per contact, so that two nodes do not split votes for ever (§6 item 40)."""
        self.state.election_deadline = now + (self._least_timeout + self._timeout_spread * self._random())

    def known_leader(self) -> NodeId | None:
        """Who leads, as far as this node knows: itself by role, another by its granted vote."""
        if self.leader is not None:
            return self.config.id
        vote = self.state.vote
        if not vote.committed or vote.node_id == self.config.id or self.candidate is not None:
            return None
        return vote.node_id
