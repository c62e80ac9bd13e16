"""The list of rules says of each who looks at it; whoever is named there really raises it."""

from __future__ import annotations

import re
from pathlib import Path

from raftkit_core.testing.simulation import rules
from raftkit_core.testing.simulation.rules import RULES

HOUSE = Path(rules.__file__).parent
RAISED = re.compile(r'(?<!")f?"([SV]\d+)\b')
"""A rule at the beginning of a string that is not a docstring."""
IN_THE_RUNTIME_RING = ("oracle*.py", "session_rules.py", "sim_*.py")
IN_THE_ENGINE_RING = ("engine_*.py", "invariants.py")
UNDER_ANOTHER_NAME = {"V3", "V4"}
"""V1 and V2, with a core of nodes only or without a write."""


def raised(patterns: tuple[str, ...]) -> set[str]:
    files = [path for pattern in patterns for path in HOUSE.glob(pattern)]
    return {rule for path in files for rule in RAISED.findall(path.read_text(encoding="utf-8"))}


def claimed(who: str) -> set[str]:
    return {rule.id for rule in RULES.values() if who in rule.by}


def test_what_the_engine_ring_is_said_to_look_at_it_does() -> None:
    assert claimed("ring") == raised(IN_THE_ENGINE_RING)


def test_what_the_oracle_is_said_to_look_at_it_does() -> None:
    of_judges = {"S21"}  # sim_judgement names what the judges of histories found
    assert claimed("oracle") - of_judges == raised(IN_THE_RUNTIME_RING) - of_judges


def test_what_the_end_of_a_run_is_said_to_look_at_it_does() -> None:
    assert claimed("ending") - UNDER_ANOTHER_NAME == raised(("runtime_run.py",))
