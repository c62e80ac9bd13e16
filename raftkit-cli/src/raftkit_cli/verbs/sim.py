"""``raftkit sim``: simulated clusters under faults, checked at every step, replayable by their seeds."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from pathlib import Path

import click

from raftkit_cli.failures import CliError
from raftkit_cli.options import Invocation, Verb, pass_invocation

BOTH = ("engine", "runtime")
DEFAULT_SEEDS = 20


@click.command(cls=Verb, name="sim")
@click.option("--seeds", type=click.IntRange(1), metavar="N", help="How many seeds of each ring. [default: 20]")
@click.option("--seed", type=click.IntRange(0), metavar="S", help="This one seed.")
@click.option("--minutes", type=click.FloatRange(0, min_open=True), metavar="M", help="As many seeds as that allows.")
@click.option("--seed-base", type=click.IntRange(0), help="The first seed. [default: 0; with --ci by the date]")
@click.option("--ring", type=click.Choice((*BOTH, "both")), default="both", show_default=True, help="What to simulate.")
@click.option("--profile", default="mixed", show_default=True, metavar="NAME", help="Which faults: see below.")
@click.option("--seconds", type=click.FloatRange(0.5, 3600), help="Simulated seconds of a seed. [default: by ring]")
@click.option("--jobs", type=click.IntRange(1, 64), default=2, show_default=True, help="Processes.")
@click.option("--mutant", metavar="ID", help="Plant a known bug; 'list' names them all.")
@click.option(
    "--scripts",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("sim-failures"),
    show_default=True,
    help="Where failing scenarios are saved as tests, made short.",
)
@click.option("--ci", is_flag=True, help="The share of every change: 8 minutes on two cores.")
@click.option("--long", "is_long", is_flag=True, help="The long suite: hours, resumable.")
@click.option("--state", type=click.Path(path_type=Path, dir_okay=False), help="Where --long keeps what is done.")
@click.option("--report", type=click.Path(path_type=Path, dir_okay=False), help="Where --long writes its table.")
@pass_invocation
def sim(
    invocation: Invocation,
    seeds: int | None,
    seed: int | None,
    minutes: float | None,
    seed_base: int | None,
    ring: str,
    profile: str,
    seconds: float | None,
    jobs: int,
    mutant: str | None,
    scripts: Path,
    ci: bool,
    is_long: bool,
    state: Path | None,
    report: Path | None,
) -> None:
    """Simulate clusters under faults and check every step.

    A seed is one run: a cluster on simulated time, network and disks, whose faults and client operations are drawn from
    the seed. The same seed gives the same run, byte by byte. The engine ring drives engines alone, many seeds a second;
    the runtime ring whole nodes with their loops, stores and transports, and judges what clients saw.

    A violation is printed with the command that replays it, made short, and saved as a test. Exit 5: something is
    violated. Exit 11: nothing is, but what matters never happened, so the run proves too little.

    \b
    raftkit sim --seeds 200
    raftkit sim --ring engine --seed 17 --profile storm
    raftkit sim --mutant commit-minus-one
    """
    _check_options(seeds=seeds, seed=seed, minutes=minutes, seed_base=seed_base, ci=ci, is_long=is_long)
    if not is_long and (state is not None or report is not None):
        raise click.UsageError("--state and --report belong to --long")
    if mutant == "list":
        _list_mutants(invocation)
        return
    if ci or is_long:
        if mutant is not None or profile != "mixed" or seconds is not None or ring != "both":
            raise click.UsageError("--ci and --long choose rings, profiles, seconds and mutants themselves")
        _run_suite(invocation, ci=ci, jobs=jobs, seed_base=seed_base, scripts=scripts, state=state, report=report)
        return
    from raftkit_cli.sim.runs import SeedRun, conclude

    rings = _rings(ring, profile, mutant)
    run = SeedRun(invocation, rings=rings, profile=profile, seconds=seconds, mutant=mutant, jobs=jobs, scripts=scripts)
    first = (seed if seed is not None else seed_base) or 0
    count = None if minutes is not None else 1 if seed is not None else seeds or DEFAULT_SEEDS
    chosen = range(first, first + count) if count is not None else _until(time.monotonic() + 60 * (minutes or 0), first)
    try:
        run.run(run.jobs_of(chosen), None if count is None else count * len(rings))
    except KeyboardInterrupt:
        raise CliError(
            "INTERRUPTED",
            f"interrupted after {run.tally.seeds} seeds: {len(run.tally.found)} violations so far",
            hint="run the rest: --seed-base",
            data=run.tally.as_data(),
        ) from None
    conclude(invocation, run.tally)


def _check_options(
    *, seeds: int | None, seed: int | None, minutes: float | None, seed_base: int | None, ci: bool, is_long: bool
) -> None:
    """Raises: click.UsageError for options that contradict each other."""
    chosen = {
        "--seeds": seeds is not None,
        "--seed": seed is not None,
        "--minutes": minutes is not None,
        "--ci": ci,
        "--long": is_long,
    }
    given = [name for name, is_given in chosen.items() if is_given]
    if len(given) > 1:
        raise click.UsageError(f"{' and '.join(given)} exclude each other")
    if seed is not None and seed_base is not None:
        raise click.UsageError("--seed names the one seed already; leave out --seed-base")


def _rings(ring: str, profile: str, mutant: str | None) -> tuple[str, ...]:
    """Which rings to run: those asked for that know the profile, and the mutant's own."""
    import difflib

    from raftkit_core.engine import COMPILED
    from raftkit_core.testing.simulation.mutants import MUTANTS
    from raftkit_core.testing.simulation.rings import RINGS

    wanted = BOTH if ring == "both" else (ring,)
    if mutant is not None:
        if mutant not in MUTANTS:
            near = difflib.get_close_matches(mutant, MUTANTS, n=1)
            suggestion = f"; did you mean {near[0]!r}?" if near else ""
            raise click.UsageError(f"there is no mutant {mutant!r}{suggestion} (--mutant list names them all)")
        if MUTANTS[mutant].ring not in wanted:
            raise click.UsageError(f"the mutant {mutant} lives in the {MUTANTS[mutant].ring} ring")
        if COMPILED:
            raise click.UsageError("no bug can be planted in an engine of native code: install the pure wheel")
        wanted = (MUTANTS[mutant].ring,)
    rings = tuple(name for name in wanted if profile in RINGS[name].profiles)
    if not rings:
        known = "; ".join(f"{name} ring: {', '.join(RINGS[name].profiles)}" for name in wanted)
        raise click.UsageError(f"there is no profile {profile!r}. {known}")
    return rings


