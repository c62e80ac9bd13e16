"""``raftkit sim --long`` goes on where it ended, and says what came of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from raftkit_cli.failures import CliError
from raftkit_cli.options import Invocation
from raftkit_cli.sim import long
from raftkit_cli.sim.long import LongRun
from raftkit_core.testing.simulation.mutants import score
from raftkit_core.testing.simulation.mutants.mutant import MUTANTS


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four seeds, and one mutant on two."""
    monkeypatch.setattr(long, "SEEDS", {"engine": 3, "runtime": 1})
    monkeypatch.setattr(long, "RUNTIME_SECONDS", 2.0)
    monkeypatch.setattr(score, "SEEDS", 2)
    monkeypatch.setattr(score, "countable", lambda: [MUTANTS["commit-minus-one"]])


def run(state: Path, seed_base: int = 0) -> LongRun:
    return LongRun(Invocation(), jobs=1, seed_base=seed_base, state=state)


@pytest.mark.usefixtures("small")
def test_what_is_done_is_not_done_again(tmp_path: Path) -> None:
    state = tmp_path / "state.jsonl"
    first = run(state)
    assert len(list(first.left())) == 6
    first.run()
    assert list(first.left()) == []
    lines = state.read_text().splitlines()
    state.write_text("\n".join([*lines[:4], lines[4][:20]]))
    second = run(state)
    assert len(list(second.left())) == 2
    second.run()
    third = run(state)
    assert list(third.left()) == []
    assert third.tally.seeds == 4
    assert third.kills == {"commit-minus-one": first.kills["commit-minus-one"]}
    assert third.survivors() == []
    assert "| `commit-minus-one` | safety | engine | 2 | 2 | 1 | S5 |" in third.markdown()
    assert third.as_data()["mutants"] == {"commit-minus-one": {"tried": 2, "killed": 2}}


def test_a_state_of_other_seeds_is_not_mixed_in(tmp_path: Path) -> None:
    state = tmp_path / "state.jsonl"
    state.write_text(json.dumps({"seed_base": 7, "mutant": "", "seconds": 0, "done": None}) + "\n")
    with pytest.raises(CliError, match="holds a run from seed 7"):
        run(state)
