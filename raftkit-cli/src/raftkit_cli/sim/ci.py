"""``raftkit sim --ci``: what every change must pass, within eight minutes on two cores that are not very slow.

Traces first (the same in two processes with different hash seeds), then seeds that once failed, every planted bug on
the seeds that are known to kill it, then fresh seeds from a range that moves on with the date. The counts of fresh
seeds yield before the time does, but never below a minimum: a slow machine takes the time that needs.
"""

from __future__ import annotations

import datetime
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raftkit_cli.failures import CliError
from raftkit_cli.options import Invocation
from raftkit_cli.sim.pool import WorkerPool
from raftkit_cli.sim.runs import SeedRun, tell_tally
from raftkit_cli.sim.tally import Tally

if TYPE_CHECKING:
    from raftkit_core.testing.simulation.worker import Job

LIMIT_SECONDS = 480.0
RESERVE_SECONDS = 25.0
PATIENCE_SECONDS = 1200.0
"""For the least there must be, on a machine that is slow or busy."""
TRACE_SEEDS = range(20)
TRACE_SECONDS = 10.0
RUNTIME_SECONDS = 60.0
WANTED = {"engine": 300, "runtime": 60}
LEAST = {"engine": 150, "runtime": 20}
OPERATIONS_WANTED = 50_000
MOVED_SEEDS = 30
FIRST_DAY = datetime.date(2026, 1, 1)


def base_of(day: datetime.date) -> int:
    """The first fresh seed of a day: a range of its own for each."""
    return max(0, (day - FIRST_DAY).days) * 1000


class CiRun:
    """One run, step by step; ``problems`` says what is no pass."""

    def __init__(self, invocation: Invocation, *, jobs: int, seed_base: int, scripts: Path) -> None:
        self.invocation = invocation
        self.jobs = jobs
        self.seed_base = seed_base
        self.scripts = scripts
        self.began = time.monotonic()
        self.problems: list[str] = []
        self.data: dict[str, Any] = {"seed_base": seed_base}
        self.tally = Tally()

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self.began

    def step(self, text: str) -> None:
        self.invocation.out.note(f"[{self.elapsed:5.1f} s] {text}")

    # --- traces -----------------------------------------------------------------------------------------------------

    def compare_traces(self) -> None:
        """S30: one seed, one trace, in whatever process."""
        from raftkit_core.testing.simulation.rings import RINGS

        self.step(f"{len(TRACE_SEEDS)} seeds of {TRACE_SECONDS:g} simulated seconds in two processes")
        run = SeedRun(self.invocation, rings=tuple(RINGS), seconds=TRACE_SECONDS)
        traces: list[dict[tuple[str, int], str]] = []
        for hash_seed in (1, 4242):
            with WorkerPool(self.jobs, hash_seed=hash_seed) as pool:
                done = list(pool.run(run.jobs_of(TRACE_SEEDS)))
            traces.append({(each.report.ring, each.report.seed): each.report.trace_hash for each in done})
            self._judge_fixed(done, "trace seed")
        differing = sorted(key for key in traces[0] if traces[0][key] != traces[1].get(key))
        self.data["traces"] = {"seeds": len(TRACE_SEEDS), "differing": [list(key) for key in differing]}
        self.problems += [f"S30: seed {seed} of the {ring} ring has two traces" for ring, seed in differing]

    def _judge_fixed(self, done: list[Any], what: str) -> None:
        for each in done:
            violation = each.report.violation
            if violation is not None:
                self.problems.append(
                    f"{what} {each.report.seed} of the {each.report.ring} ring: {violation.message[:300]}"
                )
            elif not each.report.is_passed:
                self.problems.append(
                    f"{what} {each.report.seed} of the {each.report.ring} ring: {each.report.undecided} undecided"
                )

    # --- seeds that failed once -------------------------------------------------------------------------------------

    def replay_regressions(self) -> None:
        from raftkit_core.testing.simulation.regressions import REGRESSIONS
        from raftkit_core.testing.simulation.worker import Job

        self.step(f"{len(REGRESSIONS)} seeds that once failed")
        jobs = [
            Job(number, each.ring, each.seed, each.profile, each.seconds) for number, each in enumerate(REGRESSIONS)
        ]
        with WorkerPool(self.jobs) as pool:
            done = list(pool.run(jobs))
        self._judge_fixed(done, "regression seed")
        self.data["regressions"] = len(done)

    # --- mutants ----------------------------------------------------------------------------------------------------

    def kill_mutants(self) -> None:
        """Every planted bug dies on each seed that is recorded to kill it. None can be planted in native code."""
        from raftkit_core.engine import COMPILED
        from raftkit_core.testing.simulation.mutants.score import countable, load
        from raftkit_core.testing.simulation.rings import RINGS
        from raftkit_core.testing.simulation.worker import Job

        if COMPILED:
            self.invocation.out.note("no mutants: the engine is native code; the pure wheel of raftkit-core has them")
            self.data["mutants"] = {"mutants": 0, "seeds": 0, "moved": []}
            return
        records = load()
        jobs: list[Job] = []
        names: dict[int, str] = {}
        for mutant in countable():
            record = records.get(mutant.id)
            if record is None or not record.kills:
                continue  # the table names it as a survivor
            for kill in record.kills:
                names[len(jobs)] = mutant.id
                seconds = RINGS[mutant.ring].seconds
                jobs.append(Job(len(jobs), mutant.ring, kill.seed, record.profile, seconds, mutant.id))
        self.step(f"{len(set(names.values()))} mutants on {len(jobs)} seeds that kill them")
        with WorkerPool(self.jobs) as pool:
            alive = {names[done.id] for done in pool.run(jobs) if done.report.violation is None}
            moved = sorted(alive)
            # A scenario that is drawn otherwise than when it was recorded is another seed: then the first ones decide.
            for seed in range(MOVED_SEEDS):
                again = [self._mutant_job(number, mutant, seed) for number, mutant in enumerate(sorted(alive))]
                left = {again[done.id].mutant for done in pool.run(again) if done.report.violation is None}
                alive = {mutant for mutant in alive if mutant in left}
        self.problems += [f"the mutant {mutant} survives" for mutant in sorted(alive)]
        if moved:
            self.invocation.out.note(f"recorded seeds have moved: {', '.join(moved)} (mutant_table.py --write --stale)")
        self.data["mutants"] = {"mutants": len(set(names.values())), "seeds": len(jobs), "moved": moved}

    @staticmethod
    def _mutant_job(number: int, mutant: str, seed: int) -> Job:
        from raftkit_core.testing.simulation.mutants import MUTANTS
        from raftkit_core.testing.simulation.rings import RINGS
        from raftkit_core.testing.simulation.worker import Job

        ring = MUTANTS[mutant].ring
        return Job(number, ring, seed, seconds=RINGS[ring].seconds, mutant=mutant)

    # --- fresh seeds ------------------------------------------------------------------------------------------------

    def run_fresh(self) -> None:
        """Both rings in turns, so that both have their share when the time is over."""
        self.step(f"fresh seeds from {self.seed_base}: {WANTED['engine']} engine, {WANTED['runtime']} runtime")
        seconds = {"runtime": RUNTIME_SECONDS}
        run = SeedRun(self.invocation, rings=tuple(WANTED), seconds=seconds, jobs=self.jobs, scripts=self.scripts)
        try:
            run.run(self._fresh_jobs(run), sum(WANTED.values()))
        finally:
            self.tally = run.tally
        for ring, least in LEAST.items():
            seeds = run.tally.rings[ring].seeds if ring in run.tally.rings else 0
            if seeds < least:
                self.problems.append(f"only {seeds} seeds of the {ring} ring fitted in, {least} are the least")

    def _fresh_jobs(self, run: SeedRun) -> Iterator[Job]:
        given = dict.fromkeys(WANTED, 0)
        while any(given[ring] < WANTED[ring] for ring in WANTED):
            late = self.elapsed > LIMIT_SECONDS - RESERVE_SECONDS
            enough = all(given[ring] >= LEAST[ring] for ring in WANTED)
            if (late and enough) or self.elapsed > PATIENCE_SECONDS:
                return
            # Whichever ring is further from what is wanted of it; late, from the least.
            goal = LEAST if late else WANTED
            ring = min(WANTED, key=lambda name: given[name] / goal[name])
            seed = self.seed_base + given[ring]
            given[ring] += 1
            yield run.job(sum(given.values()), ring, seed)

    # --- the end ----------------------------------------------------------------------------------------------------

    def judge(self) -> None:
        tally = self.tally
        self.problems += [
            f"{found.check} violated by seed {found.seed} of the {found.ring} ring ({found.command}):"
            f" {found.message[:300]}"
            for found in tally.found
        ]
        if tally.undecided:
            self.problems.append(f"{tally.undecided} operations are undecided")
        runtime = tally.rings.get("runtime")
        if runtime is not None and runtime.seeds >= WANTED["runtime"] and runtime.operations < OPERATIONS_WANTED:
            self.problems.append(f"only {runtime.operations} client operations were judged, of {OPERATIONS_WANTED}")

    def as_data(self) -> dict[str, Any]:
        return {**self.tally.as_data(), **self.data, "seconds": round(self.elapsed, 1), "problems": self.problems}


