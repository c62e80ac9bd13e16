"""The two rings under one roof: how a scenario is drawn and run, and what must have happened in a run that proves
something."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import msgspec

from raftkit_core.testing.simulation import engine_run, engine_scenario, runtime_run, runtime_scenario
from raftkit_core.testing.simulation.report import SeedReport


class Plan(Protocol):
    def __call__(self, seed: int, profile: str = "mixed", *, seconds: float = 10.0) -> Any: ...


class Ring:
    """``seconds`` is how long a seed lasts unless said otherwise; ``important``, what must happen at least once in
    ``judged_from`` seeds or more."""

    def __init__(
        self,
        name: str,
        plan: Plan,
        run: Callable[[Any], SeedReport],
        scenario: type[msgspec.Struct],
        profiles: tuple[str, ...],
        seconds: float,
        judged_from: int,
        important: tuple[str, ...],
    ) -> None:
        self.name = name
        self.plan = plan
        self.run = run
        self.scenario = scenario
        self.profiles = profiles
        self.seconds = seconds
        self.judged_from = judged_from
        self.important = important

    def missing(self, coverage: dict[str, int]) -> list[str]:
        """What should have happened and did not."""
        return [name for name in self.important if not coverage.get(name)]


_IMPORTANT_IN_THE_ENGINE_RING = (
    "election won",
    "election timed out",
    "two leaders at a time",
    "leader stepped down",
    "leader removed",
    "vote refused by lease",
    "vote refused by log",
    "vote refused by vote",
    "pre-vote refused by lease",
    "pre-vote refused by log",
    "truncation",
    "membership reverted",
    "joint entered",
    "uniform membership applied",
    "log conflict",
    "higher vote",
    "answered busy",
    "answer lost after a durable write",
    "answer after its caller gave up",
    "flush reported late",
    "crash of the leader",
    "crash lost unflushed writes",
    "snapshot built",
    "snapshot installed",
    "snapshot over a shorter log",
    "snapshot over a conflicting tail",
    "purge",
    "purge of everything",
    "hand-over asked for",
    "read confirmed",
    "read by lease",
    "read refused",
    "pause",
    "partition",
    "one-way cut",
    "recovered: all",
    "recovered: core_dead",
    "recovered: core_mute",
    "recovered: core_deaf",
)
_IMPORTANT_IN_THE_RUNTIME_RING = (
    "election.won",
    "election.asked",
    "election.transfer",
    "prevote.asked",
    "vote.granted",
    "vote.rejected_by_lease",
    "vote.rejected_by_log",
    "vote.rejected_by_vote",
    "append.conflict",
    "append.highervote",
    "log.truncated",
    "log.purged",
    "log.purged_to_the_tip",
    "disk.unsynced_lost",
    "fatal.StorageError",
    "fatal.StorageFull",
    "membership.joint",
    "membership.joint_left",
    "members.added",
    "members.promoted",
    "members.removed",
    "members.swapped",
    "snapshot.sent",
    "snapshot.installed",
    "snapshot.beyond_the_log",
    "net.answer_lost",
    "net.answer_cut",
    "net.lost",
    "net.cut",
    "net.duplicate",
    "net.reorder",
    "net.corrupt",
    "net.held",
    "net.reset",
    "client.ok",
    "client.unknown",
    "client.not_applied",
    "session.ok",
    "session.retried",
    "session.duplicate",
    "session.expired",
    "session.forged",
    "session.abandoned_late",
    "healed",
    "action.crash",
    "action.power_loss",
    "action.pause",
    "action.partition",
    "action.hang_disk",
    "action.set_wall",
)
"""Each of these happens more than fifty times in 60 seeds of a simulated minute."""
RINGS: dict[str, Ring] = {
    "engine": Ring(
        "engine",
        engine_scenario.plan,
        engine_run.run,
        engine_scenario.EngineScenario,
        engine_scenario.PROFILES,
        15.0,
        100,
        _IMPORTANT_IN_THE_ENGINE_RING,
    ),
    "runtime": Ring(
        "runtime",
        runtime_scenario.plan,
        runtime_run.run,
        runtime_scenario.RuntimeScenario,
        runtime_scenario.PROFILES,
        10.0,
        60,
        _IMPORTANT_IN_THE_RUNTIME_RING,
    ),
}
