"""``raftkit sim --long``: hours of seeds and the whole table of mutants. What is done is kept, so it can be resumed.

The state file holds one JSON line for every seed that was run; a second start goes on where the first ended.
"""

from __future__ import annotations

import datetime
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from raftkit_cli.failures import CliError
from raftkit_cli.options import Invocation
from raftkit_cli.sim.pool import WorkerPool
from raftkit_cli.sim.runs import Progress
from raftkit_cli.sim.tally import Found, Tally, command_for

if TYPE_CHECKING:
    from raftkit_core.testing.simulation.worker import Done, Job

SEEDS = {"engine": 3000, "runtime": 300}
RUNTIME_SECONDS = 60.0
STATE = Path("raftkit-sim-long.jsonl")


class LongRun:
    """What is done, read from the state file, and what is left to do."""

    def __init__(self, invocation: Invocation, *, jobs: int, seed_base: int, state: Path) -> None:
        self.invocation = invocation
        self.jobs = jobs
        self.seed_base = seed_base
        self.state = state
        self.tally = Tally()
        self.done: set[tuple[str, int, str]] = set()
        """(ring, seed, mutant or "")."""
        self.kills: dict[str, dict[int, str]] = {}
        """By mutant: the seeds that noticed it, and by which check."""
        self.tried: dict[str, int] = {}
        self.seconds = 0.0
        if state.exists():
            self._load()

    def _load(self) -> None:
        import msgspec

        from raftkit_core.testing.simulation.worker import Done

        for line in self.state.read_text(encoding="utf-8").splitlines():
            try:
                entry = json.loads(line)
            except ValueError:
                continue  # the last line of a run that was killed
            if entry["seed_base"] != self.seed_base:
                raise CliError(
                    "CONFIG",
                    f"{self.state} holds a run from seed {entry['seed_base']}",
                    hint=f"--seed-base {entry['seed_base']}, or another --state",
                )
            self._count(msgspec.convert(entry["done"], type=Done), entry["mutant"])
            self.seconds += entry["seconds"]

    def _count(self, done: Done, mutant: str) -> None:
        report = done.report
        self.done.add((report.ring, report.seed, mutant))
        if mutant:
            self.tried[mutant] = self.tried.get(mutant, 0) + 1
            if report.violation is not None:
                self.kills.setdefault(mutant, {})[report.seed] = report.violation.check
            return
        self.tally.add(done)
        if report.violation is not None:
            seconds = RUNTIME_SECONDS if report.ring == "runtime" else 15.0
            self.tally.found.append(Found(done, command_for(report.ring, report.seed, "mixed", seconds, None)))

    # --- what is left -----------------------------------------------------------------------------------------------

    def left(self) -> Iterator[tuple[Job, str]]:
        """Seeds and mutants in a hundred turns, so that an early end leaves a share of everything."""
        from raftkit_core.engine import COMPILED
        from raftkit_core.testing.simulation.mutants import score
        from raftkit_core.testing.simulation.rings import RINGS
        from raftkit_core.testing.simulation.worker import Job

        mutants = () if COMPILED else score.countable()  # none can be planted in native code
        tries = [(mutant, seed) for seed in range(score.SEEDS) for mutant in mutants]
        number = 0
        for share in range(100):
            for ring, total in SEEDS.items():
                seconds = RUNTIME_SECONDS if ring == "runtime" else RINGS[ring].seconds
                for place in _share(total, share):
                    seed = self.seed_base + place
                    if (ring, seed, "") not in self.done:
                        number += 1
                        yield Job(number, ring, seed, "mixed", seconds), ""
            for mutant, seed in (tries[place] for place in _share(len(tries), share)):
                if (mutant.ring, seed, mutant.id) not in self.done:
                    number += 1
                    yield Job(number, mutant.ring, seed, "mixed", RINGS[mutant.ring].seconds, mutant.id), mutant.id

    def run(self) -> None:
        names: dict[int, str] = {}

        def jobs() -> Iterator[Job]:
            for job, mutant in self.left():
                names[job.id] = mutant
                yield job

        progress = Progress(self.invocation, None)
        self.state.parent.mkdir(parents=True, exist_ok=True)
        with self.state.open("a", encoding="utf-8") as file, WorkerPool(self.jobs) as pool:
            if file.tell() and not self.state.read_bytes().endswith(b"\n"):
                file.write("\n")  # a line that was cut short stays alone
            before = time.monotonic()
            for done in pool.run(jobs()):
                now = time.monotonic()
                mutant = names.pop(done.id)
                self._count(done, mutant)
                self._keep(file, done, mutant, now - before)
                self.seconds += now - before
                before = now
                if not mutant and done.report.violation is not None:
                    progress.clear()
                    self.invocation.out.note(f"{done.report.violation.message[:400]}")
                progress.tell(self.tally)
            progress.clear()

    def _keep(self, file: TextIO, done: Done, mutant: str, seconds: float) -> None:
        import msgspec

        entry = {
            "seed_base": self.seed_base,
            "mutant": mutant,
            "seconds": round(seconds, 3),
            "done": msgspec.to_builtins(done),
        }
        file.write(json.dumps(entry) + "\n")
        file.flush()

    # --- what came of it --------------------------------------------------------------------------------------------

    def as_data(self) -> dict[str, Any]:
        return {
            **self.tally.as_data(),
            "seed_base": self.seed_base,
            "seconds": round(self.seconds, 1),
            "mutants": {
                mutant: {"tried": tried, "killed": len(self.kills.get(mutant, {}))}
                for mutant, tried in sorted(self.tried.items())
            },
        }

    def survivors(self) -> list[str]:
        from raftkit_core.testing.simulation.mutants.score import SEEDS as SEEDS_OF_MUTANTS

        return [
            mutant for mutant, tried in self.tried.items() if tried >= SEEDS_OF_MUTANTS and not self.kills.get(mutant)
        ]

    def markdown(self) -> str:
        """The result, as it is committed."""
        from raftkit_core.testing.simulation.mutants import MUTANTS

        tally = self.tally
        lines = [
            f"Seeds from {self.seed_base} on, {self.seconds / 60:.0f} minutes of {self.jobs} processes,"
            f" {datetime.datetime.now(tz=datetime.UTC).date().isoformat()}.",
            "",
            "| ring | seeds | wanted | simulated | steps | client operations judged | undecided | violations |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for name, ring in tally.rings.items():
            found = sum(each.ring == name for each in tally.found)
            lines.append(
                f"| {name} | {ring.seeds} | {SEEDS[name]} | {ring.simulated_s / 3600:.1f} h | {ring.steps} |"
                f" {ring.operations if name == 'runtime' else '-'} | {ring.undecided} | {found} |"
            )
        lines += [
            "",
            "| mutant | harm | ring | seeds tried | seeds that notice | first | checks |",
            "|---|---|---|---|---|---|---|",
        ]
        for mutant, tried in self.tried.items():
            kills = self.kills.get(mutant, {})
            first = str(min(kills) + 1) if kills else "-"
            checks = ", ".join(sorted(set(kills.values()))) or "-"
            each = MUTANTS[mutant]
            lines.append(f"| `{mutant}` | {each.harm} | {each.ring} | {tried} | {len(kills)} | {first} | {checks} |")
        lines += ["", "| ring | what happened | how often |", "|---|---|---|"]
        for name, ring in tally.rings.items():
            lines += [f"| {name} | {what} | {count} |" for what, count in sorted(ring.coverage.items())]
        return "\n".join(lines) + "\n"


def run_long(
    invocation: Invocation,
    *,
    jobs: int,
    seed_base: int | None,
    state: Path | None,
    report: Path | None,
) -> None:
    """Raises: CliError if it is no pass, or was interrupted: then the same command goes on."""
    run = LongRun(invocation, jobs=jobs, seed_base=seed_base or 0, state=state or STATE)
    try:
        run.run()
    except KeyboardInterrupt:
        raise CliError(
            "INTERRUPTED",
            f"interrupted after {run.tally.seeds} seeds and {sum(run.tried.values())} seeds of mutants;"
            f" {len(run.tally.found)} violations so far",
            hint="the same command goes on where this ended",
            data=run.as_data(),
        ) from None
    finally:
        if report is not None:
            report.parent.mkdir(parents=True, exist_ok=True)
            report.write_text(run.markdown(), encoding="utf-8")
    survivors = run.survivors()
    data = {**run.as_data(), "survivors": survivors}
    if run.tally.found:
        first = run.tally.found[0]
        raise CliError("SIM_VIOLATION", f"{len(run.tally.found)} violations", hint=first.command, data=data)

    def human() -> None:
        invocation.out.line(
            f"{run.tally.seeds} seeds, {run.tally.operations} operations, no violation;"
            f" {len(run.tried) - len(survivors)} of {len(run.tried)} mutants noticed"
        )

    invocation.out.result("sim", data, human)


def _share(total: int, share: int) -> range:
    """The places of the ``share``-th hundredth."""
    return range(total * share // 100, total * (share + 1) // 100)