def run_ci(invocation: Invocation, *, jobs: int, seed_base: int | None, scripts: Path) -> None:
    """Raises: CliError if it is no pass."""
    base = base_of(datetime.datetime.now(tz=datetime.UTC).date()) if seed_base is None else seed_base
    invocation.out.note(f"fresh seeds begin at {base}; the same again: raftkit sim --ci --seed-base {base}")
    run = CiRun(invocation, jobs=jobs, seed_base=base, scripts=scripts)
    try:
        run.compare_traces()
        run.replay_regressions()
        run.kill_mutants()
        run.run_fresh()
    except KeyboardInterrupt:
        raise CliError(
            "INTERRUPTED",
            f"interrupted after {run.elapsed:.0f} s and {run.tally.seeds} fresh seeds; so far: "
            + ("; ".join(run.problems) or "nothing wrong"),
            hint=f"raftkit sim --ci --seed-base {base}",
            data=run.as_data(),
        ) from None
    run.judge()
    data = run.as_data()
    if run.problems:
        raise CliError(
            "SIM_VIOLATION",
            "\n".join([f"{len(run.problems)} problems:", *run.problems]),
            hint=f"raftkit sim --ci --seed-base {base}",
            data=data,
        )
    missing = run.tally.missing()
    if missing:
        text = "; ".join(f"{ring} ring: {', '.join(names)}" for ring, names in missing.items())
        raise CliError("SIM_NOT_COVERED", f"what matters never happened: {text}", data=data)

    def human() -> None:
        tell_tally(invocation, run.tally)
        mutants = run.data["mutants"]
        invocation.out.line(
            f"{mutants['mutants']} mutants died on {mutants['seeds']} seeds; {run.tally.operations} operations judged;"
            f" {run.elapsed:.0f} s"
        )

    invocation.out.result("sim", data, human)
