"""Whole runs: one seed is one run, nothing is found in the product, and a scenario is a value."""

from __future__ import annotations

import os
import subprocess
import sys

import msgspec
import pytest

from raftkit_core.testing.simulation.runtime_run import run, run_seed
from raftkit_core.testing.simulation.runtime_scenario import PROFILES, RuntimeScenario, plan

PRINT_HASHES = """
import sys
from raftkit_core.testing.simulation.runtime_run import run_seed
print([run_seed(seed, seconds=3.0).trace_hash for seed in map(int, sys.argv[1:])])
"""


def test_one_seed_gives_one_trace_in_every_process() -> None:
    """S30: strings hash differently in the two, and objects have other addresses."""
    seeds = ["3", "5", "11"]
    printed = []
    for hash_seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        done = subprocess.run(
            [sys.executable, "-c", PRINT_HASHES, *seeds], env=environment, capture_output=True, text=True, timeout=150
        )
        assert done.returncode == 0, done.stderr
        printed.append(done.stdout)
    assert printed[0] == printed[1]
    assert len(set(printed[0].split(","))) == len(seeds)


@pytest.mark.parametrize("profile", PROFILES)
def test_a_run_of_every_profile_finds_nothing(profile: str) -> None:
    report = run_seed(1, profile, seconds=5.0)
    assert report.violation is None
    assert report.operations > 20
    assert report.undecided == 0


def test_a_scenario_is_a_value_that_can_be_kept_and_run_again() -> None:
    scenario = plan(2, "swarm", seconds=3.0)
    kept = msgspec.json.decode(msgspec.json.encode(scenario), type=RuntimeScenario)
    assert kept == scenario
    assert run(kept).trace_hash == run(scenario).trace_hash
