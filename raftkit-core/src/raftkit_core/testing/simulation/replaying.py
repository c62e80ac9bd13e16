"""A scenario as text, a test file that replays it, and the replay itself."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import msgspec

from raftkit_core.testing.simulation.mutants import applied
from raftkit_core.testing.simulation.report import SeedReport, Violation
from raftkit_core.testing.simulation.rings import RINGS


def run_one(ring: str, scenario: Any, mutant: str | None = None) -> SeedReport:
    """Run ``scenario``, with a planted bug if one is named."""
    with applied(mutant) if mutant else nullcontext():
        return RINGS[ring].run(scenario)


def replay(ring: str, scenario: str | bytes, *, mutant: str | None = None) -> SeedReport:
    """Run a scenario that was written down.

    Raises: msgspec.ValidationError for text that is none; KeyError for an unknown ring or mutant.
    """
    return run_one(ring, msgspec.json.decode(scenario, type=RINGS[ring].scenario), mutant)


def to_text(scenario: Any) -> str:
    """JSON with one action a line."""
    fields = msgspec.to_builtins(scenario)
    actions = fields.pop("actions")
    lines = [f'  "{name}": {msgspec.json.encode(value).decode()},' for name, value in fields.items()]
    rows = ",\n".join(f"    {msgspec.json.encode(action).decode()}" for action in actions)
    lines.append(f'  "actions": [\n{rows}\n  ]' if rows else '  "actions": []')
    return "{\n" + "\n".join(lines) + "\n}"


def pytest_file(ring: str, scenario: Any, violation: Violation, command: str, mutant: str | None = None) -> str:
    """The text of a pytest file that fails as long as the scenario violates anything."""
    planted = f"\nThe planted bug {mutant} is switched on.\n" if mutant else ""
    message = violation.message.splitlines()[0].replace("\\", "/").replace('"""', "'''")[:300]
    named = f', mutant="{mutant}"' if mutant else ""
    return f'''"""A scenario that raftkit sim found and shortened: {len(scenario.actions)} actions left.

{violation.check}: {message}
{planted}
The whole seed: {command}
"""

from raftkit_core.testing.simulation.replaying import replay

SCENARIO = r\'\'\'
{to_text(scenario)}
\'\'\'


def test_seed_{scenario.seed}_of_the_{ring}_ring() -> None:
    report = replay("{ring}", SCENARIO{named})
    assert report.violation is None, report.violation
    assert not report.undecided
'''