def _until(deadline: float, first: int) -> Iterator[int]:
    for seed in itertools.count(first):
        if time.monotonic() >= deadline:
            return
        yield seed


def _list_mutants(invocation: Invocation) -> None:
    from raftkit_core.testing.simulation.mutants import MUTANTS

    found = list(MUTANTS.values())
    data = {
        "mutants": [
            {"id": each.id, "harm": each.harm, "ring": each.ring, "what": each.what, "equivalent": each.equivalent}
            for each in found
        ]
    }

    def human() -> None:
        invocation.out.table(
            ("MUTANT", "HARM", "RING", "WHAT IS WRONG"),
            [(each.id, "-" if each.equivalent else each.harm, each.ring, each.what) for each in found],
        )

    invocation.out.result("sim", data, human)


def _run_suite(
    invocation: Invocation,
    *,
    ci: bool,
    jobs: int,
    seed_base: int | None,
    scripts: Path,
    state: Path | None,
    report: Path | None,
) -> None:
    if ci:
        from raftkit_cli.sim.ci import run_ci

        run_ci(invocation, jobs=jobs, seed_base=seed_base, scripts=scripts)
    else:
        from raftkit_cli.sim.long import run_long

        run_long(invocation, jobs=jobs, seed_base=seed_base, state=state, report=report)
