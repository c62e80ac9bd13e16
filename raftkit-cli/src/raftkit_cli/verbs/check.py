"""``raftkit check``: was what clients saw right? Records a history of a running cluster, or judges a recorded one."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from raftkit_cli.client import make_client, run, told_where
from raftkit_cli.endpoints import Target, resolve
from raftkit_cli.failures import CliError
from raftkit_cli.options import Duration, Invocation, VerbGroup, pass_invocation

if TYPE_CHECKING:
    from raftkit_core.network.client import ClusterClient, Consistency
    from raftkit_core.testing.linearizability import History, Report
    from raftkit_core.testing.linearizability.workload import Workload

PROGRESS_S = 1.0

FINAL_S_MIN = 10.0
"""So long at least a cluster has for the last reads."""

SHOWN = 5
"""So many findings are printed; all of them are in the JSON."""

PERF_LOADS = {"s": (50, 150.0), "m": (100, 500.0), "l": (200, 1500.0)}
"""Callers, and writes a second of all of them."""
PERF_SLOWEST_MS = 500.0

_budget = click.option(
    "--budget",
    type=click.IntRange(min=1000),
    default=2_000_000,
    show_default=True,
    metavar="STEPS",
    help="Limit of the search at one key; beyond it the history is undecided.",
)


@click.group(cls=VerbGroup, name="check", no_args_is_help=True)
def check() -> None:
    """Record what clients see, and judge whether it was right."""


@check.command("linearizable")
@click.option("--clients", type=click.IntRange(1, 64), default=6, show_default=True, metavar="N", help="At once.")
@click.option(
    "--keys", type=click.IntRange(1, 1000), default=4, show_default=True, metavar="N", help="In use at a time."
)
@click.option("--duration", type=Duration(), default="10s", show_default=True, metavar="TIME", help="How long.")
@click.option("--operations", type=click.IntRange(min=1), metavar="N", help="End after N, if that comes first.")
@click.option(
    "--consistency",
    type=click.Choice(["linearizable", "lease", "stale"]),
    default="linearizable",
    show_default=True,
    help="How reads ask. lease promises the same; stale promises little, so little is checked.",
)
@click.option(
    "--save", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE", help="Keep the history (JSON lines)."
)
@click.option("--seed", type=click.IntRange(min=0), metavar="N", help="Which operations are drawn. [default: random]")
@_budget
@pass_invocation
def linearizable(
    invocation: Invocation,
    clients: int,
    keys: int,
    duration: float,
    operations: int | None,
    consistency: Consistency,
    save: Path | None,
    seed: int | None,
    budget: int,
) -> None:
    """Use a running cluster with several clients, and judge whether every answer was right.

    Reads, writes, comparisons and deletes go to fresh keys under raftkit-check/, which are removed afterwards. Every
    call is recorded with what became of it, also those nobody knows about; then an order is looked for that one correct
    register per key could have produced. Break the cluster meanwhile: that is when it is interesting.

    Exit 0: linearizable. Exit 5: it is not, or the search ran out of its budget and nobody can say.
    """
    from raftkit_core.testing.linearizability.workload import Workload

    seed = secrets.randbelow(1 << 32) if seed is None else seed
    workload = Workload(
        prefix=f"raftkit-check/{secrets.token_hex(6)}/",
        seed=seed,
        clients=clients,
        keys=keys,
        seconds=duration,
        operations=operations,
        consistency=consistency,
        final_s=max(3 * invocation.timeout_s, FINAL_S_MIN),
    )
    recording = _Recording(invocation, resolve(invocation), workload, save)
    history = recording.run()
    _conclude(invocation, "check.linearizable", history, budget, save, recording.as_data())


@check.command("history")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False, exists=True))
@_budget
@pass_invocation
def history(invocation: Invocation, file: Path, budget: int) -> None:
    """Judge the recorded history in FILE (JSON lines, as --save and the tests write them)."""
    from raftkit_core.testing.linearizability import History

    try:
        recorded = History.load(file)
    except ValueError as error:
        raise CliError("USAGE", str(error), hint="record one: raftkit check linearizable --save FILE") from error
    _conclude(invocation, "check.history", recorded, budget, file, {"seed": recorded.header.seed})


@check.command("perf")
@click.option(
    "--load",
    "size",
    type=click.Choice(["s", "m", "l"]),
    default="s",
    show_default=True,
    help="150, 500 or 1500/s.",
)
@click.option("--duration", type=Duration(), default="10s", show_default=True, metavar="TIME", help="How long.")
@pass_invocation
def perf(invocation: Invocation, size: str, duration: float) -> None:
    """Put a steady load of writes on a running cluster, and say whether it bears it.

    PASS: nine tenths of the load were carried, no write failed, and none took longer than the shortest election timeout
    (500 ms), which is when followers begin to miss their leader. Exit 0: PASS. Exit 5: FAIL.
    """
    from raftkit_cli.load import Load
    from raftkit_cli.verbs.bench import measured

    callers, rate = PERF_LOADS[size]
    load = Load(callers, duration, rate)
    measured(invocation, load, "put", 84)
    data = {"load": size, "rate": rate, **load.as_data()}
    slowest, carried = data["latency_ms"]["max"], data["operations_per_second"]
    checks = {
        f"{carried:,.0f} of {rate:,.0f} writes a second were carried": carried >= 0.9 * rate,
        f"the slowest write took {slowest:.0f} ms, {PERF_SLOWEST_MS:.0f} ms are allowed": slowest <= PERF_SLOWEST_MS,
        f"{sum(load.errors.values())} writes failed": not load.errors,
    }
    data["checks"] = [{"check": text, "ok": ok} for text, ok in checks.items()]
    out = invocation.out
    lines = [f"{out.style('PASS', 'green') if ok else out.style('FAIL', 'red')}  {text}" for text, ok in checks.items()]
    if not all(checks.values()):
        hint = "look for slow disks and busy machines: raftkit bench, raftkit status"
        raise CliError("CHECK_FAILED", "\n".join(lines), hint=hint, data=data)
    out.result("check.perf", data, lambda: out.line("\n".join(lines)))


class _Recording:
    """Clients against the cluster, their history, and what is told on the way."""

    def __init__(self, invocation: Invocation, target: Target, workload: Workload, save: Path | None) -> None:
        from raftkit_core.testing.linearizability import History
        from raftkit_core.testing.linearizability.workload import header_of

        self._invocation = invocation
        self._target = target
        self._workload = workload
        self._save = save
        self._endpoints = target.endpoints
        self._began = time.monotonic()
        self._seconds = 0.0
        self.history = History(header=header_of(workload))

    def as_data(self) -> dict[str, Any]:
        rate = len(self.history) / self._seconds if self._seconds else 0.0
        return {
            "endpoints": self._endpoints,
            "seed": self._workload.seed,
            "clients": self._workload.clients,
            "seconds": round(self._seconds, 3),
            "operations_per_second": round(rate, 1),
        }

    def run(self) -> History:
        try:
            run(self._record())
        except BaseException:
            if self._save is not None and len(self.history):
                self.history.save(self._save)
            raise
        if not any(operation.outcome in ("ok", "refused") for operation in self.history.operations):
            raise CliError(
                "CHECK_FAILED",
                f"nothing was checked: none of {len(self.history)} operations was answered by "
                + ", ".join(self._endpoints),
                hint="raftkit status",
            )
        return self.history

    async def _record(self) -> None:
        from raftkit_core.testing.linearizability.workload import record

        await self._meet()
        note = self._invocation.out.note
        note(
            f"Recording {self._workload.clients} clients on {self._workload.keys} keys of "
            f"{', '.join(self._endpoints)} (seed {self._workload.seed})"
        )
        self._began = time.monotonic()
        telling = asyncio.create_task(self._tell())
        try:
            await record(self._workload, self._open, history=self.history)
        finally:
            telling.cancel()
            await asyncio.gather(telling, return_exceptions=True)
            self._seconds = time.monotonic() - self._began
            await self._clean_up()  # also after Ctrl-C

    async def _meet(self) -> None:
        """Every member's own address: the clients shall not all enter by one node."""
        from raftkit_core.errors import Unreachable

        try:
            async with make_client(self._invocation, self._endpoints) as client:
                members = (await client.status()).members
        except Unreachable as error:
            raise told_where(error, self._target) from error
        known = [member.node.client_address for member in members]
        self._endpoints = [*self._endpoints, *(address for address in known if address not in self._endpoints)]

    def _open(self, name: str) -> ClusterClient:
        first = int(name[1:]) % len(self._endpoints)
        return make_client(self._invocation, self._endpoints[first:] + self._endpoints[:first])

    async def _tell(self) -> None:
        while True:
            await asyncio.sleep(PROGRESS_S)
            counts = _outcomes(self.history)
            self._invocation.out.note(
                f"[{time.monotonic() - self._began:5.1f}s] {len(self.history)} operations ({_shown(counts)})"
            )

    async def _clean_up(self) -> None:
        """The keys of this check go. A cluster that cannot do that now keeps them: they are in nobody's way."""
        from raftkit_core.errors import RaftError

        with contextlib.suppress(RaftError):
            async with make_client(self._invocation, self._endpoints) as client:
                for key in sorted({operation.key for operation in self.history.operations}):
                    await client.kv_delete(key)


