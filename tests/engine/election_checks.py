"""A node before an election."""

from __future__ import annotations

from raftkit_core.engine.commands import Respond
from raftkit_core.engine.engine import Engine
from raftkit_core.testing.builders import engine_with, flush, log_id, membership, store_of, vote
from raftkit_core.types.log_id import LogId
from raftkit_core.types.membership import Membership
from raftkit_core.types.messages import VoteRequest, VoteResponse
from raftkit_core.types.metrics import ServerState
from raftkit_core.types.vote import Vote

THREE = membership("n1 n2 n3")
ZERO = log_id(0, "", 0)
LAST = log_id(2, "n2", 3)
ME = store_of("n1")
MINE = vote(2, "n2", committed=True)


def voter(members: Membership = THREE, **kwargs: object) -> Engine:
    """n1 has voted for n2 in term 2; its log ends with entry 3 of that term."""
    defaults: dict[str, object] = {"vote": MINE, "log": [ZERO, log_id(1, "n1", 1), log_id(2, "n2", 2), LAST]}
    defaults["committed"] = ZERO
    return engine_with("n1", members, **(defaults | kwargs))  # type: ignore[arg-type]


def ask(
    engine: Engine,
    asked: Vote,
    last: LogId | None = LAST,
    *,
    store_id: str | None = None,
    transfer_of: Vote | None = None,
    now: float = 5.0,
    pre_vote: bool = False,
) -> list[object]:
    handle = engine.handle_pre_vote if pre_vote else engine.handle_vote
    handle(VoteRequest(asked, last, transfer_of), store_of(asked.node_id) if store_id is None else store_id, 7, now)
    return list(engine.take_commands())


def refused(held: Vote = MINE, last: LogId | None = LAST) -> list[object]:
    return [Respond(0, 7, VoteResponse(ME, held, False, last))]


def candidate(**kwargs: object) -> Engine:
    """n1 campaigns for term 3; its vote is durable."""
    engine = voter(settings={"pre_vote": False}, **kwargs)
    engine.handle_elect(5.0)
    flush(engine)
    assert engine.state.server_state is ServerState.CANDIDATE
    return engine
