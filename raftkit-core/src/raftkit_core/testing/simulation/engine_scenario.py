"""What happens to a ring of engines, written down: how bad wires and disks are, and every action at its time.

A scenario is drawn from a seed *before* it runs, and everything else in the run has its own random streams: leaving out
an action leaves the rest as it is. So a failing one can be made short, saved and replayed.
"""

from __future__ import annotations

import random
from typing import Any, Literal

import msgspec

from raftkit_core.testing.simulation.engine_scenes import faults_of, staged
from raftkit_core.testing.simulation.engine_script import Action, ActionKind, Faults
from raftkit_core.testing.simulation.stage import LEADER


class EngineScenario(msgspec.Struct, frozen=True):
    """A run of the engine ring: ``seconds`` of actions, then the faults end and the cluster must recover by itself.

    ``ending`` says who is there then: everybody, or only a quorum while the others are dead for ever, can send but not
    hear, or hear but not send.
    """

    seed: int
    voters: int
    spares: int
    actions: list[Action]
    seconds: float = 15.0
    faults: Faults = Faults()
    single_term: bool = False
    pre_vote: bool = True
    clock_drift: float = 0.0
    """Clocks run up to this much slow or fast."""
    clock_extremes: bool = False
    """Every clock runs exactly so much slow or fast."""
    ending: Literal["all", "core_dead", "core_mute", "core_deaf"] = "all"
    in_step: bool = False
    """All clocks tick at the same instant."""
    logs_to_keep: int = 4
    snapshot_every: int = 25
    purge_at_end: bool = False
    """The last leader purges everything before the recovery: behind an empty log peers must still be found."""
    profile: str = ""
    ends_early: bool = False
    """It is over with the last action: nothing has to recover."""

    @property
    def node_ids(self) -> list[str]:
        return [f"n{number}" for number in range(1, self.voters + self.spares + 1)]


_RATES: dict[str, dict[str, float]] = {
    # per second and node, but for what goes to whoever leads: per second
    "mild": {
        "write": 6.0, "read": 0.5, "lease_read": 0.5, "change": 0.15, "transfer": 0.1, "elect": 0.02, "snapshot": 0.02,
        "purge": 0.02, "crash": 0.1, "pause": 0.03, "cut": 0.06, "mute": 0.02, "deafen": 0.02, "part": 0.05,
    },
    "harsh": {
        "write": 6.0, "read": 1.0, "lease_read": 1.0, "change": 1.0, "transfer": 0.4, "elect": 0.1, "snapshot": 0.1,
        "purge": 0.1, "crash": 0.4, "pause": 0.1, "cut": 0.15, "mute": 0.1, "deafen": 0.1, "part": 0.15,
    },
    "lag": {
        "write": 8.0, "read": 0.3, "lease_read": 0.3, "change": 0.1, "transfer": 0.2, "elect": 0.05, "snapshot": 0.3,
        "purge": 0.3, "crash": 0.3, "pause": 0.1, "cut": 0.4, "mute": 0.05, "deafen": 0.1, "part": 0.1,
    },
    "members": {
        "write": 3.0, "read": 0.3, "lease_read": 0.3, "change": 4.0, "transfer": 0.3, "elect": 0.1, "snapshot": 0.1,
        "purge": 0.1, "crash": 0.3, "pause": 0.05, "cut": 0.2, "mute": 0.05, "deafen": 0.05, "part": 0.2,
    },
    "quiet": {
        "write": 0.3, "read": 1.0, "lease_read": 4.0, "change": 0.05, "transfer": 0.3, "elect": 0.2, "snapshot": 0.02,
        "purge": 0.02, "crash": 0.5, "pause": 0.15, "cut": 0.4, "mute": 0.3, "deafen": 0.3, "part": 0.2,
    },
    "storm": {
        "write": 1.5, "read": 1.0, "lease_read": 0.5, "change": 0.3, "transfer": 0.5, "elect": 0.8, "snapshot": 0.05,
        "purge": 0.05, "crash": 0.4, "pause": 0.15, "cut": 0.3, "mute": 0.3, "deafen": 0.3, "part": 0.5,
    },
}  # fmt: skip
_FAULTS = {
    "mild": Faults(),
    "harsh": Faults(loss=0.15, repeat=0.15, delay=0.12, disk_delay=0.15, late_flush=0.05, machine_delay=0.6),
    "lag": Faults(loss=0.05, repeat=0.1, machine_delay=3.0, disk_delay=0.1),
    "members": Faults(),
    "quiet": Faults(loss=0.1, repeat=0.1, delay=0.25, late_answer=0.05),
    "storm": Faults(loss=0.15, repeat=0.3, delay=0.3, disk_delay=0.05, late_answer=0.05, machine_delay=0.3),
}
_OF_THE_LEADER = {"write", "read", "lease_read", "change", "transfer"}
PROFILES = ("mild", "harsh", "swarm", "storm", "lag", "members", "quiet", "staged", "mixed")
"""``staged`` plays scenes that make Raft hard (engine_scenes.py); the others take every fault at random: ``lag`` has
nodes that fall behind and slow machines, ``quiet`` clocks and leases and hardly a write, ``storm`` one campaign after
the other; ``swarm`` leaves out half of the kinds of faults and draws the rates of the others; ``mixed`` takes turns."""
_TURNS = (
    "staged", "harsh", "staged", "lag", "staged", "storm", "staged", "members",
    "staged", "quiet", "staged", "swarm", "staged", "swarm", "staged", "mild",
)  # fmt: skip


