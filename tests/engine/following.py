"""A follower of three with a log of several terms."""

from __future__ import annotations

from raftkit_core.engine.engine import Engine
from raftkit_core.testing.builders import engine_with, log_id, membership, store_of, vote

THREE = membership("n1 n2 n3")
ZERO = log_id(0, "", 0)
ME = store_of("n1")
LEADER = vote(3, "n3", committed=True)


def following(**kwargs: object) -> Engine:
    """n1 follows n3 of term 3. Its log: the first entry, 1..2 of term 1, 3..5 of term 2; all durable, 2 committed."""
    defaults: dict[str, object] = {
        "vote": LEADER,
        "log": [ZERO, log_id(1, "n1", 1), log_id(2, "n2", 3), log_id(2, "n2", 5)],
        "committed": log_id(1, "n1", 2),
        "largest_lease_ms": 500,
    }
    return engine_with("n1", THREE, **(defaults | kwargs))  # type: ignore[arg-type]
