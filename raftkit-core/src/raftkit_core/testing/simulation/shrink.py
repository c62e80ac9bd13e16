"""Making a failing scenario short: delta debugging of its actions, then fewer nodes and a simpler ending.

A shorter scenario counts if it is violated at all, by the same check or another: what is wanted is a short way to
something that is wrong.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import msgspec


class Shrunk(msgspec.Struct):
    """The shortest scenario found, how many runs that took, and whether time was left."""

    scenario: Any
    runs: int
    is_finished: bool


def shrink(scenario: Any, fails: Callable[[Any], bool], *, seconds: float = 60.0) -> Shrunk:
    """A shorter scenario that still ``fails``, within so many seconds of real time."""
    return _Shrinking(fails, time.monotonic() + seconds).shrink(scenario)


class _OutOfTime(Exception):
    pass


class _Shrinking:
    def __init__(self, fails: Callable[[Any], bool], deadline: float) -> None:
        self._fails = fails
        self._deadline = deadline
        self._runs = 0
        self._best: Any = None

    def shrink(self, scenario: Any) -> Shrunk:
        self._best = scenario
        try:
            before = None
            while before != self._best:
                before = self._best
                self._simplify()
                self._drop_actions()
        except _OutOfTime:
            return Shrunk(self._best, self._runs, False)
        return Shrunk(self._best, self._runs, True)

    def _try(self, **changes: Any) -> bool:
        if time.monotonic() > self._deadline:
            raise _OutOfTime
        self._runs += 1
        shorter = msgspec.structs.replace(self._best, **changes)
        if shorter == self._best or not self._fails(shorter):
            return False
        self._best = shorter
        return True

    def _simplify(self) -> None:
        """Fewer nodes, everybody there at the end, an earlier end: whatever still fails."""
        while self._best.spares and self._try(spares=self._best.spares - 1, actions=self._reachable(-1)):
            pass
        while self._best.voters > 1 and self._try(voters=self._best.voters - 1, actions=self._reachable(-1)):
            pass
        if self._best.ending != "all":
            self._try(ending="all")
        last = max((action.at_s for action in self._best.actions), default=0.0)
        if last + 1.0 < self._best.seconds:
            self._try(seconds=round(last + 0.5, 3))

    def _reachable(self, change: int) -> list[Any]:
        """The actions without those of the node that goes."""
        ids = set(self._best.node_ids[:change])
        return [action for action in self._best.actions if action.node in ids or action.node not in self._best.node_ids]

    def _drop_actions(self) -> None:
        """Zeller's ddmin: leave out ever smaller parts."""
        parts = 2
        while self._best.actions and parts <= 2 * len(self._best.actions):
            actions = self._best.actions
            size = max(1, len(actions) // parts)
            dropped = False
            start = 0
            while start < len(self._best.actions):
                kept = self._best.actions[:start] + self._best.actions[start + size :]
                if self._try(actions=kept):
                    dropped = True
                else:
                    start += size
            if size == 1 and not dropped:
                return
            parts = max(2, parts // 2) if dropped and size > 1 else parts * 2
