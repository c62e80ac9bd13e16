"""A leader that was heard at some moment, and a follower that is asked."""

from __future__ import annotations

from raftkit_core.engine.commands import Command, Respond
from raftkit_core.engine.engine import Engine
from raftkit_core.testing.builders import elect, engine_with, flush, log_id, membership, store_of, vote
from raftkit_core.types.membership import Membership
from raftkit_core.types.messages import HeartbeatRequest, Success, VoteRequest, VoteResponse
from raftkit_core.types.vote import Vote

THREE = membership("n1 n2 n3")
ZERO = log_id(0, "", 0)
NOOP = log_id(1, "n1", 1)
LEADER = vote(3, "n3", committed=True)


def leading(members: Membership = THREE, **settings: object) -> Engine:
    """n1 leads in term 1 since 10.0; its blank is durable here; nobody has answered yet."""
    engine = engine_with("n1", members, log=[ZERO], committed=ZERO, settings=settings, now=9.0)
    elect(engine, 10.0)
    flush(engine, 10.0)
    return engine


def heard(engine: Engine, peer: str, *, seq: int = 0, sent_at: float, now: float | None = None) -> list[Command]:
    """``peer`` answers a heartbeat that was sent at ``sent_at``."""
    now = sent_at if now is None else now
    engine.on_heartbeat_response(engine.session, peer, seq, sent_at, Success(store_of(peer), None), now)
    return engine.take_commands()


def following(**kwargs: object) -> Engine:
    """n1 follows n3, which it heard at 1.0."""
    engine = engine_with("n1", THREE, vote=LEADER, log=[ZERO], committed=ZERO, **kwargs)  # type: ignore[arg-type]
    engine.handle_heartbeat(HeartbeatRequest(LEADER, None, None, 500), 1, 1.0)
    flush(engine, 1.0)
    return engine


def ask(engine: Engine, now: float, *, transfer_of: Vote | None = None, pre_vote: bool = False) -> bool:
    """Whether n2 would get this vote for term 4."""
    handle = engine.handle_pre_vote if pre_vote else engine.handle_vote
    handle(VoteRequest(vote(4, "n2"), log_id(3, "n3", 9), transfer_of), store_of("n2"), 7, now)
    answer = engine.take_commands()[-1]
    assert isinstance(answer, Respond)
    assert isinstance(answer.response, VoteResponse)
    return answer.response.granted


def read(engine: Engine, now: float, *ids: int, by_lease: bool = False) -> list[Command]:
    engine.handle_read(list(ids) or [7], by_lease, now)
    return engine.take_commands()
