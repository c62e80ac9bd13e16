"""Hostile schedules for the engine ring, as short scenes that are played one after the other.

Faults that come at random rarely meet: a bug that needs a tail nobody else has, a leader that is gone and a purge
behind it waits for hundreds of seeds. A scene puts together what makes Raft hard, and draws everything else: who, when,
how long, how much. ``@leader`` and ``@follower`` are found when the time has come.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from raftkit_core.testing.simulation.engine_script import Action, ActionKind, Faults
from raftkit_core.testing.simulation.stage import FOLLOWER, LEADER, Stage


class EngineStage(Stage[Action]):
    """Besides what every stage has: many actions at once, and reads about when a lease ends."""

    def do(self, at: float, kind: ActionKind, node: str = "", *, count: int = 0, for_s: float = 0.0) -> None:
        pick = self.draw.randrange(1 << 30)
        self.actions.append(Action(round(self.begin + at, 4), kind, node, count, round(for_s, 4), pick))

    def some(self, times: int, begin: float, end: float, kind: ActionKind, node: str = "", *, most: int = 0) -> None:
        """``times`` of it, at any time between ``begin`` and ``end``."""
        for _ in range(times):
            self.do(self.draw.uniform(begin, end), kind, node, count=self.draw.randint(1, most) if most else 0)

    def read_at_lease_end(self, cut_at: float) -> None:
        """Reads by lease, densely, about when the lease of a leader that was cut off at ``cut_at`` ends."""
        at = cut_at + self.draw.uniform(0.36, 0.42)
        for _ in range(16):
            self.do(at, "lease_read")
            at += self.draw.uniform(0.005, 0.015)

    @property
    def minority(self) -> int:
        """How many can be cut off without harm, at least one."""
        return max(1, (len(self.ids) - 1) // 2)


def staged(draw: Random, ids: list[str], seconds: float) -> list[Action]:
    """``seconds`` of scenes: a few kinds, again and again, over a thin stream of writes and reads."""
    stage = EngineStage(draw, ids)
    kinds = draw.sample(SCENES, draw.choice((2, 3, 3, 4)))
    stage.some(int(2 * seconds), 0.3, seconds, "write", most=5)
    stage.some(int(seconds), 0.3, seconds, "read")
    stage.begin = draw.uniform(1.2, 1.8)
    return stage.play(kinds, seconds, pauses=(0.05, 0.4, 1.2))


def faults_of(draw: Random) -> Faults:
    """Wires and disks between the scenes: often good, so that a scene comes about as it was meant."""
    return Faults(
        loss=draw.choice((0.0, 0.0, 0.05, 0.15)),
        repeat=draw.choice((0.0, 0.05, 0.2)),
        delay=draw.choice((0.002, 0.005, 0.04, 0.12, 0.3)),
        disk_delay=draw.choice((0.005, 0.05, 0.15)),
        late_flush=draw.choice((0.0, 0.05)),
        late_answer=draw.choice((0.0, 0.03, 0.15)),
        machine_delay=draw.choice((0.04, 0.3, 2.0, 3.0)),
    )


# --- scenes: each gives how long it lasts -----------------------------------------------------------------------------


def _deposed(stage: EngineStage) -> float:
    """A leader loses its quorum with writes, and perhaps a change of the membership, that only its side holds; its
    successor goes on, perhaps as far as a snapshot."""
    draw = stage.draw
    lasts = draw.uniform(0.9, 2.4)
    deaf = draw.choice((0.0, 0.0, 0.05, 0.2))
    if deaf:
        stage.do(0.0, "deafen", LEADER, for_s=deaf + 0.02)  # what it sends arrives, what it is answered does not
        stage.some(2, 0.0, deaf, "write", most=9)
    elif stage.chance(0.4):
        deaf = 0.6
        stage.some(draw.randint(2, 4), 0.0, 0.5, "change")
    stage.do(deaf, "part", LEADER, count=draw.choice((1, stage.minority, stage.minority)), for_s=lasts)
    if stage.chance(0.4):
        stage.read_at_lease_end(deaf)
    stage.some(draw.randint(1, 6), deaf, deaf + 0.4, "write", most=9)
    if stage.chance(0.6):
        stage.some(draw.randint(1, 2), deaf + 0.002, deaf + 0.25, "change")
    if stage.chance(0.4):
        stage.do(deaf + draw.uniform(0.3, 0.8), "ambush_winner", for_s=2.0)
    stage.some(draw.randint(0, 2), deaf + 0.9, deaf + lasts + 0.2, "write", most=3)
    if stage.chance(0.5):
        stage.purge(deaf + draw.uniform(1.0, lasts + 0.2))
    if stage.chance(0.3):
        stage.do(deaf + lasts + draw.uniform(0.0, 0.2), "crash", draw.choice((LEADER, FOLLOWER)), for_s=0.3)
    return deaf + lasts


def _moving_sides(stage: EngineStage) -> float:
    """One partition after the other, each with the leader of its time on the lesser side."""
    draw = stage.draw
    at = 0.0
    for _ in range(draw.randint(2, 4)):
        lasts = draw.uniform(0.7, 1.5)
        stage.do(at, "part", LEADER, count=draw.randint(1, stage.minority), for_s=lasts)
        stage.some(draw.randint(1, 3), at, at + 0.4, "write", most=4)
        if stage.chance(0.3):
            stage.do(at + draw.uniform(0.0, 0.3), "change")
        if stage.chance(0.3):
            stage.read_at_lease_end(at)
        if stage.chance(0.5):
            stage.do(at + 0.2, "ambush_winner", for_s=lasts)
        if stage.chance(0.4):
            stage.some(2, at + 0.5, at + lasts, "elect", FOLLOWER)
        at += lasts + draw.choice((-0.1, 0.0, 0.15))
    return at


def _left_behind(stage: EngineStage) -> float:
    """Voters that were away come back behind a purge: they install, slowly, and are disturbed while they do."""
    draw = stage.draw
    behind = draw.sample(stage.ids, min(len(stage.ids), draw.choice((1, 1, 2))))
    if stage.chance(0.6):
        stage.some(draw.randint(1, 3), 0.0, 0.6, "change")
    lasts = draw.uniform(0.9, 2.5)
    how: ActionKind = draw.choice(("crash", "cut", "pause", "deafen"))
    begin = draw.uniform(0.2, 0.9)
    for node in behind:
        stage.do(begin + draw.uniform(0.0, 0.1), how, node, for_s=lasts)
    stage.some(draw.randint(3, 7), begin, begin + lasts, "write", most=9)
    stage.purge(begin + lasts * draw.uniform(0.6, 0.95))
    back = begin + lasts + 0.1
    if stage.chance(0.5):
        stage.do(back - 0.15, "ambush_install", for_s=3.0)
    if stage.chance(0.4):
        stage.do(
            back + draw.uniform(0.0, 0.5), "crash", draw.choice((behind[0], LEADER)), for_s=draw.uniform(0.02, 0.6)
        )
    if stage.chance(0.3):
        stage.some(2, back, back + 1.0, "elect", FOLLOWER)
    return back + draw.uniform(0.2, 1.2)


def _two_behind(stage: EngineStage) -> float:
    """Two voters come back behind a purge: one of them installs, the other hears nothing, and then the two are alone
    and the other campaigns: some time later, or just while the one installs."""
    draw = stage.draw
    one, other = draw.sample(stage.ids, 2)
    lasts = draw.uniform(0.9, 1.6)
    in_the_middle = len(stage.ids) > 4 and stage.chance(0.7)  # the others must be able to commit
    stage.do(0.0, "crash" if in_the_middle else "cut", one, for_s=lasts + 0.3)
    stage.some(1, 0.0, 0.25, "write", most=3)
    stage.do(0.3, "cut", other, for_s=lasts + (1.2 if in_the_middle else 0.6))
    stage.some(4, 0.35, 0.3 + lasts, "write", most=9)
    stage.purge(0.3 + lasts * draw.uniform(0.5, 0.8))
    if in_the_middle:
        stage.do(lasts + 0.2, "ambush_install", other, for_s=1.3)
        stage.some(10, lasts + 1.2, lasts + 3.2, "elect", other)
        return lasts + 3.2
    alone = lasts + 0.3 + draw.uniform(0.1, 0.5)
    stage.do(alone, "part", f"{one}+{other}", count=2, for_s=2.2)
    stage.some(draw.randint(2, 6), alone + 0.5, alone + 2.2, "elect", other)
    return alone + 2.2


def _one_term(stage: EngineStage) -> float:
    """Two leaders of one term: who did not hear of the first campaigns when the first is gone with what it wrote."""
    draw = stage.draw
    first, second = sorted(draw.sample(stage.ids, 2))
    stage.do(0.0, "part", LEADER, count=1, for_s=2.2)
    stage.do(0.4, "deafen", second, for_s=draw.uniform(0.25, 0.4))
    for at in (0.54, 0.6, 0.68):
        stage.do(at, "elect", first)
    stage.do(0.5, "ambush_winner", for_s=1.0)
    stage.some(6, 0.56, 0.95, "write", most=4)
    at = 0.72
    for _ in range(5):
        at += draw.uniform(0.02, 0.15)
        stage.do(at, "elect", second)
    stage.some(3, at, 2.2, "write", most=4)
    return 2.3


def _changed_and_away(stage: EngineStage) -> float:
    """A voter dies with changes of the membership in its log that it does not know to be committed, and comes back
    behind a purge."""
    draw = stage.draw
    stage.some(draw.randint(2, 4), 0.0, 0.5, "change")
    begin = draw.uniform(0.15, 0.6)
    lasts = draw.uniform(0.9, 2.0)
    for _ in range(draw.choice((1, 1, 2))):
        stage.do(begin + draw.uniform(0.0, 0.1), "crash", draw.choice((FOLLOWER, FOLLOWER, LEADER)), for_s=lasts)
    stage.some(draw.randint(3, 6), begin, begin + lasts, "write", most=9)
    stage.purge(begin + lasts * draw.uniform(0.5, 0.9))
    if stage.chance(0.3):
        stage.do(begin + lasts, "ambush_install", for_s=2.0)
    return begin + lasts + draw.uniform(0.3, 1.0)


def _duel(stage: EngineStage) -> float:
    """Nobody leads, and a few nodes campaign at nearly the same time, some of them twice, with unequal logs."""
    draw = stage.draw
    begin = 0.0
    if stage.chance(0.6):
        begin = draw.uniform(0.1, 0.4)
        stage.do(0.0, "deafen", FOLLOWER, for_s=begin + draw.choice((0.0, 0.6)))
        stage.some(3, 0.0, begin, "write", most=4)
    stage.do(begin, draw.choice(("cut", "mute", "crash")), LEADER, for_s=draw.uniform(0.9, 1.8))
    rivals = draw.sample(stage.ids, min(len(stage.ids), draw.randint(1, 3)))
    at = begin + draw.uniform(0.5, 0.75)
    for _ in range(draw.randint(3, 8)):
        stage.do(at, "elect", draw.choice(rivals))
        at += draw.choice((0.0, 0.01, 0.05, 0.15))
    if stage.chance(0.4):
        stage.do(begin + 0.4, "ambush_winner", for_s=1.5)
    stage.some(2, begin + 0.5, at + 0.3, "write", most=3)
    return at + draw.uniform(0.1, 0.5)


def _lease(stage: EngineStage) -> float:
    """A leader is cut off, or hands over, and is asked to read just when its lease ends; voters come back from a crash
    and are asked for their vote at once."""
    draw = stage.draw
    kind: ActionKind = draw.choice(("cut", "cut", "deafen", "mute", "pause", "transfer"))
    lasts = draw.uniform(0.7, 1.3)
    stage.do(0.0, kind, LEADER, for_s=lasts if kind != "pause" else draw.uniform(0.3, 0.8))
    at = 0.0 if kind == "transfer" or stage.chance(0.3) else draw.uniform(0.25, 0.42)
    for _ in range(30):
        stage.do(at, "lease_read")
        at += draw.uniform(0.004, 0.016)
    if stage.chance(0.5):
        for _ in range(draw.randint(1, 3)):
            stage.do(draw.uniform(0.0, 0.2), "crash", FOLLOWER, for_s=draw.uniform(0.02, 0.1))
        stage.some(draw.randint(2, 6), 0.1, 0.5, "elect", draw.choice((FOLLOWER, draw.choice(stage.ids))))
    if stage.chance(0.5):
        stage.some(2, 0.5, lasts, "elect", FOLLOWER)
    stage.some(1, 0.5, lasts + 0.2, "write", most=2)
    return lasts


def _hand_over(stage: EngineStage) -> float:
    """Leadership goes round, and answers to one leader come when it leads again."""
    draw = stage.draw
    at = 0.0
    for _ in range(draw.randint(3, 7)):
        stage.do(at, "transfer")
        end = at + draw.uniform(0.1, 0.5)
        stage.some(3, at, end, "read")
        stage.some(3, at, end, "lease_read")
        stage.some(1, at, end, "write", most=4)
        at = end
    if stage.chance(0.3):
        stage.do(draw.uniform(0.0, at), "ambush_winner", for_s=1.0)
    return at


SCENES: tuple[Callable[[EngineStage], float], ...] = (
    _deposed,
    _moving_sides,
    _left_behind,
    _two_behind,
    _one_term,
    _changed_and_away,
    _duel,
    _lease,
    _hand_over,
)
