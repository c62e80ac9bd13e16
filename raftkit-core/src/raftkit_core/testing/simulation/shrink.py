"""Making a failing scenario short.

In the order of what it saves: the recovery, the time after the violation, all keys but one, whole kinds of actions,
whole clients and nodes, then ever smaller windows of time (Zeller's ddmin), down to single actions, then weather and
settings that are not needed. Each of these makes every later run quicker.

A shorter scenario counts if it is violated at all, by the same check or another: what is wanted is a short way to
something that is wrong. What was tried is remembered; ``width`` candidates are run at a time.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

import msgspec

SIMPLER: tuple[tuple[str, Any], ...] = (
    ("ends_early", True),
    ("ending", "all"),
    ("quiet", False),
    ("machine", "kv"),
    ("purge_at_end", False),
    ("in_step", False),
    ("clock_extremes", False),
    ("clock_drift", 0.0),
    ("single_term", False),
    ("config", {}),
)
"""Fields of a scenario of either ring, and what is the simplest in each."""
TAIL_SECONDS = 0.5
"""How long a scenario goes on after its last action, at the least."""


class Shrunk(msgspec.Struct):
    """The shortest scenario found, how many runs that took, and whether time was left."""

    scenario: Any
    runs: int
    is_finished: bool


def shrink(
    scenario: Any,
    fails: Callable[[Any], bool],
    *,
    seconds: float = 60.0,
    runs: int | None = None,
    width: int = 1,
) -> Shrunk:
    """A shorter scenario that still ``fails``, within so many seconds of real time and so many runs."""
    return _Shrinking(fails, time.monotonic() + seconds, runs, width).shrink(scenario)


class _OutOfTime(Exception):
    pass


class _Shrinking:
    def __init__(self, fails: Callable[[Any], bool], deadline: float, runs_max: int | None, width: int) -> None:
        self._fails = fails
        self._deadline = deadline
        self._runs_max = runs_max
        self._width = width
        self._runs = 0
        self._best: Any = None
        self._known: dict[bytes, bool] = {}

    def shrink(self, scenario: Any) -> Shrunk:
        self._best = scenario
        try:
            self._try(ends_early=True)
            self._cut_time()
            before = None
            while before != self._best:
                before = self._best
                self._keep_one_key()
                self._drop_groups()
                self._fewer_nodes()
                self._drop_windows()
                self._simplify()
                self._cut_time()
        except _OutOfTime:
            return Shrunk(self._best, self._runs, False)
        return Shrunk(self._best, self._runs, True)

    # --- trying -----------------------------------------------------------------------------------------------------

    def _try(self, **changes: Any) -> bool:
        return self._first([changes])

    def _first(self, candidates: Iterable[dict[str, Any]]) -> bool:
        """Go on from the first of these changes with which it still fails. False: there is none."""
        left = iter(candidates)
        while some := list(islice(left, self._width)):
            scenarios = [msgspec.structs.replace(self._best, **changes) for changes in some]
            for shorter, failed in zip(scenarios, self._run(scenarios), strict=True):
                if failed:
                    self._best = shorter
                    return True
        return False

    def _run(self, scenarios: list[Any]) -> list[bool]:
        encoded = [msgspec.json.encode(scenario) for scenario in scenarios]
        now = msgspec.json.encode(self._best)
        new = [number for number, text in enumerate(encoded) if text not in self._known and text != now]
        if new:
            if time.monotonic() > self._deadline or (self._runs_max is not None and self._runs >= self._runs_max):
                raise _OutOfTime
            self._runs += len(new)
            for number, failed in zip(new, _side_by_side(self._fails, [scenarios[each] for each in new]), strict=True):
                self._known[encoded[number]] = failed
        return [text != now and self._known[text] for text in encoded]

    # --- what is tried ----------------------------------------------------------------------------------------------

    def _cut_time(self) -> None:
        """End sooner: at half the time, or three quarters of it, and so on."""
        actions = self._best.actions
        low, high = 0.0, min(self._best.seconds, max((action.at_s for action in actions), default=0.0) + TAIL_SECONDS)
        if high < self._best.seconds and not self._try(seconds=round(high, 3)):
            high = self._best.seconds
        while high - low > 0.25 and high - low > 0.04 * high:
            middle = round((low + high) / 2, 3)
            kept = [action for action in self._best.actions if action.at_s <= middle - TAIL_SECONDS / 2]
            if self._try(seconds=middle, actions=kept):
                high = middle
            else:
                low = middle

    def _simplify(self) -> None:
        """Good weather, nothing special: whatever still fails."""
        for field, simplest in SIMPLER:
            if hasattr(self._best, field) and getattr(self._best, field) != simplest:
                self._try(**{field: simplest})
        for field in ("weather", "disks", "faults"):
            if hasattr(self._best, field):
                self._simplify_struct(field)

    def _fewer_nodes(self) -> None:
        while self._best.spares and self._try(spares=self._best.spares - 1, actions=self._reachable(-1)):
            pass
        while self._best.voters > 1 and self._try(voters=self._best.voters - 1, actions=self._reachable(-1)):
            pass

    def _simplify_struct(self, field: str) -> None:
        """Nothing of it, or one thing after the other less."""
        held = getattr(self._best, field)
        plain = type(held)()
        if self._try(**{field: plain}):
            return
        for name in held.__struct_fields__:
            held, value = getattr(self._best, field), getattr(plain, name)
            if getattr(held, name) != value:
                self._try(**{field: msgspec.structs.replace(held, **{name: value})})

    def _reachable(self, change: int) -> list[Any]:
        """The actions without those of the node that goes."""
        ids = set(self._best.node_ids[:change])
        return [action for action in self._best.actions if action.node in ids or action.node not in self._best.node_ids]

    def _keep_one_key(self) -> None:
        """A history that is wrong is mostly wrong at one key."""
        keys = sorted({key for action in self._best.actions if (key := getattr(action, "key", ""))})
        if len(keys) > 1:
            self._first(
                {"actions": [action for action in self._best.actions if getattr(action, "key", "") in ("", key)]}
                for key in keys
            )

    def _drop_groups(self) -> None:
        """Whole kinds of actions, whole clients, whatever is done to one node: the largest groups first."""
        groups: dict[tuple[str, str], int] = {}
        for action in self._best.actions:
            for name in ("kind", "client", "node"):
                if value := getattr(action, name, ""):
                    groups[name, value] = groups.get((name, value), 0) + 1
        for name, value in sorted(groups, key=lambda group: -groups[group]):
            kept = [action for action in self._best.actions if getattr(action, name, "") != value]
            if len(kept) < len(self._best.actions):
                self._try(actions=kept)

    def _drop_windows(self) -> None:
        """Ever smaller parts, down to single actions until none can go."""
        size = max(1, len(self._best.actions) // 2)
        while self._best.actions:
            dropped, start = False, 0
            while start < len(self._best.actions):
                actions = self._best.actions
                if self._first(self._without(actions, start, size)):
                    dropped = True
                    # Everything before the first difference was tried and is needed.
                    kept = self._best.actions
                    start = next((at for at, action in enumerate(kept) if action != actions[at]), len(kept))
                else:
                    break
            if size == 1 and not dropped:
                return
            size = max(1, min(size, len(self._best.actions)) // 2)

    @staticmethod
    def _without(actions: list[Any], start: int, size: int) -> Iterator[dict[str, Any]]:
        return ({"actions": actions[:at] + actions[at + size :]} for at in range(start, len(actions), size))


def _side_by_side(fails: Callable[[Any], bool], scenarios: list[Any]) -> list[bool]:
    """Every scenario but the first in a process of its own, where there is such a thing."""
    if len(scenarios) == 1 or not hasattr(os, "fork"):
        return [fails(scenario) for scenario in scenarios]
    children = [_fork(fails, scenario) for scenario in scenarios[1:]]
    found = [fails(scenarios[0])]
    for process, pipe in children:
        with open(pipe, "rb") as answer:
            said = answer.read()
        os.waitpid(process, 0)
        assert said, "a process that tried a shorter scenario ended without a word"
        found.append(said == b"1")
    return found


def _fork(fails: Callable[[Any], bool], scenario: Any) -> tuple[int, int]:
    """Process id, and the end of a pipe where it writes 1 or 0."""
    reader, writer = os.pipe()
    process = os.fork()
    if process:
        os.close(writer)
        return process, reader
    try:
        os.write(writer, b"1" if fails(scenario) else b"0")
    finally:
        os._exit(0)
