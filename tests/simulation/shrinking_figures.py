"""Measures how short failing scenarios become: planted bugs on a seed that is known to notice them.

uv run python tests/simulation/shrinking_figures.py [--ring runtime] [--every 4] [--seconds 45] [--runs 200]
"""

from __future__ import annotations

import argparse
import time

from raftkit_core.testing.simulation.mutants import MUTANTS
from raftkit_core.testing.simulation.mutants.score import load
from raftkit_core.testing.simulation.replaying import run_one
from raftkit_core.testing.simulation.rings import RINGS
from raftkit_core.testing.simulation.shrink import shrink


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ring", default="runtime", choices=sorted(RINGS))
    parser.add_argument("--every", type=int, default=4, help="each so manieth of the ring's planted bugs")
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=45.0)
    parser.add_argument("--runs", type=int)
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    ring = RINGS[options.ring]
    records = load()
    known = [each for each in MUTANTS if MUTANTS[each].ring == ring.name and each in records and records[each].kills]
    lengths = []
    for mutant in known[options.first :: options.every]:
        record = records[mutant]
        scenario = ring.plan(record.kills[0].seed, record.profile, seconds=ring.seconds)

        def fails(shorter: object, mutant: str = mutant) -> bool:
            return run_one(ring.name, shorter, mutant).violation is not None

        began = time.monotonic()
        shrunk = shrink(scenario, fails, seconds=options.seconds, runs=options.runs, width=options.jobs)
        took = time.monotonic() - began
        found = run_one(ring.name, shrunk.scenario, mutant).violation
        alone = run_one(ring.name, shrunk.scenario).violation
        assert found is not None
        lengths.append(len(shrunk.scenario.actions))
        print(
            f"{mutant:40} {len(scenario.actions):4} -> {lengths[-1]:3} actions, {shrunk.runs:3} runs, {took:4.1f} s,"
            f" {found.check}{'' if shrunk.is_finished else ', not finished'}"
            + (f"; VIOLATED WITHOUT IT: {alone.message[:200]}" if alone else ""),
            flush=True,
        )
    lengths.sort()
    short = sum(length <= 25 for length in lengths)
    print(f"{len(lengths)} failures: {short} of at most 25 actions, median {lengths[len(lengths) // 2]}: {lengths}")


if __name__ == "__main__":
    main()
