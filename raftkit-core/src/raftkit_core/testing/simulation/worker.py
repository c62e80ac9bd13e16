"""A process that runs seeds for somebody else: one JSON job a line comes in, one JSON answer a line goes out.

    python -m raftkit_core.testing.simulation.worker

It ends when its input does. Jobs of ``raftkit sim`` run in such processes, each with its own hash seed.
"""

from __future__ import annotations

import signal
import sys
from typing import Any

import msgspec

from raftkit_core.testing.simulation.replaying import pytest_file, run_one
from raftkit_core.testing.simulation.report import SeedReport
from raftkit_core.testing.simulation.rings import RINGS
from raftkit_core.testing.simulation.shrink import shrink


class Job(msgspec.Struct):
    """One seed to run; with ``shrink_s`` a violation is made short within so many seconds, as a test file."""

    id: int
    ring: str
    seed: int
    profile: str = "mixed"
    seconds: float = 0.0
    """0: as the ring has it."""
    mutant: str | None = None
    shrink_s: float = 0.0
    shrink_width: int = 1
    """How many shorter scenarios are tried at a time."""
    command: str = ""
    """How to run the seed again, for the test file."""
    scenario: Any = None
    """A whole scenario instead of a seed."""


class Done(msgspec.Struct):
    id: int
    report: SeedReport
    script: str = ""
    """The test file, if one was asked for and the seed violates something."""
    script_actions: int = 0
    shrink_runs: int = 0


def carry_out(job: Job) -> Done:
    ring = RINGS[job.ring]
    if job.scenario is None:
        scenario = ring.plan(job.seed, job.profile, seconds=job.seconds or ring.seconds)
    else:
        scenario = msgspec.convert(job.scenario, ring.scenario)
    report = run_one(job.ring, scenario, job.mutant)
    if not job.shrink_s or report.violation is None:
        return Done(job.id, report)

    is_of_safety = report.violation.is_of_safety

    def fails(shorter: Any) -> bool:
        found = run_one(job.ring, shorter, job.mutant).violation
        return found is not None and found.is_of_safety is is_of_safety  # not another failure in place of this one

    shrunk = shrink(scenario, fails, seconds=job.shrink_s, width=job.shrink_width)
    last = run_one(job.ring, shrunk.scenario, job.mutant)
    assert last.violation is not None, "a scenario fails once and not again"
    script = pytest_file(job.ring, shrunk.scenario, last.violation, job.command, job.mutant)
    return Done(job.id, report, script, len(shrunk.scenario.actions), shrunk.runs)


def main() -> None:
    # Ctrl-C is for who started this process: it ends it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for line in sys.stdin.buffer:
        done = carry_out(msgspec.json.decode(line, type=Job))
        sys.stdout.buffer.write(msgspec.json.encode(done) + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
