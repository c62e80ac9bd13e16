"""Short builders for tests that drive the engine directly: ids, entries, memberships, and engines in a given state.

Nodes are bound to :func:`store_of` their id unless said otherwise. Times are seconds, as the engine sees them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from raftkit_core.config import Config
from raftkit_core.engine.commands import Command
from raftkit_core.engine.engine import Engine
from raftkit_core.engine.engine_config import EngineConfig
from raftkit_core.engine.log_id_list import LogIdList
from raftkit_core.engine.membership_state import MembershipState
from raftkit_core.engine.raft_state import RaftState
from raftkit_core.types.entry import BLANK, MEMBERSHIP, NORMAL, Entry, encode_membership
from raftkit_core.types.ids import NodeId
from raftkit_core.types.log_id import LogId
from raftkit_core.types.membership import Membership, Node, StoredMembership
from raftkit_core.types.messages import VoteResponse
from raftkit_core.types.snapshot import SnapshotMeta
from raftkit_core.types.vote import ZERO_LEADER_ID, ZERO_VOTE, LeaderId, Vote


class FixedEntropy:
    """Draws the same number every time, or the given ones in turn."""

    def __init__(self, *values: float) -> None:
        self._values = list(values) or [0.0]

    def random(self) -> float:
        return self._values.pop(0) if len(self._values) > 1 else self._values[0]


def store_of(node_id: NodeId) -> str:
    """The store id a built membership binds ``node_id`` to."""
    return node_id.encode().hex().zfill(32)


def leader_id(term: int, node_id: NodeId = "n1") -> LeaderId:
    return LeaderId(term, node_id)


def vote(term: int, node_id: NodeId = "n1", *, committed: bool = False) -> Vote:
    return Vote(LeaderId(term, node_id), committed)


def log_id(term: int, node_id: NodeId, index: int) -> LogId:
    """Term 0 stands for the entry of ``initialize``, which no leader proposed."""
    return LogId(ZERO_LEADER_ID if term == 0 else LeaderId(term, node_id), index)


def entry(at: LogId, payload: bytes = b"x", *, kind: int = NORMAL, time_ms: int = 0) -> Entry:
    return Entry(at, time_ms, kind, payload)


def blank(at: LogId, *, time_ms: int = 0) -> Entry:
    return Entry(at, time_ms, BLANK, b"")


def membership_entry(at: LogId, members: Membership, *, time_ms: int = 0) -> Entry:
    return Entry(at, time_ms, MEMBERSHIP, encode_membership(members))


def node(node_id: NodeId, *, bound: bool = True) -> Node:
    return Node(f"test://{node_id}", store_id=store_of(node_id) if bound else None)


def membership(
    *configs: str | Iterable[NodeId], learners: str | Iterable[NodeId] = (), bound: bool = True
) -> Membership:
    """``membership("n1 n2 n3")`` is uniform, ``membership("n1 n2", "n2 n3")`` joint."""
    sets = [config.split() if isinstance(config, str) else list(config) for config in configs]
    others = learners.split() if isinstance(learners, str) else list(learners)
    ids = {node_id for config in sets for node_id in config} | set(others)
    return Membership.of(sets, {node_id: node(node_id, bound=bound) for node_id in ids})


def stored(members: Membership, at: LogId | None = None) -> StoredMembership:
    return StoredMembership(log_id(0, "", 0) if at is None else at, members)


def log_ids(*ids: LogId, purged: LogId | None = None) -> LogIdList:
    """A log whose leaders begin at ``ids``; the last one is the last entry. Without ids: nothing after ``purged``."""
    log = LogIdList(purged)
    starts = list(ids)
    for first, following in zip(starts, [*starts[1:], None], strict=False):
        end = first.index if following is None else following.index - 1
        last = LogId(first.leader_id, end)
        known = log.last
        if known is not None and known.leader_id == first.leader_id:
            first = LogId(first.leader_id, known.index + 1)
        if following is not None and following.leader_id == first.leader_id:
            last = following
        if first.index <= last.index:
            log.extend(first, last)
    return log


def snapshot_meta(
    last: LogId, members: Membership | StoredMembership, *, snapshot_id: str = "a1", time_ms: int = 0
) -> SnapshotMeta:
    held = members if isinstance(members, StoredMembership) else stored(members)
    return SnapshotMeta(last, held, snapshot_id, time_ms)


def engine_with(
    node_id: NodeId = "n1",
    members: Membership | None = None,
    *,
    vote: Vote = ZERO_VOTE,
    log: LogIdList | Sequence[LogId] = (),
    committed: LogId | None = None,
    applied: LogId | None = None,
    memberships: MembershipState | None = None,
    snapshot: SnapshotMeta | None = None,
    largest_lease_ms: int = 0,
    last_time_ms: int = 0,
    entropy: float | Sequence[float] = 0.0,
    store_id: str | None = None,
    now: float = 0.0,
    settings: Mapping[str, Any] | None = None,
    started: bool = True,
    machine_is_durable: bool = False,
) -> Engine:
    """An engine that was started at ``now`` with this state on disk; the commands of its start are dropped.

    ``members`` is the membership of index 0, committed if anything is; ``applied`` defaults to ``committed``.
    ``entropy`` 0.0 means that every election timeout is the least.
    """
    config = Config(**dict(settings or {}))
    if memberships is None:
        memberships = MembershipState() if members is None else MembershipState(stored(members))
    state = RaftState(
        vote=vote,
        log=log if isinstance(log, LogIdList) else log_ids(*log),
        committed=committed,
        applied=committed if applied is None else applied,
        membership=memberships,
        snapshot=snapshot,
        last_time_ms=last_time_ms,
        largest_lease_ms=largest_lease_ms,
    )
    draws = FixedEntropy(*(entropy if isinstance(entropy, Sequence) else [entropy]))
    own_store = store_of(node_id) if store_id is None else store_id
    engine_config = EngineConfig(node_id, own_store, config, machine_is_durable=machine_is_durable)
    engine = Engine(engine_config, state, draws)
    if started:
        engine.startup(now)
        engine.take_commands()
    return engine


def flush(engine: Engine, now: float = 0.0) -> list[Command]:
    """Everything asked of the log lane is durable. Gives what the engine orders thereupon."""
    engine.on_log_flushed(engine.state.io.last_io, now)
    return engine.take_commands()


def grant(engine: Engine, voter: NodeId, asked: Vote, now: float = 0.0, *, pre_vote: bool = False) -> None:
    """``voter`` grants the campaign for ``asked``."""
    answered = engine.on_pre_vote_response if pre_vote else engine.on_vote_response
    answered(asked, voter, VoteResponse(store_of(voter), asked, True, None), now)


def elect(engine: Engine, now: float = 0.0) -> list[Command]:
    """Win an election with the grant of every other voter; the granted vote is *not* flushed yet.

    Gives the commands from establishing on.
    """
    engine.handle_elect(now)
    others = [voter for voter in engine.effective.voter_ids if voter != engine.config.id]
    if engine.config.pre_vote:
        asked = Vote(LeaderId(engine.vote.term + 1, engine.config.id))
        for voter in others:
            grant(engine, voter, asked, now, pre_vote=True)
    engine.take_commands()
    commands = flush(engine, now)
    for voter in others:
        grant(engine, voter, engine.vote.as_uncommitted(), now)
    commands += engine.take_commands()
    assert engine.is_leader, f"{engine.config.id} was not elected: {commands}"
    return commands
