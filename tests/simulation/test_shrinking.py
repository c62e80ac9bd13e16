"""A failing scenario is made short, written down, and fails again."""

from __future__ import annotations

import os

import msgspec
import pytest

from raftkit_core.testing.simulation import worker
from raftkit_core.testing.simulation.engine_scenario import EngineScenario, plan
from raftkit_core.testing.simulation.engine_script import Action
from raftkit_core.testing.simulation.mutants.score import load
from raftkit_core.testing.simulation.replaying import pytest_file, replay, run_one, to_text
from raftkit_core.testing.simulation.report import SeedReport, Violation
from raftkit_core.testing.simulation.rings import RINGS
from raftkit_core.testing.simulation.runtime_scenario import RuntimeScenario
from raftkit_core.testing.simulation.runtime_script import Disks, Weather
from raftkit_core.testing.simulation.shrink import shrink
from raftkit_core.testing.simulation.stage import LEADER
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


def test_settings_that_are_not_needed_go() -> None:
    given = RINGS["runtime"].plan(1, "swarm", seconds=3.0)
    given = msgspec.structs.replace(given, weather=msgspec.structs.replace(given.weather, loss=0.1, tail=0.03))

    def fails(shorter: RuntimeScenario) -> bool:
        return shorter.weather.loss > 0 and any(action.key == "k1" for action in shorter.actions)

    shrunk = shrink(given, fails).scenario
    assert [action.key for action in shrunk.actions] == ["k1"]
    assert shrunk.weather == Weather(loss=0.1)
    assert (shrunk.disks, shrunk.config, shrunk.ends_early) == (Disks(), {}, True)
    assert shrunk.seconds < 1.5


def test_nothing_is_run_twice_and_no_more_than_allowed() -> None:
    tried: list[bytes] = []

    def fails(shorter: EngineScenario) -> bool:
        tried.append(msgspec.json.encode(shorter))
        return any(action.kind == "crash" for action in shorter.actions)

    shrunk = shrink(scenario(*(["write"] * 30), "crash"), fails)
    assert len(tried) == len(set(tried)) == shrunk.runs
    few = shrink(scenario(*(["write"] * 30), "crash"), fails, runs=5)
    assert (few.runs, few.is_finished) == (5, False)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork(): candidates are tried one by one")
@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
def test_two_at_a_time_find_the_same() -> None:
    def fails(shorter: EngineScenario) -> bool:
        kinds = [action.kind for action in shorter.actions]
        return "crash" in kinds and "pause" in kinds

    given = scenario(*(["write"] * 9), "crash", *(["cut"] * 9), "pause")
    assert shrink(given, fails, width=2).scenario == shrink(given, fails).scenario


@pytest.mark.parametrize(
    ("ring", "mutant"),
    [
        ("engine", "commit-minus-one"),
        ("engine", "grant-every-vote"),
        ("runtime", "vote-left-out-of-the-batch"),
        ("runtime", "answered-when-appended"),
    ],
)
def test_real_failures_become_short_in_few_runs_and_are_the_bugs_own(ring: str, mutant: str) -> None:
    record = load()[mutant]
    given = RINGS[ring].plan(record.kills[0].seed, record.profile, seconds=RINGS[ring].seconds)
    shrunk = shrink(given, lambda shorter: run_one(ring, shorter, mutant).violation is not None, seconds=60, runs=80)
    assert len(shrunk.scenario.actions) <= 5
    assert run_one(ring, shrunk.scenario, mutant).violation is not None
    assert run_one(ring, shrunk.scenario).violation is None


@pytest.mark.parametrize("ring", sorted(RINGS))
def test_a_single_node_and_an_early_end_are_no_violation(ring: str) -> None:
    """Whatever a shrinker may make of a scenario must run."""
    given = RINGS[ring].plan(0, seconds=3.0)
    left = [action for action in given.actions if action.node in ("", "n1", LEADER)]
    alone = msgspec.structs.replace(given, voters=1, spares=0, actions=left, ends_early=True)
    assert run_one(ring, alone).violation is None
    assert run_one(ring, msgspec.structs.replace(given, actions=[], ends_early=True)).violation is None


@pytest.mark.parametrize("ring", sorted(RINGS))
def test_the_saved_test_fails_with_the_bug_and_names_what_is_wrong(ring: str) -> None:
    mutant = {"engine": "commit-minus-one", "runtime": "vote-left-out-of-the-batch"}[ring]
    seed = load()[mutant].kills[0].seed
    done = carry_out(Job(1, ring, seed, seconds=3.0, mutant=mutant, shrink_s=20.0, command="raftkit sim"))
    assert done.report.violation is not None
    assert done.script_actions <= 25
    space: dict[str, object] = {}
    exec(compile(done.script, "test_saved.py", "exec"), space)
    (test,) = (value for name, value in space.items() if name.startswith("test_"))
    with pytest.raises(AssertionError, match=r"S\d+ at"):
        test()  # type: ignore[operator]
    space = {}
    exec(compile(done.script.replace(f', mutant="{mutant}"', ""), "test_saved.py", "exec"), space)
    (test,) = (value for name, value in space.items() if name.startswith("test_"))
    test()  # type: ignore[operator]


def test_a_correct_scenario_is_neither_shortened_nor_saved() -> None:
    done = carry_out(Job(1, "engine", 3, seconds=2.0, shrink_s=20.0))
    assert (done.report.violation, done.script) == (None, "")


def test_one_failure_is_not_made_short_into_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lost write whose scenario, once shortened, merely finds no leader any more."""

    def judged(ring: str, scenario: EngineScenario, mutant: str | None = None) -> SeedReport:
        kinds = [action.kind for action in scenario.actions]
        violation = Violation("S7", "S7 lost") if "write" in kinds else Violation("V1", "V1 no calm")
        return SeedReport(ring, scenario.seed, "", violation, "", {}, 0.0, 0, len(kinds))

    monkeypatch.setattr(worker, "run_one", judged)
    given = msgspec.to_builtins(scenario("crash", "write", "cut"))
    done = worker.carry_out(Job(1, "engine", 3, shrink_s=20.0, scenario=given))
    assert "S7 lost" in done.script
    assert done.script_actions == 1


def test_whatever_a_message_holds_the_file_is_python() -> None:
    text = pytest_file("engine", plan(1, seconds=1.0), Violation("S1", 'S1 """ \\ x'), "raftkit sim --seed 1", None)
    compile(text, "test_saved.py", "exec")
