"""What many seeds came to together: counts, coverage, violations, and the verdict."""

from __future__ import annotations

from collections import Counter
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from raftkit_core.testing.simulation.worker import Done

PASSED, VIOLATED, UNDECIDED, NOT_COVERED = "passed", "violated", "undecided", "not covered"


def command_for(ring: str, seed: int, profile: str, seconds: float, mutant: str | None) -> str:
    """The command line that runs one seed again."""
    options = f"--ring {ring} --seed {seed} --profile {profile} --seconds {seconds:g}"
    return f"raftkit sim {options}" + (f" --mutant {mutant}" if mutant else "")


class Found:
    """A violation, how to see it again, and where its short script is."""

    def __init__(self, done: Done, command: str) -> None:
        report = done.report
        assert report.violation is not None
        self.ring = report.ring
        self.seed = report.seed
        self.check = report.violation.check
        self.message = report.violation.message
        self.at_s = report.violation.at_s
        self.command = command
        self.script: Path | None = None
        self.actions = report.actions
        self.script_actions = done.script_actions

    def as_data(self) -> dict[str, Any]:
        return {
            "ring": self.ring,
            "seed": self.seed,
            "check": self.check,
            "message": self.message,
            "at_s": self.at_s,
            "replay": self.command,
            "script": None if self.script is None else str(self.script),
            "actions": self.actions,
            "script_actions": self.script_actions or None,
        }


class RingTally:
    """The sum over the seeds of one ring."""

    def __init__(self) -> None:
        self.seeds = 0
        self.simulated_s = 0.0
        self.steps = 0
        self.operations = 0
        self.undecided = 0
        self.coverage: Counter[str] = Counter()
        self.traces: dict[int, str] = {}

    def add(self, done: Done) -> None:
        report = done.report
        self.seeds += 1
        self.simulated_s += report.simulated_s
        self.steps += report.steps
        self.operations += report.operations
        self.undecided += report.undecided
        self.coverage.update(report.coverage)
        self.traces[report.seed] = report.trace_hash


class Tally:
    """All rings together."""

    def __init__(self) -> None:
        self.rings: dict[str, RingTally] = {}
        self.found: list[Found] = []

    @property
    def seeds(self) -> int:
        return sum(ring.seeds for ring in self.rings.values())

    @property
    def operations(self) -> int:
        return sum(ring.operations for ring in self.rings.values())

    @property
    def undecided(self) -> int:
        return sum(ring.undecided for ring in self.rings.values())

    def add(self, done: Done) -> None:
        self.rings.setdefault(done.report.ring, RingTally()).add(done)

    def missing(self) -> dict[str, list[str]]:
        """What should have happened and did not, by ring, where there were enough seeds for it."""
        from raftkit_core.testing.simulation.rings import RINGS

        found = {}
        for name, tally in self.rings.items():
            missing = RINGS[name].missing(tally.coverage) if tally.seeds >= RINGS[name].judged_from else []
            if missing:
                found[name] = missing
        return found

    def is_coverage_judged(self) -> bool:
        from raftkit_core.testing.simulation.rings import RINGS

        return all(tally.seeds >= RINGS[name].judged_from for name, tally in self.rings.items())

    def verdict(self) -> str:
        if self.found:
            return VIOLATED
        if self.undecided:
            return UNDECIDED
        return NOT_COVERED if self.missing() else PASSED

    def trace_hash(self) -> str | None:
        """Of the one seed that was run; over both rings if it ran in both. None for more seeds."""
        traces = [tally.traces for tally in self.rings.values()]
        if any(len(trace) != 1 for trace in traces):
            return None
        hashes = [text for trace in traces for text in trace.values()]
        return hashes[0] if len(hashes) == 1 else blake2b(" ".join(hashes).encode(), digest_size=16).hexdigest()

    def as_data(self) -> dict[str, Any]:
        missing = self.missing()
        return {
            "seeds": self.seeds,
            "violations": [found.as_data() for found in self.found],
            "trace_hash": self.trace_hash(),
            "coverage": {name: dict(sorted(tally.coverage.items())) for name, tally in self.rings.items()},
            "verdict": self.verdict(),
            "missing": missing,
            "coverage_judged": self.is_coverage_judged(),
            "operations": self.operations,
            "undecided": self.undecided,
            "rings": {
                name: {
                    "seeds": tally.seeds,
                    "simulated_s": round(tally.simulated_s, 1),
                    "steps": tally.steps,
                    "operations": tally.operations,
                    "undecided": tally.undecided,
                }
                for name, tally in self.rings.items()
            },
        }
