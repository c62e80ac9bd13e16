"""The search: an order of all operations that a real register could have produced, or the proof that there is none.

Wing and Gong's algorithm with Lowe's memory, in the shape that porcupine made known: calls and returns of one key in a
doubly linked list; an operation whose call comes before the first return may be next; it is lifted out, and put back
when nothing fits behind it; (operations placed, state) that failed once is not tried again.

Two additions. A history is cut where nothing is under way, so that the sets stay small. And a write of unknown outcome
is never placed for its own sake, only directly before an operation that needs it: wherever else it could stand, the
history is as good without it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from msgspec import UNSET, UnsetType

from raftkit_core.testing.linearizability.findings import Finding, finding
from raftkit_core.testing.linearizability.history import Operation

CHECK = "search"
DEFAULT_BUDGET = 2_000_000
"""Steps for one key: some ten seconds."""

KEEP = -1
ABSENT = 0
"""The version of a key that does not exist."""


class OutOfBudget(Exception):
    """The search was not finished, so nothing is known."""


class _Budget:
    def __init__(self, steps: int) -> None:
        self.left = steps


class Move:
    """An operation as the search sees it: which versions of the key it fits (None: all), what it makes of them."""

    __slots__ = ("admits", "called", "operation", "returned", "target")

    def __init__(self, operation: Operation, admits: frozenset[int] | None, target: int) -> None:
        self.operation = operation
        self.called = operation.called
        self.returned = operation.returned
        self.admits = admits
        self.target = target


def search(operations: Sequence[Operation], *, budget: int = DEFAULT_BUDGET) -> tuple[list[Finding], int]:
    """What is wrong with the settled operations of one key, and how many steps it took to know.

    Raises: OutOfBudget.
    """
    moves, unknown, versions = _compile(operations)
    left = _Budget(budget)
    segments = _segments(moves)
    # Depth first over the segments: a frame is the ways out of one segment, found as they are asked for.
    seen: set[tuple[int, int, int]] = set()
    furthest = 0
    entered = {ABSENT}
    """What the key could hold before the furthest segment that was reached."""
    frames = [_ways_out(segments[0], unknown, ABSENT, 0, left)]
    while frames:
        way = next(frames[-1], None)
        if way is None:
            frames.pop()
            continue
        version, used = way
        if len(frames) == len(segments):
            return [], budget - left.left
        place = (len(frames), version, used)
        if place in seen:
            continue
        seen.add(place)
        if len(frames) > furthest:
            furthest, entered = len(frames), set()
        if len(frames) == furthest:
            entered.add(version)
        frames.append(_ways_out(segments[len(frames)], unknown, version, used, left))
    blocked = [move.operation for move in segments[furthest]]
    held = " or ".join(versions.shown(version) for version in sorted(entered))
    message = f"the key held {held} before these operations, and no order of them explains their results"
    return [finding(CHECK, blocked[0].key, message, *blocked[:12])], budget - left.left


# --- versions and moves ---------------------------------------------------------------------------------------------


class _Versions:
    """Every version the key can have: absent, or a value with the revision that made it (UNSET: not known)."""

    def __init__(self) -> None:
        self.values: list[str | None] = [None]
        self.revisions: list[int | UnsetType] = [0]
        self._numbers: dict[tuple[str | None, int | UnsetType], int] = {}
        self.known: set[int] = {0}

    def number(self, value: str | None, revision: int | UnsetType) -> int:
        found = self._numbers.get((value, revision))
        if found is None:
            found = self._numbers[value, revision] = len(self.values)
            self.values.append(value)
            self.revisions.append(revision)
            if revision is not UNSET:
                self.known.add(revision)
        return found

    def shown(self, number: int) -> str:
        value, revision = self.values[number], self.revisions[number]
        return "nothing" if value is None else repr(value) + ("" if revision is UNSET else f" @{revision}")

    def matching(self, value: str | UnsetType | None, revision: int | UnsetType) -> frozenset[int]:
        """Versions that may have been seen as this value (UNSET: any) at this revision (UNSET: any)."""
        return frozenset(
            number
            for number, (its_value, its_revision) in enumerate(zip(self.values, self.revisions, strict=True))
            if (value is UNSET or its_value == value)
            and (
                revision is UNSET or its_revision == revision or (its_revision is UNSET and revision not in self.known)
            )
        )


def compile_moves(operations: Sequence[Operation]) -> tuple[list[Move], list[Move]]:
    """The moves that must be placed, and those of unknown outcome that may be (without those nothing can need)."""
    return _compile(operations)[:2]


def _compile(operations: Sequence[Operation]) -> tuple[list[Move], list[Move], _Versions]:
    versions = _Versions()
    targets = [
        versions.number(operation.value, operation.revision)
        if operation.kind in ("put", "cas") and operation.outcome != "refused" and operation.value is not UNSET
        else KEEP
        for operation in operations
    ]
    everything = frozenset(range(len(versions.values)))
    compiler = _Compiler(versions, everything)
    definite: list[Move] = []
    unknown: list[Move] = []
    for operation, target in zip(operations, targets, strict=True):
        move = compiler.move(operation, target)
        (unknown if operation.outcome == "unknown" else definite).append(move)
    return definite, _needed(definite, unknown), versions


class _Compiler:
    def __init__(self, versions: _Versions, everything: frozenset[int]) -> None:
        self._versions = versions
        self._everything = everything

    def move(self, operation: Operation, target: int) -> Move:
        if operation.kind == "get":
            return Move(operation, self._versions.matching(operation.found, operation.revision), KEEP)
        condition = self._condition(operation)
        if operation.outcome == "refused":
            return Move(operation, self._where_it_may_fail(operation, condition), KEEP)
        if operation.kind == "delete":
            target = ABSENT
            if operation.outcome == "ok":
                absent = frozenset((ABSENT,))
                condition = _both(condition, self._everything - absent if operation.changed else absent)
        if operation.outcome == "ok" and operation.previous_revision is not UNSET and operation.changed:
            condition = _both(condition, self._versions.matching(UNSET, operation.previous_revision))
        return Move(operation, condition, target)

    def _condition(self, operation: Operation) -> frozenset[int] | None:
        if operation.kind == "cas":
            return self._versions.matching(operation.expected, UNSET)
        if operation.if_revision is not UNSET:
            return self._versions.matching(UNSET, operation.if_revision)
        return None

    def _where_it_may_fail(self, operation: Operation, condition: frozenset[int] | None) -> frozenset[int]:
        if condition is None:
            return frozenset()  # it had none: nothing could refuse it
        vague = frozenset(number for number in condition if self._versions.revisions[number] is UNSET)
        certain = condition if operation.kind == "cas" else condition - vague
        return self._everything - certain


def _both(one: frozenset[int] | None, other: frozenset[int]) -> frozenset[int]:
    return other if one is None else one & other


def _needed(definite: list[Move], unknown: list[Move]) -> list[Move]:
    """Unknown writes that some other move could need. Leaving one out can make another one needless."""
    while True:
        kept = [
            move
            for move in unknown
            if any(
                other.admits is not None and move.target in other.admits
                for other in (*definite, *unknown)
                if other is not move
            )
        ]
        if len(kept) == len(unknown):
            return kept
        unknown = kept


# --- segments -------------------------------------------------------------------------------------------------------


def _segments(moves: list[Move]) -> list[list[Move]]:
    """Cut where everything that began has ended. (Unknown writes never end; they are carried from cut to cut.)"""
    segments: list[list[Move]] = []
    last_return = float("-inf")
    for move in sorted(moves, key=lambda move: move.called):
        if not segments or move.called > last_return:
            segments.append([])
        segments[-1].append(move)
        last_return = max(last_return, move.returned)
    return segments or [[]]


def _ways_out(
    moves: list[Move], unknown: list[Move], version: int, used: int, budget: _Budget
) -> Iterator[tuple[int, int]]:
    """Every (version, unknown writes used) in which ``moves`` can leave the key, each once, found lazily."""
    followers, is_return, head = _event_list(moves)
    count = len(moves)
    before = [0] * len(followers)
    for entry, follower in enumerate(followers):
        before[follower] = entry
    admits = [move.admits for move in moves]
    targets = [move.target for move in moves]
    memory: set[tuple[int, int, int]] = set()
    found: set[tuple[int, int]] = set()
    stack: list[tuple[int, int, int, list[tuple[int, int]], int]] = []
    placed = 0
    entry = followers[head]
    alternatives: list[tuple[int, int]] | None = None
    choice = 0
    while True:
        if entry == head:  # no return is left in the list: everything is placed
            if (version, used) not in found:
                found.add((version, used))
                yield version, used
        elif not is_return[entry]:
            if alternatives is None:
                fits = admits[entry]
                if fits is None or version in fits:
                    alternatives = [(version, used)]
                else:
                    limit = _first_return(followers, is_return, entry, moves, count)
                    alternatives = _with_help(unknown, fits, version, used, limit) if unknown else []
                choice = 0
            if choice < len(alternatives):
                seen_version, now_used = alternatives[choice]
                target = targets[entry]
                next_version = seen_version if target == KEEP else target
                budget.left -= 1
                if budget.left < 0:
                    raise OutOfBudget
                now_placed = placed | (1 << entry)
                place = (now_placed, next_version, now_used)
                if place in memory:
                    choice += 1
                    continue
                memory.add(place)
                stack.append((entry, version, used, alternatives, choice))
                placed, version, used = now_placed, next_version, now_used
                for lifted in (entry, entry + count):
                    previous, following = before[lifted], followers[lifted]
                    followers[previous], before[following] = following, previous
                entry, alternatives = followers[head], None
                continue
            entry, alternatives = followers[entry], None
            continue
        # A return whose call is not placed, or a way out: take the last placement back and try what comes behind it.
        if not stack:
            return
        entry, version, used, alternatives, choice = stack.pop()
        placed &= ~(1 << entry)
        for lowered in (entry + count, entry):
            followers[before[lowered]] = before[followers[lowered]] = lowered
        choice += 1


def _event_list(moves: list[Move]) -> tuple[list[int], list[bool], int]:
    """``followers`` of a ring: entry i is the call of move i, i + count its return, the last one the head."""
    count = len(moves)
    events = [(move.called, 0, number) for number, move in enumerate(moves)]
    events += [(move.returned, 1, number + count) for number, move in enumerate(moves)]
    events.sort()  # at one moment calls come first: such operations are concurrent
    head = 2 * count
    followers = [0] * (head + 1)
    previous = head
    for _, _, entry in events:
        followers[previous] = entry
        previous = entry
    followers[previous] = head
    return followers, [False] * count + [True] * count + [False], head


def _first_return(followers: list[int], is_return: list[bool], entry: int, moves: list[Move], count: int) -> float:
    while not is_return[entry]:
        entry = followers[entry]
    return moves[entry - count].returned


def _with_help(
    unknown: list[Move], fits: frozenset[int], version: int, used: int, limit: float
) -> list[tuple[int, int]]:
    """Unknown writes, begun by ``limit`` and not used up, that lead from ``version`` to one that ``fits``."""
    ways = []
    for number, move in enumerate(unknown):
        bit = 1 << number
        if used & bit or move.called > limit or move.target not in fits:
            continue
        if move.admits is None or version in move.admits:
            ways.append((move.target, used | bit))
        else:
            ways += [(move.target, more) for _, more in _with_help(unknown, move.admits, version, used | bit, limit)]
    return ways
