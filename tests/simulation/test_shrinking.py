"""A failing scenario is made short, written down, and fails again."""

from __future__ import annotations

import msgspec
import pytest

from raftkit_core.testing.simulation.engine_scenario import Action, EngineScenario, plan
from raftkit_core.testing.simulation.replaying import pytest_file, replay, run_one, to_text
from raftkit_core.testing.simulation.rings import RINGS
from raftkit_core.testing.simulation.shrink import shrink
from raftkit_core.testing.simulation.worker import Job, carry_out


def scenario(*kinds: str) -> EngineScenario:
    actions = [Action(float(number), kind, "n1", pick=number) for number, kind in enumerate(kinds)]  # type: ignore[arg-type]
    return EngineScenario(1, 3, 1, actions, seconds=60.0, ending="core_dead")


def test_only_what_is_needed_is_left() -> None:
    given = scenario(*(["write"] * 20), "crash", *(["cut"] * 20), "purge", "pause")

    def fails(shorter: EngineScenario) -> bool:
        kinds = [action.kind for action in shorter.actions]
        return "crash" in kinds and "purge" in kinds and kinds.index("crash") < kinds.index("purge")

    shrunk = shrink(given, fails)
    assert [action.kind for action in shrunk.scenario.actions] == ["crash", "purge"]
    assert (shrunk.scenario.voters, shrunk.scenario.spares, shrunk.scenario.ending) == (1, 0, "all")
    assert shrunk.scenario.seconds < 60
    assert shrunk.is_finished
    assert shrunk.runs < 100


def test_actions_of_a_node_that_goes_go_with_it() -> None:
    given = msgspec.structs.replace(scenario("crash"), actions=[Action(1.0, "crash", "n4"), Action(2.0, "write")])
    shrunk = shrink(given, lambda shorter: any(action.kind == "write" for action in shorter.actions))
    assert shrunk.scenario.spares == 0
    assert [action.kind for action in shrunk.scenario.actions] == ["write"]


def test_without_time_the_best_so_far_is_given() -> None:
    shrunk = shrink(scenario("write", "write"), lambda shorter: True, seconds=-1)
    assert (len(shrunk.scenario.actions), shrunk.is_finished, shrunk.runs) == (2, False, 0)


@pytest.mark.parametrize("ring", sorted(RINGS))
def test_a_scenario_is_text_and_back(ring: str) -> None:
    given = RINGS[ring].plan(5, seconds=2.0)
    text = to_text(given)
    assert msgspec.json.decode(text, type=RINGS[ring].scenario) == given
    assert replay(ring, text).trace_hash == run_one(ring, given).trace_hash


def test_the_saved_test_fails_with_the_bug_and_names_what_is_wrong() -> None:
    done = carry_out(Job(1, "engine", 0, seconds=3.0, mutant="commit-minus-one", shrink_s=20.0, command="raftkit sim"))
    assert done.report.violation is not None
    assert done.script_actions <= 25
    space: dict[str, object] = {}
    exec(compile(done.script, "test_saved.py", "exec"), space)
    (test,) = (value for name, value in space.items() if name.startswith("test_"))
    with pytest.raises(AssertionError, match="S5 at"):
        test()  # type: ignore[operator]


def test_a_correct_scenario_is_neither_shortened_nor_saved() -> None:
    done = carry_out(Job(1, "engine", 3, seconds=2.0, shrink_s=20.0))
    assert (done.report.violation, done.script) == (None, "")


def test_whatever_a_message_holds_the_file_is_python() -> None:
    from raftkit_core.testing.simulation.report import Violation

    text = pytest_file("engine", plan(1, seconds=1.0), Violation("S1", 'S1 """ \\ x'), "raftkit sim --seed 1", None)
    compile(text, "test_saved.py", "exec")
