"""The tests of the tests: every planted bug is noticed on a seed that is known to notice it, and the product is not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from mutant_table import PAGE, page

from raftkit_core.testing.simulation.engine_run import run_seed
from raftkit_core.testing.simulation.mutants import MUTANTS, applied
from raftkit_core.testing.simulation.mutants.score import SEEDS, countable, load, soon_killed
from raftkit_core.testing.simulation.rings import RINGS

RECORDS = load()


TESTED = {mutant: record.test for mutant, record in RECORDS.items() if record.test}


def test_there_are_sixty_and_every_one_is_killed() -> None:
    assert len(countable()) >= 60
    assert not {each.id for each in countable() if not RECORDS[each.id].kills and not RECORDS[each.id].test}


@pytest.mark.process
@pytest.mark.parametrize("mutant", sorted(TESTED))
def test_what_no_seed_notices_an_ordinary_test_does(mutant: str) -> None:
    here = Path(__file__).parent
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-n",
        "0",
        "-p",
        "planted",
        "-p",
        "no:cacheprovider",
        TESTED[mutant],
    ]
    environment = {**os.environ, "PYTHONPATH": str(here), "RAFTKIT_MUTANT": mutant}
    ran = subprocess.run(command, cwd=here.parents[1], env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 1, ran.stdout + ran.stderr


def test_nine_of_ten_die_within_fifty_seeds() -> None:
    soon = soon_killed(RECORDS)
    safety = {each.id for each in countable() if each.harm == "safety"}
    assert len(soon) >= 0.9 * len(countable())
    assert len(soon & safety) >= 0.9 * len(safety)


QUICK = [each.id for each in countable() if each.ring == "engine" and RECORDS[each.id].kills]


@pytest.mark.parametrize("mutant", QUICK[::3])
def test_the_simulator_notices(mutant: str) -> None:
    """Every third of the engine ring here, all of both in ``raftkit sim --ci``. Only that it is noticed: which check is
    first may change with the product, and so may the seed; then the first ones decide."""
    record = RECORDS[mutant]
    ring = RINGS[MUTANTS[mutant].ring]
    seeds = [(kill.seed, record.profile) for kill in record.kills] + [(seed, "mixed") for seed in range(SEEDS)]
    with applied(mutant):
        assert any(
            ring.run(ring.plan(seed, profile, seconds=ring.seconds)).violation is not None for seed, profile in seeds
        )


def test_a_mutant_leaves_nothing_behind() -> None:
    clean = run_seed(0, seconds=3.0)
    for each in MUTANTS:
        with applied(each):
            pass
    assert run_seed(0, seconds=3.0) == clean


def test_an_unknown_mutant_is_an_error() -> None:
    with pytest.raises(KeyError), applied("no-such-bug"):
        pass


def test_the_table_is_the_record() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert page(text, RECORDS) == text, f"write it: uv run python {Path(__file__).parent.name}/mutant_table.py --write"
