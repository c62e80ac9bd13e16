"""What happens to a simulated cluster, written down before it runs: weather, disks, and every action at its time.

A scenario is drawn from a seed; while it runs, every other chance has a random stream of its own. Leaving out an action
leaves the rest as it is, so a failing scenario can be made short, saved and replayed.
"""

from __future__ import annotations

from random import Random
from typing import Any, Literal

import msgspec

from raftkit_core.config import Config, LogsSinceLast
from raftkit_core.testing.simulation.runtime_scenes import staged
from raftkit_core.testing.simulation.runtime_script import Action, Disks, Weather
from raftkit_core.testing.simulation.stage import LEADER
from raftkit_core.types.session import DEFAULT_TTL_MS


class RuntimeScenario(msgspec.Struct, frozen=True, omit_defaults=True):
    """``seconds`` of actions; then all faults end, and the cluster must recover by itself.

    ``ending`` says who is there then: everybody, or a random quorum while the others are dead for ever, can only send,
    or can only hear.
    """

    seed: int
    voters: int
    actions: list[Action]
    spares: int = 0
    seconds: float = 10.0
    profile: str = ""
    weather: Weather = Weather()
    disks: Disks = Disks()
    machine: Literal["kv", "durable-kv"] = "kv"
    config: dict[str, Any] = {}
    """Settings other than the defaults."""
    ending: Literal["all", "core_dead", "core_mute", "core_deaf"] = "all"
    patience_s: float = 1.5
    """How long a client waits for an answer before it takes the outcome for unknown."""
    session_ttl_ms: int = DEFAULT_TTL_MS
    """Of the sessions of clients, four of which share one."""
    ends_early: bool = False
    """When the faults have ended it is over: nothing has to recover."""
    quiet: bool = False
    """After the faults no client writes anything until all members hold the same."""

    @property
    def node_ids(self) -> list[str]:
        return [f"n{number}" for number in range(1, self.voters + self.spares + 1)]

    def make_config(self) -> Config:
        settings = {"snapshot_policy": LogsSinceLast(40), "max_in_snapshot_log_to_keep": 5, "purge_batch_size": 1}
        keep = dict(self.config)
        every = keep.pop("snapshot_every", None)
        if every is not None:
            settings["snapshot_policy"] = LogsSinceLast(every)
        return Config(**{**settings, **keep})


PROFILES = ("mixed", "swarm", "staged", "network", "disk", "members", "calm", "bursts")
"""``swarm`` leaves out half of the kinds of faults and draws the rates of the others; ``staged`` plays scenes that make
Raft hard (runtime_scenes.py); ``mixed`` takes turns; so does ``bursts``, where frames come several at a time."""

_TURNS = ("swarm", "staged", "network", "staged", "disk", "staged", "swarm", "staged", "members")
_BURST_TURNS = ("swarm", "network", "staged", "swarm", "members", "disk")
_OPERATIONS: dict[str, float] = {"put": 8.0, "put_once": 3.0, "get": 8.0, "lease_get": 2.0, "cas": 4.0, "delete": 1.0}
"""A second, over all clients."""
ABANDONED = 0.1
"""How often a second a client leaves its session."""
_NETWORK = {"partition": 0.15, "isolate": 0.1, "cut": 0.2, "hold": 0.15, "flap": 0.05, "storm": 0.1}
_PROCESS = {"crash": 0.25, "power_loss": 0.1, "pause": 0.12}
_DISK = {"slow_disk": 0.15, "hang_disk": 0.08, "full_disk": 0.04, "failing_disk": 0.05, "rot": 0.02, "wipe": 0.02}
_CALLS = {"transfer": 0.12, "elect": 0.05, "snapshot": 0.1, "purge": 0.05}
_MEMBERS = {"add": 0.12, "remove": 0.08, "swap": 0.1}
_ALL = {**_NETWORK, **_PROCESS, **_DISK, **_CALLS, **_MEMBERS}
_RATES: dict[str, dict[str, float]] = {
    "network": {**_NETWORK, "crash": 0.05, **_CALLS},
    "disk": {**_DISK, **_PROCESS, "crash": 0.4, "snapshot": 0.2, "cut": 0.05},
    "members": {**_MEMBERS, "add": 0.3, "remove": 0.2, "swap": 0.3, "crash": 0.1, "cut": 0.1, "transfer": 0.2},
    "calm": {},
    "staged": {},
}


