"""Measures how soon each planted bug dies, and writes the record beside the mutants and the table of ``docs/``.

    uv run python tests/simulation/mutant_table.py --write [--only ID ...] [--jobs 2]

Without ``--only`` every mutant is tried anew; mutants that are not tried keep their record. A test compares the table
with the record.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from raftkit_cli.sim.pool import WorkerPool
from raftkit_core.testing.simulation.mutants import MUTANTS
from raftkit_core.testing.simulation.mutants.score import SEEDS, Kill, Record, countable, load, save, table
from raftkit_core.testing.simulation.rings import RINGS
from raftkit_core.testing.simulation.worker import Job

PAGE = Path(__file__).resolve().parents[2] / "docs" / "mutants.md"
BEGIN, END = "<!-- planted bugs -->\n", "<!-- end -->"
KILLS_KEPT = 2
BEYOND = {"engine": 400, "runtime": 100}
"""How far beyond the usual seeds is looked for one that kills."""


def measure(pool: WorkerPool, mutant: str) -> Record:
    """Seeds from 0 on until two have noticed the mutant."""
    ring = MUTANTS[mutant].ring
    kills: dict[int, str] = {}
    tried = 0
    for first in range(0, SEEDS + BEYOND[ring], 10):
        if len(kills) >= KILLS_KEPT or (kills and first >= SEEDS):
            break
        jobs = [Job(seed, ring, seed, seconds=RINGS[ring].seconds, mutant=mutant) for seed in range(first, first + 10)]
        for done in pool.run(jobs):
            if done.report.violation is not None:
                kills[done.report.seed] = done.report.violation.check
        tried = first + 10
    return Record(tried, [Kill(seed, kills[seed]) for seed in sorted(kills)[:KILLS_KEPT]])


def stale(pool: WorkerPool, records: dict[str, Record]) -> list[str]:
    """Mutants that survive a seed that is recorded to kill them."""
    jobs = [
        Job(0, MUTANTS[mutant].ring, kill.seed, record.profile, RINGS[MUTANTS[mutant].ring].seconds, mutant)
        for mutant, record in records.items()
        if mutant in MUTANTS
        for kill in record.kills
    ]
    names = {}
    for number, job in enumerate(jobs):
        job.id = number
        names[number] = job.mutant
    return sorted({str(names[done.id]) for done in pool.run(jobs) if done.report.violation is None})


def page(text: str, records: dict[str, Record]) -> str:
    head, _, rest = text.partition(BEGIN)
    return head + BEGIN + table(records) + END + rest.partition(END)[2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--stale", action="store_true", help="only those that a recorded seed no longer kills")
    options = parser.parse_args()
    try:
        records = load()
    except FileNotFoundError:
        records = {}
    wanted = options.only or [each.id for each in countable()]
    with WorkerPool(options.jobs) as pool:
        if options.stale:
            wanted = stale(pool, records)
        for mutant in wanted:
            test = records[mutant].test if mutant in records else ""
            records[mutant] = measure(pool, mutant)
            records[mutant].test = "" if records[mutant].kills else test
            kills = [(kill.seed, kill.check) for kill in records[mutant].kills]
            print(f"{mutant:40} {records[mutant].tried:4} {kills or 'SURVIVES'}", flush=True)
    if options.write:
        save(records)
        PAGE.write_text(page(PAGE.read_text(encoding="utf-8"), records), encoding="utf-8")
    sys.exit(any(not records[each].kills and not records[each].test for each in wanted))


if __name__ == "__main__":
    main()
