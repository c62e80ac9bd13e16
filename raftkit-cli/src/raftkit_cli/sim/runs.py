"""Running seeds: jobs, progress, and short scripts of what fails."""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from raftkit_cli.failures import CliError
from raftkit_cli.options import Invocation
from raftkit_cli.output import is_terminal
from raftkit_cli.sim.pool import WorkerPool
from raftkit_cli.sim.tally import NOT_COVERED, UNDECIDED, VIOLATED, Found, Tally, command_for

if TYPE_CHECKING:
    from raftkit_core.testing.simulation.worker import Done, Job

SHRINK_SECONDS = 45.0
SCRIPTS_AT_MOST = 3
"""How many violations of one run are made short; the others can be, one by one."""


class Progress:
    """One line that is rewritten where a person looks; else a line now and then."""

    def __init__(self, invocation: Invocation, total: int | None) -> None:
        self._out = invocation.out
        self._total = total
        self._live = is_terminal(sys.stderr) and not invocation.out.quiet
        self._told_at = self._began = time.monotonic()
        self._shown = False

    def tell(self, tally: Tally) -> None:
        now = time.monotonic()
        if now - self._told_at < (0.2 if self._live else 20.0):
            return
        self._told_at = now
        of = f" of {self._total}" if self._total else ""
        text = f"{tally.seeds}{of} seeds, {tally.operations} operations, {len(tally.found)} violations"
        text += f", {now - self._began:.0f} s"
        if self._live:
            sys.stderr.write(f"\r\x1b[2K{text}")
            sys.stderr.flush()
            self._shown = True
        else:
            self._out.note(text)

    def clear(self) -> None:
        if self._shown:
            sys.stderr.write("\r\x1b[2K")
            sys.stderr.flush()
            self._shown = False


class SeedRun:
    """One kind of run: which rings, which profile, how long (for all rings or by ring), with which planted bug."""

    def __init__(
        self,
        invocation: Invocation,
        *,
        rings: tuple[str, ...],
        profile: str = "mixed",
        seconds: float | dict[str, float] | None = None,
        mutant: str | None = None,
        jobs: int = 2,
        scripts: Path | None = None,
    ) -> None:
        self._invocation = invocation
        self.rings = rings
        self.profile = profile
        self.seconds = seconds
        self.mutant = mutant
        self._jobs = jobs
        self._scripts = scripts
        self.tally = Tally()

    def job(self, number: int, ring: str, seed: int) -> Job:
        from raftkit_core.testing.simulation.rings import RINGS
        from raftkit_core.testing.simulation.worker import Job

        wanted = self.seconds.get(ring) if isinstance(self.seconds, dict) else self.seconds
        seconds = wanted or RINGS[ring].seconds
        command = command_for(ring, seed, self.profile, seconds, self.mutant)
        return Job(number, ring, seed, self.profile, seconds, self.mutant, command=command)

    def jobs_of(self, seeds: Iterable[int]) -> Iterator[Job]:
        numbers = itertools.count(1)
        for seed in seeds:
            for ring in self.rings:
                yield self.job(next(numbers), ring, seed)

    def run(self, jobs: Iterable[Job], total: int | None = None) -> Tally:
        """Run ``jobs``; what they find is told at once, and made short at the end."""
        progress = Progress(self._invocation, total)
        with WorkerPool(self._jobs) as pool:
            try:
                for done in pool.run(jobs):
                    self.tally.add(done)
                    if done.report.violation is not None:
                        progress.clear()
                        self._tell(done)
                    progress.tell(self.tally)
            finally:
                progress.clear()
            if self.tally.found and self._scripts is not None:
                self._shorten(pool)
        return self.tally

    def _tell(self, done: Done) -> None:
        report = done.report
        command = self._command(report.ring, report.seed)
        found = Found(done, command)
        self.tally.found.append(found)
        out = self._invocation.out
        out.note(f"{found.check} violated by seed {found.seed} of the {found.ring} ring: {found.message[:400]}")
        out.note(f"  see it again: {command}")

    def _command(self, ring: str, seed: int) -> str:
        return self.job(0, ring, seed).command

    def _shorten(self, pool: WorkerPool) -> None:
        """Make the first few violations short, and save each as a test file."""
        import msgspec

        assert self._scripts is not None
        first = self.tally.found[:SCRIPTS_AT_MOST]
        self._invocation.out.note(f"making {len(first)} of them short: {SHRINK_SECONDS:g} s each at most")
        jobs = [
            msgspec.structs.replace(
                self.job(number, found.ring, found.seed),
                shrink_s=SHRINK_SECONDS,
                shrink_width=max(1, self._jobs // len(first)),
            )
            for number, found in enumerate(first)
        ]
        for done in pool.run(jobs):
            found = first[done.id]
            if not done.script:
                continue
            self._scripts.mkdir(parents=True, exist_ok=True)
            name = f"test_sim_{found.ring}_{found.seed}" + (f"_{self.mutant.replace('-', '_')}" if self.mutant else "")
            found.script = self._scripts / f"{name}.py"
            found.script.write_text(done.script, encoding="utf-8")
            found.script_actions = done.script_actions
            self._invocation.out.note(
                f"seed {found.seed}: {found.actions} actions made {done.script_actions} in {done.shrink_runs} runs:"
                f" pytest {found.script}"
            )


def conclude(invocation: Invocation, tally: Tally) -> None:
    """Print the result of a run. Raises: CliError if it is no pass."""
    data = tally.as_data()
    verdict = tally.verdict()
    if verdict == VIOLATED:
        first = tally.found[0]
        more = f", and {len(tally.found) - 1} more" if len(tally.found) > 1 else ""
        raise CliError(
            "SIM_VIOLATION",
            f"{first.check} violated by seed {first.seed} of the {first.ring} ring{more}: {first.message[:300]}",
            hint=first.command
            if first.script is None
            else f"pytest {first.script}, or the whole seed: {first.command}",
            data=data,
        )
    if verdict == UNDECIDED:
        raise CliError(
            "SIM_VIOLATION",
            f"{tally.undecided} of {tally.operations} operations are undecided: that is no pass",
            hint="run fewer clients or shorter seeds: --seconds",
            data=data,
        )
    if verdict == NOT_COVERED:
        text = "; ".join(f"{ring} ring: {', '.join(names)}" for ring, names in tally.missing().items())
        raise CliError(
            "SIM_NOT_COVERED",
            f"no violation in {tally.seeds} seeds, but what matters never happened: {text}",
            hint="run more seeds (--seeds), or --profile mixed",
            data=data,
        )

    def human() -> None:
        tell_tally(invocation, tally)

    invocation.out.result("sim", data, human)


def tell_tally(invocation: Invocation, tally: Tally) -> None:
    """Counts by ring, and what was covered."""
    out = invocation.out
    rows = [
        (name, str(ring.seeds), f"{ring.simulated_s:.0f} s", str(ring.steps), str(ring.operations), str(ring.undecided))
        for name, ring in tally.rings.items()
    ]
    out.table(("RING", "SEEDS", "SIMULATED", "STEPS", "OPERATIONS", "UNDECIDED"), rows)
    if out.verbose:
        for name, ring in tally.rings.items():
            out.line(f"{name} ring, how often what happened:")
            for what, count in sorted(ring.coverage.items()):
                out.line(f"  {count:>8}  {what}")
    trace = tally.trace_hash()
    if trace is not None:
        out.line(f"trace {trace}")
    judged = "" if tally.is_coverage_judged() else " (too few seeds to judge what was covered)"
    out.line(f"{tally.seeds} seeds, no violation{judged}")
