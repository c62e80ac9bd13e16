"""Histories for tests: written by hand in one line per operation, made at random, and judged by trying every order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import permutations
from random import Random
from typing import Any

from msgspec import UNSET
from msgspec.structs import replace

from raftkit_core.testing.linearizability import DurableWrite, Operation


def put(client: str, value: str, called: float, returned: float, **more: Any) -> Operation:
    return _made(client, "put", called, returned, value=value, **more)


def get(client: str, found: str | None, called: float, returned: float, **more: Any) -> Operation:
    return _made(client, "get", called, returned, found=found, **more)


def cas(client: str, expected: str | None, value: str, called: float, returned: float, **more: Any) -> Operation:
    return _made(client, "cas", called, returned, expected=expected, value=value, **more)


def delete(client: str, called: float, returned: float, **more: Any) -> Operation:
    return _made(client, "delete", called, returned, **more)


def _made(client: str, kind: Any, called: float, returned: float, **more: Any) -> Operation:
    more = {"key": "k", "outcome": "ok", **more}
    return Operation(client=client, kind=kind, called=called, returned=returned, **more)


# --- judged by brute force ------------------------------------------------------------------------------------------


def fits(operation: Operation, value: str | None) -> tuple[bool, str | None]:
    """Whether a register holding ``value`` could have answered so, and what it holds then. By values alone."""
    if operation.kind == "get":
        return operation.found == value, value
    if operation.kind == "put":
        assert isinstance(operation.value, str)
        return operation.outcome != "refused", operation.value
    if operation.kind == "delete":
        return operation.outcome != "ok" or operation.changed is (value is not None), None
    assert isinstance(operation.value, str)
    if operation.outcome == "refused":
        return operation.expected != value, value
    return operation.expected == value, operation.value


def brute_force(operations: Sequence[Operation]) -> bool:
    """Whether any order of any choice of the unknown ones, with all others, explains the history of one key."""
    known = [o for o in operations if o.outcome in ("ok", "refused")]
    unknown = [o for o in operations if o.outcome == "unknown" and o.kind != "get"]
    for choice in range(1 << len(unknown)):
        chosen = known + [o for number, o in enumerate(unknown) if choice >> number & 1]
        if any(_explains(order) for order in permutations(chosen)):
            return True
    return False


def _explains(order: Sequence[Operation]) -> bool:
    for place, operation in enumerate(order):
        for later in order[place + 1 :]:
            if later.outcome != "unknown" and later.returned < operation.called:
                return False
    value: str | None = None
    for operation in order:
        is_fit, value = fits(operation, value)
        if not is_fit:
            return False
    return True


# --- made at random -------------------------------------------------------------------------------------------------


def random_history(
    chance: Random,
    count: int,
    *,
    clients: int = 3,
    kinds: Sequence[str] = ("put", "get"),
    unknown: float = 0.15,
    lie: float = 0.0,
    values: int = 0,
    witness: bool = False,
    log: list[DurableWrite] | None = None,
) -> list[Operation]:
    """What a real register would answer to ``clients`` at random moments; with ``lie`` some answers are spoilt.

    ``values``: how many different ones are written (0: all are unique). ``witness``: revisions are given as well.
    ``log`` takes every change in its order.
    """
    free_at = [0.0] * clients
    calls: list[tuple[float, float, float, int, str, str, str | None]] = []
    for number in range(count):
        client = chance.randrange(clients)
        called = free_at[client] + chance.choice([0.0, 0.1, 1.0, 3.0]) * chance.random()
        returned = called + chance.choice([0.2, 1.0, 4.0]) * chance.random()
        at = called + (returned - called) * chance.random()
        value = f"v{number}" if values == 0 else f"v{chance.randrange(values)}"
        guess = None if number == 0 or chance.random() < 0.2 else f"v{chance.randrange(values or number)}"
        calls.append((called, returned, at, client, chance.choice(kinds), value, guess))
        free_at[client] = returned
    return list(_answered(chance, calls, unknown, lie, witness, [] if log is None else log))


def _answered(
    chance: Random, calls: list[Any], unknown: float, lie: float, witness: bool, log: list[DurableWrite]
) -> Iterator[Operation]:
    value: str | None = None
    written: list[str | None] = [None]
    revision, index = 0, 0
    takes_effect_late: list[tuple[float, Any]] = []
    for call in calls:
        is_unknown = chance.random() < unknown
        at = call[2] + (chance.random() * 6 if is_unknown else 0.0)
        takes_effect_late.append((at, (*call, is_unknown, is_unknown and chance.random() < 0.4)))
    for _, (called, returned, _, client, kind, new, guess, is_unknown, is_dropped) in sorted(takes_effect_late):
        name = f"c{client}"
        operation = Operation(client=name, kind=kind, key="k", called=called, returned=returned, outcome="unknown")
        if kind in ("put", "cas"):
            operation = replace(operation, value=new)
        if kind == "cas":
            # Usually what is there, so that comparisons succeed.
            guess = value if chance.random() < 0.6 else guess
            operation = replace(operation, expected=guess)
        if is_dropped:
            yield operation
            continue
        before = revision
        answer: dict[str, Any] = {"outcome": "ok"}
        if kind == "get":
            answer["found"] = value
            if chance.random() < lie:
                answer["found"] = chance.choice(written)
            if witness:
                answer["revision"] = revision
        else:
            index += 1
            log.append(DurableWrite(index=index, kind=operation.kind, key="k", value=operation.value))
            if kind == "cas" and guess != value:
                answer = {"outcome": "refused"}
            elif kind == "delete" and value is None:
                answer["changed"] = False
            else:
                value = None if kind == "delete" else new
                revision = 0 if value is None else index
                written.append(value)
            if kind == "cas" and chance.random() < lie:
                answer["outcome"] = "ok" if answer["outcome"] == "refused" else "refused"
            if witness and answer["outcome"] == "ok":
                answer |= {"revision": index, "previous_revision": before}
        yield operation if is_unknown else replace(operation, **answer)


def without_witness(operations: Sequence[Operation]) -> list[Operation]:
    return [replace(operation, revision=UNSET, previous_revision=UNSET) for operation in operations]