def plan(seed: int, profile: str = "mixed", *, seconds: float = 15.0) -> EngineScenario:
    """The scenario of ``seed``: one to five voters, sometimes with a spare; a quarter in single-term mode."""
    draw = random.Random(f"plan {profile} {seed}")
    kind = _TURNS[seed % len(_TURNS)] if profile == "mixed" else profile
    rates: dict[str, float] = {}
    if kind == "swarm":
        rates, faults = _swarm(draw)
    elif kind == "staged":
        faults = faults_of(draw)
    else:
        rates, faults = _RATES[kind], _FAULTS[kind]
        if kind == "quiet" and draw.random() < 0.5:
            faults = msgspec.structs.replace(faults, delay=0.005)
    voters, spares = draw.choice((1, 2, 3, 3, 3, 3, 4, 4, 5, 5, 5)), draw.randint(0, 1)
    if kind == "staged":
        voters = draw.choice((2, 3, 3, 3, 4, 5, 5, 5))
    ids = [f"n{number}" for number in range(1, voters + spares + 1)]
    actions = [
        _action(draw, name, ids, seconds)  # type: ignore[arg-type]
        for name, rate in rates.items()
        for _ in range(_count(draw, rate * seconds * (1 if name in _OF_THE_LEADER else len(ids))))
    ]
    if kind == "staged":
        actions = staged(draw, ids, seconds)
    actions.sort(key=lambda action: action.at_s)
    pre_vote = draw.random() < {"storm": 0.3, "staged": 0.4}.get(kind, 0.7)
    in_step = draw.random() < (0.25 if kind == "staged" else 0.35)
    endings: list[Any] = ["all", "all", "core_dead", "core_mute"]
    if pre_vote:
        # Without it a node that only sends, and holds the longest log, can win every voter and never learn of it.
        endings.append("core_deaf")
    return EngineScenario(
        seed=seed,
        voters=voters,
        spares=spares,
        actions=actions,
        seconds=seconds,
        faults=faults,
        single_term=draw.random() < (0.45 if kind == "staged" else 0.3),
        pre_vote=pre_vote,
        clock_drift=0.0 if in_step else draw.choice((0.045 if kind == "staged" else 0.0, 0.02, 0.045, 0.045)),
        ending=draw.choice(endings),
        clock_extremes=kind == "quiet" or (kind == "staged" and draw.random() < 0.8),
        in_step=in_step,
        snapshot_every=draw.choice((8, 25, 25)),
        logs_to_keep=draw.choice((0, 4, 4)),
        purge_at_end=draw.random() < 0.4,
        profile=profile,
    )


def _swarm(draw: random.Random) -> tuple[dict[str, float], Faults]:
    """Uniform rates hide bugs: half of everything is absent, the rest is rare, usual or frequent."""
    rates = {}
    for name, rate in _RATES["harsh"].items():
        if name == "write" or draw.random() < 0.5:
            rates[name] = rate * draw.choice((0.3, 1.0, 1.0, 3.0))

    def some(*values: float) -> float:
        return 0.0 if draw.random() < 0.5 else draw.choice(values)

    faults = Faults(
        loss=some(0.05, 0.15, 0.3),
        repeat=some(0.05, 0.2),
        delay=draw.choice((0.01, 0.04, 0.12, 0.3)),
        disk_delay=draw.choice((0.01, 0.05, 0.15, 0.4)),
        late_flush=some(0.05, 0.2),
        late_answer=some(0.02, 0.1),
        machine_delay=draw.choice((0.04, 0.3, 2.0)),
    )
    return rates, faults


def _count(draw: random.Random, expected: float) -> int:
    """A whole number that is ``expected`` on average, and sometimes far from it."""
    return int(draw.uniform(0.5, 1.5) * expected + draw.random())


def _action(draw: random.Random, kind: ActionKind, ids: list[str], seconds: float) -> Action:
    at_s = round(draw.uniform(0.3, seconds), 4)
    node, pick = LEADER if draw.random() < 0.3 else draw.choice(ids), draw.randrange(1 << 30)
    match kind:
        case "write":
            return Action(at_s, kind, count=draw.randint(1, 9))
        case "read" | "lease_read" | "transfer" | "change":
            return Action(at_s, kind, pick=pick)
        case "elect" | "snapshot":
            return Action(at_s, kind, node)
        case "purge":
            return Action(at_s, kind, node, pick=pick)
        case "crash":
            longest = draw.choice((0.2, 0.6, 1.5, 1.5))
            return Action(at_s, kind, node, for_s=round(draw.uniform(0.02, longest), 4), pick=pick)
        case "part":
            return Action(at_s, kind, for_s=round(draw.uniform(0.3, 2.5), 4), pick=pick)
        case _:
            return Action(at_s, kind, node, for_s=round(draw.uniform(0.1, draw.choice((0.6, 1.2, 2.5))), 4))
