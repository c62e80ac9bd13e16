"""Where the scenes of a ring write what shall happen: the same for engines alone and for whole nodes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from random import Random
from typing import Any, Generic, Protocol, Self, TypeVar

LEADER = "@leader"
"""Stands for whoever leads when the time has come."""
FOLLOWER = "@follower"
"""Stands for somebody else."""


class Timed(Protocol):
    """An action of a script."""

    @property
    def at_s(self) -> float: ...


A = TypeVar("A", bound=Timed)


class Stage(ABC, Generic[A]):
    """Scenes are played one after the other, and each gives how long it lasts: times count from its beginning."""

    def __init__(self, draw: Random, ids: list[str]) -> None:
        self.draw = draw
        self.ids = ids
        self.begin = 0.0
        self.actions: list[A] = []

    @abstractmethod
    def do(self, at: float, kind: Any, node: str = "", *, for_s: float = 0.0) -> None:
        """One action: ``kind`` is a word of the ring's script, ``node`` an id or a name that is looked up in time."""

    def chance(self, share: float) -> bool:
        return self.draw.random() < share

    def purge(self, at: float) -> None:
        """Everybody builds a snapshot, then the leader purges behind it."""
        for node in self.ids:
            self.do(at, "snapshot", node)
        self.do(at + self.draw.uniform(0.1, 0.4), "purge", LEADER)

    def play(self, scenes: Sequence[Callable[[Self], float]], seconds: float, pauses: Sequence[float]) -> list[A]:
        """``seconds`` of ``scenes``, drawn again and again, with one of ``pauses`` behind each."""
        while self.begin < seconds:
            lasts = self.draw.choice(scenes)(self)
            self.begin += lasts + self.draw.choice(pauses)
        return [action for action in self.actions if action.at_s < seconds]
