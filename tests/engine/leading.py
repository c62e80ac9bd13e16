"""A leader of three whose peers answer as a test says."""

from __future__ import annotations

from raftkit_core.engine.commands import Command, Replicate
from raftkit_core.engine.engine import Engine
from raftkit_core.testing.builders import (
    elect,
    engine_with,
    flush,
    log_id,
    log_ids,
    membership,
    snapshot_meta,
    store_of,
    vote,
)
from raftkit_core.types.log_id import LogId
from raftkit_core.types.messages import AppendEntriesResponse, Conflict, Success

THREE = membership("n1 n2 n3")
ZERO = log_id(0, "", 0)
BLANK = log_id(1, "n1", 1)
LEADING = vote(1, "n1", committed=True)


def leading(*answering: str, **settings: object) -> Engine:
    """n1 leads n2 and n3 in term 1 since 0.0; its blank entry 1 is durable and committed, ``answering`` have it."""
    engine = engine_with("n1", THREE, log=[ZERO], committed=ZERO, settings=settings)
    elect(engine)
    flush(engine)
    for peer in answering or ("n2", "n3"):
        answer(engine, peer, Success(store_of(peer), BLANK))
    assert engine.state.committed == BLANK
    engine.on_applied(BLANK, 1.0)
    return engine


def answer(
    engine: Engine,
    peer: str,
    response: AppendEntriesResponse,
    *,
    now: float = 0.0,
    epoch: int | None = None,
    seq: int = 1,
    sent_at: float = 0.0,
    session: int | None = None,
) -> list[Command]:
    """``peer`` answers an append."""
    progress = engine.progress
    assert progress is not None
    epoch = progress[peer].epoch if epoch is None else epoch
    session = engine.session if session is None else session
    engine.on_replication_progress(session, peer, epoch, seq, sent_at, response, now)
    return engine.take_commands()


def ack(engine: Engine, peer: str, index: int, *, now: float = 0.0) -> list[Command]:
    return answer(engine, peer, Success(store_of(peer), engine.log_id_at(index)), now=now)


def write(engine: Engine, count: int = 1, *, now: float = 0.0, payload: bytes = b"x") -> list[Command]:
    first = engine.handle_client_write([payload] * count, now)
    assert isinstance(first, LogId), first
    return engine.take_commands()


def targets(commands: list[Command]) -> dict[str, tuple[LogId | None, int]]:
    """For each peer that is sent entries: what before, and up to where."""
    return {each.target: (each.prev_log_id, each.last_index) for each in commands if isinstance(each, Replicate)}


def lagging() -> tuple[Engine, list[Command]]:
    """n2 needs entries that are purged; gives the commands that answer its conflict."""
    at = log_id(1, "n2", 9)
    engine = engine_with(
        "n1",
        THREE,
        vote=vote(1, "n2"),
        log=log_ids(log_id(1, "n2", 10), log_id(1, "n2", 12), purged=at),
        committed=at,
        snapshot=snapshot_meta(log_id(1, "n2", 9), THREE),
    )
    elect(engine)
    flush(engine)
    return engine, answer(engine, "n2", Conflict(store_of("n2"), 12, log_id(1, "n2", 3)))