def plan(seed: int, profile: str = "mixed", *, seconds: float = 10.0) -> RuntimeScenario:
    """The scenario of ``seed``."""
    draw = Random(f"runtime plan {profile} {seed}")
    turns = _BURST_TURNS if profile == "bursts" else _TURNS
    kind = turns[seed % len(turns)] if profile in ("mixed", "bursts") else profile
    voters = draw.choice((3, 3, 4, 5)) if kind != "calm" else 5
    spares = draw.randint(0, 2) if kind in ("swarm", "members") else 0
    ids = [f"n{number}" for number in range(1, voters + spares + 1)]
    actions, weather, disks = plan_faults(draw, kind, ids, seconds)
    if profile == "bursts":
        weather = msgspec.structs.replace(weather, bursts=draw.choice((0.2, 0.6, 0.9)))
    if kind == "staged":
        voters = draw.choice((3, 4, 5, 5, 5))
        ids = [f"n{number}" for number in range(1, voters + spares + 1)]
        actions += staged(draw, ids, seconds)
    actions += _operations(draw, seconds, busy=draw.choice((1.0, 2.0, 2.5)))
    session_ttl_ms, abandoned = _sessions(Random(f"runtime sessions {profile} {seed}"), actions, seconds)
    actions += abandoned
    actions += _wall_jumps(Random(f"runtime wall clocks {profile} {seed}"), ids, seconds)
    actions.sort(key=lambda action: action.at_s)
    config: dict[str, Any] = {
        "single_term_leader": draw.random() < 0.25,
        "pre_vote": draw.random() < 0.8,
        "snapshot_every": draw.choice((15, 40, 40, 200)),
        "max_in_snapshot_log_to_keep": draw.choice((0, 0, 5, 50)),
        "max_payload_entries": draw.choice((1, 7, 4096)),
        "max_inflight": draw.choice((1, 4, 16)),
    }
    endings: list[Any] = ["all", "all", "all", "core_dead", "core_mute"]
    if config["pre_vote"]:
        endings.append("core_deaf")
    return RuntimeScenario(
        seed=seed,
        voters=voters,
        spares=spares,
        actions=actions,
        seconds=seconds,
        profile=profile,
        weather=weather,
        disks=disks,
        machine="durable-kv" if draw.random() < 0.25 else "kv",
        config=config,
        ending=draw.choice(endings) if kind != "members" else "all",
        patience_s=draw.choice((0.4, 0.8, 1.5) if kind != "staged" else (1.5, 3.0, 5.0)),
        session_ttl_ms=session_ttl_ms,
        quiet=draw.random() < 0.5,
    )


def plan_faults(draw: Random, kind: str, ids: list[str], seconds: float) -> tuple[list[Action], Weather, Disks]:
    """Faults of a profile, in order, and the weather and disks between them."""
    if kind == "swarm":
        rates = {name: rate * draw.choice((0.3, 0.6, 1.2)) for name, rate in _ALL.items() if draw.random() < 0.5}
    else:
        rates = _RATES[kind]
    weather = _some_weather(draw) if kind in ("swarm", "network") else Weather()
    disks = Disks() if kind == "calm" else _some_disks(draw)
    bad = _bad_times(draw, seconds)
    actions = [
        _fault(draw, name, ids, bad) for name, rate in rates.items() for _ in range(_count(draw, rate * seconds))
    ]
    return sorted(actions, key=lambda action: action.at_s), weather, disks


def _count(draw: Random, expected: float) -> int:
    """A whole number that is ``expected`` on average, and sometimes far from it."""
    return int(draw.uniform(0.5, 1.5) * expected + draw.random())