def _outcomes(history: History) -> dict[str, int]:
    from collections import Counter

    return dict(Counter(operation.outcome for operation in history.operations))


def _shown(outcomes: dict[str, int]) -> str:
    order = ("ok", "refused", "failed", "unknown")
    return ", ".join(f"{outcomes[name]} {name}" for name in order if name in outcomes)


def _conclude(
    invocation: Invocation, verb: str, history: History, budget: int, file: Path | None, facts: dict[str, Any]
) -> None:
    """Judge, keep what is needed to look again, and say it."""
    from raftkit_core.testing.linearizability import judge

    report = judge(history, budget=budget, search_all=True)
    if file is None and not report.is_pass:
        file = Path(f"raftkit-history-{history.header.seed}.jsonl").absolute()
        history.save(file)
    elif verb == "check.linearizable" and file is not None:
        history.save(file)
    data = _data(report, facts, file)
    if not report.is_pass:
        raise _failure(report, file, data)
    text = f"{report.operations} operations on {report.keys} keys ({_shown(report.outcomes)})"
    if "operations_per_second" in facts:
        text += f"; {facts['operations_per_second']:.0f} a second"

    def human() -> None:
        invocation.out.line(f"{invocation.out.style('LINEARIZABLE', 'green')}  {text}")
        if file is not None and verb == "check.linearizable":
            invocation.out.line(f"The history is in {file}: raftkit check history {file}")

    invocation.out.result(verb, data, human)


