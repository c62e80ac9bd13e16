"""Wall time is information only: whoever sets the date of a node changes nothing about what the cluster does."""

from __future__ import annotations

import msgspec
import pytest

from raftkit_core.testing.simulation import faults, runtime_run
from raftkit_core.testing.simulation.report import SeedReport
from raftkit_core.testing.simulation.runtime_scenario import plan
from raftkit_core.testing.simulation.runtime_script import Action


def test_a_run_in_which_dates_are_set_is_the_same_run(monkeypatch: pytest.MonkeyPatch) -> None:
    scenario = plan(3, "swarm", seconds=4.0)
    dates = [Action(0.2 + number * 0.45, "set_wall", f"n{1 + number % 3}", pick=number) for number in range(8)]
    kept = [action for action in scenario.actions if action.kind != "set_wall"]
    actions = sorted([*kept, *dates], key=lambda action: action.at_s)

    def with_jumps(*jumps: float) -> SeedReport:
        monkeypatch.setattr(faults, "WALL_JUMPS", jumps)
        return runtime_run.run(msgspec.structs.replace(scenario, actions=actions))

    jumping, standing = with_jumps(*faults.WALL_JUMPS), with_jumps(0.0)
    assert jumping.violation is None
    assert jumping.coverage["action.set_wall"] == len(dates)
    assert jumping.trace_hash == standing.trace_hash
