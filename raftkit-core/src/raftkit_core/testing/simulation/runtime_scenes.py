"""Hostile schedules for whole nodes, as short scenes that are played one after the other: see ``engine_scenes``."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from raftkit_core.testing.simulation.runtime_script import Action, ActionKind
from raftkit_core.testing.simulation.stage import LEADER, Stage

CLIENTS = 8
"""Clients of the scenes, besides the others: they ask whoever leads, a few at a time."""


class RuntimeStage(Stage[Action]):
    """Besides what every stage has: writes of clients, each with a value of its own."""

    def __init__(self, draw: Random, ids: list[str]) -> None:
        super().__init__(draw, ids)
        self._values = 0

    def do(self, at: float, kind: ActionKind, node: str = "", *, for_s: float = 0.0) -> None:
        pick = self.draw.randrange(1 << 30)
        self.actions.append(Action(round(self.begin + at, 3), kind, node, round(for_s, 3), pick))

    def puts(self, times: int, begin: float, end: float) -> None:
        """So many writes at whoever takes itself for the leader."""
        for _ in range(times):
            self._values += 1
            self.actions.append(
                Action(
                    round(self.begin + self.draw.uniform(begin, end), 3),
                    "put",
                    LEADER,
                    pick=self.draw.randrange(1 << 30),
                    client=f"s{self._values % CLIENTS}",
                    key=f"k{self.draw.randint(1, 4)}",
                    value=f"s{self._values}",
                )
            )


def staged(draw: Random, ids: list[str], seconds: float) -> list[Action]:
    """``seconds`` of scenes, of one to three kinds."""
    stage = RuntimeStage(draw, ids)
    kinds = draw.sample(SCENES, draw.choice((1, 2, 2, 3)))
    stage.begin = draw.uniform(0.3, 0.8)
    return stage.play(kinds, seconds, pauses=(0.3, 0.8, 1.5))


# --- scenes: each gives how long it lasts -----------------------------------------------------------------------------


def _deposed(stage: RuntimeStage) -> float:
    """A leader loses its quorum with writes that only its side holds, whose callers wait; its successor goes on."""
    draw = stage.draw
    lasts = draw.uniform(0.9, 1.9)
    deaf = draw.choice((0.0, 0.0, 0.1, 0.25))
    if deaf:
        stage.do(0.0, "deafen", LEADER, for_s=deaf + 0.02)  # what it sends arrives, what it is answered does not
        stage.puts(2, 0.0, deaf)
    stage.do(deaf, "depose", LEADER, for_s=lasts)
    stage.puts(draw.randint(2, CLIENTS - 2), deaf + 0.005, deaf + 0.4)
    if stage.chance(0.3):
        stage.do(deaf + draw.uniform(0.0, 0.3), "swap")
    if stage.chance(0.4):
        stage.do(deaf + 0.4, "ambush_winner", for_s=1.5)
    stage.puts(draw.randint(1, 8), deaf + 0.8, deaf + lasts + 0.3)
    if stage.chance(0.5):
        stage.purge(deaf + draw.uniform(1.0, lasts))
        if stage.chance(0.5):
            stage.do(deaf + 1.0, "ambush_install", for_s=2.0)
    return deaf + lasts + 0.3


def _left_behind(stage: RuntimeStage) -> float:
    """A voter that was away comes back behind a purge, and dies while it installs."""
    draw = stage.draw
    behind = draw.choice(stage.ids)
    lasts = draw.uniform(0.8, 2.0)
    stage.do(0.0, draw.choice(("crash", "power_loss", "isolate", "pause")), behind, for_s=lasts)
    stage.puts(draw.randint(5, 16), 0.05, lasts)
    stage.purge(lasts * draw.uniform(0.5, 0.9))
    if stage.chance(0.6):
        stage.do(lasts - 0.1, "ambush_install", for_s=2.0)
    else:
        stage.do(lasts + draw.uniform(0.0, 0.4), "power_loss", behind, for_s=0.2)
    return lasts + draw.uniform(0.3, 1.0)


def _slow_side(stage: RuntimeStage) -> float:
    """A disk hangs at a voter that hears two leaders meanwhile."""
    draw = stage.draw
    victim = draw.choice(stage.ids)
    lasts = draw.uniform(0.9, 1.4)
    stage.do(0.0, "hang_disk", victim, for_s=lasts + draw.uniform(0.1, 0.8))
    stage.puts(2, 0.0, 0.1)
    stage.do(0.05, "depose", LEADER, for_s=lasts)
    stage.puts(draw.randint(2, 6), 0.06, 0.4)
    stage.puts(draw.randint(1, 4), 0.8, lasts + 0.6)
    return lasts + 0.8


SCENES: tuple[Callable[[RuntimeStage], float], ...] = (_deposed, _deposed, _left_behind, _slow_side)