def _data(report: Report, facts: dict[str, Any], file: Path | None) -> dict[str, Any]:
    return {
        "verdict": report.verdict,
        "operations": report.operations,
        "outcomes": report.outcomes,
        "keys": report.keys,
        "decided_by": report.decided_by,
        "steps": report.steps,
        "findings": [
            {
                "check": found.check,
                "key": found.key,
                "message": found.message,
                "operations": list(map(str, found.operations)),
            }
            for found in report.findings
        ],
        "undecided": report.undecided,
        "history": None if file is None else str(file),
        **facts,
    }


def _failure(report: Report, file: Path | None, data: dict[str, Any]) -> CliError:
    again = f"the history is kept: raftkit check history {file}"
    if report.verdict == "undecided":
        return CliError(
            "UNDECIDED",
            f"nobody can say: the search of {len(report.undecided)} of {report.keys} keys ran out of its budget",
            hint=f"{again} --budget 20000000; or record with fewer --clients or more --keys",
            data=data,
        )
    shown = "\n".join(str(found) for found in report.findings[:SHOWN])
    more = len(report.findings) - SHOWN
    if more > 0:
        shown += f"\nand {more} more"
    return CliError(
        "NOT_LINEARIZABLE", f"NOT LINEARIZABLE  {report.operations} operations\n{shown}", hint=again, data=data
    )
