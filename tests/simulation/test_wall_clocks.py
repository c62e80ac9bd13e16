"""Wall time is information only: whoever sets the date of a node changes nothing about what the cluster does."""

from __future__ import annotations

import msgspec

from raftkit_core.testing.simulation import runtime_run
from raftkit_core.testing.simulation.runtime_scenario import plan
from raftkit_core.testing.simulation.runtime_script import Action


def test_a_run_in_which_dates_are_set_is_the_same_run() -> None:
    scenario = plan(3, "swarm", seconds=6.0)
    plain = [action for action in scenario.actions if action.kind != "set_wall"]
    dates = [Action(0.2 + number * 0.7, "set_wall", f"n{1 + number % 3}", pick=number) for number in range(8)]
    set_often = sorted([*plain, *dates], key=lambda action: action.at_s)
    left, set_ = (runtime_run.run(msgspec.structs.replace(scenario, actions=actions)) for actions in (plain, set_often))
    assert left.violation is None
    assert set_.coverage["action.set_wall"] == len(dates)
    assert set_.trace_hash == left.trace_hash
