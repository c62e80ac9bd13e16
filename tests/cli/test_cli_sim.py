"""``raftkit sim``: one seed is one trace; a planted bug is found, made short and saved as a test; options are told."""

from __future__ import annotations

import datetime
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from raftkit_cli.failures import CliError
from raftkit_cli.options import Invocation
from raftkit_cli.sim.ci import LEAST, LIMIT_SECONDS, PATIENCE_SECONDS, WANTED, CiRun, base_of
from raftkit_cli.sim.runs import SeedRun, conclude
from raftkit_cli.sim.tally import NOT_COVERED, PASSED, Tally
from raftkit_core.testing.simulation.report import SeedReport
from raftkit_core.testing.simulation.rings import RINGS
from raftkit_core.testing.simulation.worker import Done

ONE_SEED = ("sim", "--ring", "engine", "--seed", "3", "--seconds", "3")


def test_one_seed_has_one_trace_in_any_process(raftkit: Any) -> None:
    first, second = (raftkit.json(*ONE_SEED)["data"] for _ in range(2))
    assert first == second
    assert len(first["trace_hash"]) == 32
    assert first["seeds"] == 1
    assert first["violations"] == []
    assert first["verdict"] == "passed"
    assert first["coverage"]["engine"]["election won"] > 0


def test_both_rings_run_the_same_seed(raftkit: Any) -> None:
    data = raftkit.json("sim", "--seed", "3", "--seconds", "2")["data"]
    assert set(data["rings"]) == {"engine", "runtime"}
    assert data["rings"]["runtime"]["operations"] > 0
    assert len(data["trace_hash"]) == 32


def test_many_seeds_have_no_single_trace(raftkit: Any) -> None:
    data = raftkit.json("sim", "--ring", "engine", "--seeds", "3", "--seed-base", "40", "--seconds", "2")["data"]
    assert (data["seeds"], data["trace_hash"], data["coverage_judged"]) == (3, None, False)


def test_a_person_is_told_what_was_done(raftkit: Any) -> None:
    result = raftkit("sim", "--ring", "engine", "--seeds", "2", "--seconds", "2", "-v")
    assert result.exit_code == 0, result.stderr
    assert "2 seeds, no violation (too few seeds to judge what was covered)" in result.stdout
    assert "election won" in result.stdout


def test_a_planted_bug_is_found_made_short_and_saved_as_a_test_that_fails(raftkit: Any, tmp_path: Path) -> None:
    scripts = tmp_path / "found"
    result = raftkit.json("sim", "--mutant", "purge-beyond-snapshot", "--seed", "0", "--scripts", str(scripts), code=5)
    assert result["error"]["code"] == "SIM_VIOLATION"
    (found,) = result["data"]["violations"]
    assert found["check"] == "S13"
    assert found["replay"].endswith("--seed 0 --profile mixed --seconds 15 --mutant purge-beyond-snapshot")
    assert found["script_actions"] <= 25 < found["actions"]
    (script,) = scripts.iterdir()
    assert str(script) == found["script"]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(tmp_path), str(script)]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ran.returncode == 1, ran.stdout + ran.stderr
    assert "Violation(" in ran.stdout


def test_the_found_seed_passes_without_the_bug(raftkit: Any) -> None:
    assert raftkit("sim", "--ring", "engine", "--seed", "3").exit_code == 0


def test_the_mutants_are_listed(raftkit: Any) -> None:
    mutants = raftkit.json("sim", "--mutant", "list")["data"]["mutants"]
    assert len([each for each in mutants if not each["equivalent"]]) >= 60
    assert "commit-minus-one" in raftkit("sim", "--mutant", "list").stdout


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--seed", "1", "--seeds", "2"), "--seeds and --seed exclude each other"),
        (("--ci", "--long"), "--ci and --long exclude each other"),
        (("--seed", "1", "--seed-base", "2"), "leave out --seed-base"),
        (("--profile", "wild"), "there is no profile 'wild'. engine ring: mild"),
        (("--mutant", "commit-minus-onee"), "did you mean 'commit-minus-one'?"),
        (("--mutant", "commit-minus-one", "--ring", "runtime"), "lives in the engine ring"),
        (("--ci", "--ring", "engine"), "choose rings"),
        (("--state", "x.jsonl"), "belong to --long"),
        (("--seeds", "0"), "0 is not in the range"),
        (("--minutes", "0"), "0"),
    ],
)
def test_options_that_make_no_sense_are_told(raftkit: Any, arguments: tuple[str, ...], told: str) -> None:
    result = raftkit("sim", *arguments)
    assert result.exit_code == 2
    assert told in result.stderr


def _tally(seeds: int, coverage: dict[str, int]) -> Tally:
    tally = Tally()
    for seed in range(seeds):
        report = SeedReport("engine", seed, "mixed", None, "0" * 32, coverage, 1.0, 1, 1)
        tally.add(Done(seed, report))
    return tally


def test_what_never_happened_is_no_pass_once_there_are_enough_seeds() -> None:
    everything = dict.fromkeys(RINGS["engine"].important, 1)
    little = {name: count for name, count in everything.items() if name != "truncation"}
    enough = RINGS["engine"].judged_from
    assert _tally(enough, everything).verdict() == PASSED
    assert _tally(enough - 1, little).verdict() == PASSED
    tally = _tally(enough, little)
    assert tally.verdict() == NOT_COVERED
    assert tally.missing() == {"engine": ["truncation"]}
    with pytest.raises(CliError, match="what matters never happened: engine ring: truncation") as caught:
        conclude(Invocation(), tally)
    assert caught.value.code == "SIM_NOT_COVERED"


def test_an_undecided_operation_is_no_pass() -> None:
    tally = _tally(1, {})
    tally.rings["engine"].undecided = 1
    with pytest.raises(CliError, match="undecided"):
        conclude(Invocation(), tally)


def test_every_day_has_seeds_of_its_own() -> None:
    days = [datetime.date(2026, 1, 1), datetime.date(2026, 1, 2), datetime.date(2027, 1, 1)]
    assert [base_of(day) for day in days] == [0, 1000, 365_000]


def test_a_ci_run_says_everything_that_is_no_pass() -> None:
    run = CiRun(Invocation(), jobs=1, seed_base=0, scripts=Path())
    run.tally = _tally(1, {})
    run.tally.rings["engine"].undecided = 2
    run.judge()
    assert run.problems == ["2 operations are undecided"]
    assert run.as_data()["seed_base"] == 0


def test_on_a_slow_machine_a_ci_run_takes_the_least_fresh_seeds_and_the_time_they_need() -> None:
    run = CiRun(Invocation(), jobs=1, seed_base=0, scripts=Path())
    fresh = SeedRun(Invocation(), rings=tuple(WANTED), seconds={})
    run.began -= LIMIT_SECONDS
    assert Counter(job.ring for job in run._fresh_jobs(fresh)) == LEAST
    run.began -= PATIENCE_SECONDS
    assert not list(run._fresh_jobs(fresh)), "something hangs"
    run.run_fresh()
    assert [problem.split(" ")[:2] for problem in run.problems] == [["only", "0"]] * 2


def test_a_fixed_seed_that_nobody_could_decide_is_no_pass() -> None:
    run = CiRun(Invocation(), jobs=1, seed_base=0, scripts=Path())
    report = SeedReport("runtime", 68, "mixed", None, "", {}, 1.0, 1, 1, operations=9, undecided=3)
    run._judge_fixed([Done(1, report)], "regression seed")
    assert run.problems == ["regression seed 68 of the runtime ring: 3 undecided"]