def _some_weather(draw: Random) -> Weather:
    def some(*values: float) -> float:
        return 0.0 if draw.random() < 0.5 else draw.choice(values)

    slow = draw.choice((0.003, 0.003, 0.02, 0.05))
    return Weather(
        latency=(0.0005, slow),
        tail=some(0.005, 0.03),
        loss=some(0.01, 0.05, 0.15),
        answer_loss=some(0.02, 0.1, 0.3),
        duplicate=some(0.02, 0.2),
        reorder=some(0.05, 0.3),
        corrupt=some(0.002, 0.01),
        resets=some(0.002, 0.02),
    )


def _some_disks(draw: Random) -> Disks:
    return Disks(
        at_once=draw.choice((0.0, 0.5, 0.9)),
        latency=(0.0002, draw.choice((0.002, 0.01, 0.03, 0.1))),
        atomic=draw.random() < 0.5,
    )


def _bad_times(draw: Random, seconds: float) -> list[tuple[float, float]]:
    """When faults begin; in between there are quiet times, so that something can go right before it goes wrong."""
    found = []
    at = draw.uniform(0.1, 0.5)
    while at < seconds:
        end = min(at + draw.uniform(0.5, 5.0), seconds)
        found.append((at, end))
        at = end + draw.uniform(0.5, 3.0)
    return found or [(0.0, seconds)]


def _moment(draw: Random, bad: list[tuple[float, float]]) -> float:
    left = draw.uniform(0.0, sum(end - begin for begin, end in bad))
    for begin, end in bad:
        if left <= end - begin:
            return begin + left
        left -= end - begin
    return bad[-1][1]


def _fault(draw: Random, kind: Any, ids: list[str], bad: list[tuple[float, float]]) -> Action:
    node = LEADER if draw.random() < 0.35 else draw.choice(ids)
    scale = draw.choice((0.15, 0.6, 1.5, 4.0))  # tenths of an election timeout, up to several
    for_s = round(draw.uniform(0.3, 1.5) * scale, 3)
    return Action(round(_moment(draw, bad), 3), kind, node, for_s, draw.randrange(1 << 30))


def _operations(draw: Random, seconds: float, busy: float) -> list[Action]:
    """Every client does one thing at a time; each value is written once, so that who reads it knows which write it
    was."""
    clients = [f"c{number}" for number in range(1, draw.randint(6, 14) + 1)]
    keys = [f"k{number}" for number in range(1, draw.randint(4, 10) + 1)]
    found = []
    number = 0
    for kind, rate in _OPERATIONS.items():
        for _ in range(int(rate * busy * seconds)):
            number += 1
            found.append(
                Action(
                    round(draw.uniform(0.1, seconds), 3),
                    kind,  # type: ignore[arg-type]
                    client=draw.choice(clients),
                    key=draw.choice(keys),
                    value=f"v{number}" if kind in ("put", "put_once", "cas") else "",
                    pick=draw.randrange(1 << 30),
                )
            )
    return found


def _wall_jumps(draw: Random, ids: list[str], seconds: float) -> list[Action]:
    """Dates that are set, by hours and by years. (Chance of its own: nothing else may change by it.)"""
    return [
        Action(round(draw.uniform(0.1, seconds), 3), "set_wall", draw.choice(ids), pick=draw.randrange(1 << 30))
        for _ in range(draw.choice((0, 1, 2)))
    ]


def _sessions(draw: Random, actions: list[Action], seconds: float) -> tuple[int, list[Action]]:
    """How long sessions live, and when clients leave one for another. (Chance of its own.)"""
    clients = sorted({action.client for action in actions if action.client})
    return draw.choice((1000, 1000, 1000, 2000, DEFAULT_TTL_MS)), [
        Action(round(draw.uniform(0.1, seconds), 3), "abandon", client=client, pick=draw.randrange(1 << 30))
        for client in clients
        for _ in range(_count(draw, ABANDONED * seconds))
    ]
