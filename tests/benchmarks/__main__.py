"""``python -m benchmarks``: one table of medians and ratios."""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from .cases.in_process import NATIVE
from .measure import Row
from .suite import CASES, FULL, QUICK_PACE, TARGETS, Pace, run


class Report(msgspec.Struct, kw_only=True):
    schema: str = "raftkit.benchmarks/1"
    started_at: str
    python: str
    machine: str
    cores: int
    pace: str
    load_before: float
    rows: list[Row]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--case", action="append", choices=list(CASES), help="only this one; may be repeated")
    parser.add_argument("--targets", action="store_true", help="only the cases that have a target")
    parser.add_argument("--quick", action="store_true", help="short runs, fewer of them, smaller snapshots and logs")
    parser.add_argument("--native", metavar="PYTHON", help="a Python with the native wheel: a row of it in process")
    parser.add_argument("--json", action="store_true", help="one JSON document instead of a table")
    parser.add_argument("--page", type=Path, help="put the table into this Markdown page, between its marks")
    parser.add_argument("--into", type=Path, help="keep every row here (JSON lines), and skip the cases that are there")
    parser.add_argument("--minutes", type=float, help="begin no further case after so long; goes on with --into")
    arguments = parser.parse_args()
    if arguments.native is not None:
        os.environ[NATIVE] = arguments.native
    pace = QUICK_PACE if arguments.quick else FULL
    names = arguments.case or list(TARGETS if arguments.targets else CASES)
    kept = [line for line in _kept(arguments.into) if line.pace == pace.name]
    names = [name for name in names if name not in {line.case for line in kept}]
    done, failed = asyncio.run(_run(names, pace, arguments.into, arguments.minutes))
    report = report_of(pace.name, [*kept, *done])
    if arguments.page is not None:
        others = [line for line in _kept(arguments.into) if line.pace != pace.name]
        write_page(reports_of(pace.name, [*kept, *done, *others]), arguments.page)
    if arguments.json:
        sys.stdout.buffer.write(msgspec.json.encode(report) + b"\n")
    else:
        print(table(report))
    for name in failed:
        print(f"failed: {name}", file=sys.stderr)
    sys.exit(1 if failed else 0)


class Done(msgspec.Struct, kw_only=True):
    """One case, whole: a line of the file of ``--into``."""

    case: str
    pace: str
    load_before: float
    seconds: float
    rows: list[Row]


async def _run(
    names: list[str], pace: Pace, into: Path | None, minutes: float | None
) -> tuple[list[Done], dict[str, None]]:
    """What was measured, and which cases failed: the others go on."""
    done: list[Done] = []
    failed: dict[str, None] = {}
    began = time.monotonic()
    for name in names:
        if minutes is not None and time.monotonic() - began > minutes * 60:
            _tell(f"{name} and what follows is left for another run")
            break
        line = Done(case=name, pace=pace.name, load_before=os.getloadavg()[0], seconds=0.0, rows=[])
        started = time.monotonic()
        try:
            line.rows = [row async for row in run([name], pace, _tell)]
        except Exception as error:
            _tell(f"{name} failed: {type(error).__name__}: {error}")
            failed[name] = None
            continue
        line.seconds = time.monotonic() - started
        _tell(f"--- {name}: {line.seconds:.0f} s")
        done.append(line)
        if into is not None:
            with into.open("ab") as file:  # only when it is whole: the next run goes on behind it
                file.write(msgspec.json.encode(line) + b"\n")
    return done, failed


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _kept(into: Path | None) -> list[Done]:
    """The cases that an earlier run has measured."""
    if into is None or not into.exists():
        return []
    return [msgspec.json.decode(line, type=Done) for line in into.read_bytes().splitlines()]


def report_of(pace: str, lines: Sequence[Done]) -> Report:
    """What was measured at one pace, in the order of the cases."""
    order = list(CASES)
    return Report(
        started_at=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        python=platform.python_version(),
        machine=platform.machine(),
        cores=os.cpu_count() or 0,
        pace=pace,
        load_before=max([line.load_before for line in lines], default=os.getloadavg()[0]),
        rows=[row for line in sorted(lines, key=lambda line: order.index(line.case)) for row in line.rows],
    )


def reports_of(pace: str, lines: Sequence[Done]) -> list[Report]:
    """Of ``pace``, and of other paces for the cases that were measured at those only."""
    measured = {line.case for line in lines if line.pace == pace}
    paces = [pace, *sorted({line.pace for line in lines if line.case not in measured})]
    return [
        report_of(each, [line for line in lines if line.pace == each and (each == pace or line.case not in measured)])
        for each in paces
    ]


BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"


def write_page(reports: Sequence[Report], page: Path) -> None:
    """Replace what is between the marks of ``page`` by the figures of ``reports``, a table for each pace."""
    tables = "\n\n".join(markdown(report) for report in reports)
    head, _, rest = page.read_text().partition(BEGIN)
    _, _, tail = rest.partition(END)
    page.write_text(f"{head}{BEGIN}\n\n{tables}\n\n{END}{tail}")


def markdown(report: Report) -> str:
    """The figures as a table for a page."""
    lines = [
        f"CPython {report.python}, {report.cores} cores ({report.machine}), {report.pace} runs of"
        f" {report.started_at[:10]}, load {report.load_before:.1f} at the start; medians.",
        "",
        "| case | contender | median | p50 / p99 ms | ratio | target |",
        "|---|---|---|---|---|---|",
    ]
    for row in report.rows:
        number = ",.0f" if row.median >= 100 else ".2f"
        times = "" if row.p50_ms is None else f"{row.p50_ms:.2f} / {row.p99_ms or 0:.2f}"
        ratio = "" if row.ratio is None else f"{row.ratio:.2f} × {row.against}"
        target = f"{row.target}: **{row.verdict}**" if row.verdict else ""
        lines.append(
            f"| {row.case} | {row.contender}: {row.setting.durability}; {row.setting.client}"
            f"{'; ' + row.note if row.note else ''}"
            f" | {row.median:{number}} {row.unit} | {times} | {ratio} | {target} |"
        )
    return "\n".join(lines)


def table(report: Report) -> str:
    """For people: what was measured, beside what it was measured against."""
    lines = [
        f"python {report.python}, {report.cores} cores ({report.machine}), {report.pace},"
        f" load {report.load_before:.1f} at the start",
        f"{'':30s} {'median':>12s} {'lowest':>12s} {'highest':>12s}  {'p50 ms':>8s} {'p99 ms':>8s}  ratio, target",
    ]
    case = None
    for row in report.rows:
        if row.case != case:
            case = row.case
            setting = row.setting
            lines.append(f"\n{case} ({row.unit})")
        setting = row.setting
        p50 = "" if row.p50_ms is None else f"{row.p50_ms:.3f}"
        p99 = "" if row.p99_ms is None else f"{row.p99_ms:.3f}"
        ratio = "" if row.ratio is None else f"{row.ratio:.2f} x {row.against}"
        target = f" ({row.target}: {row.verdict})" if row.verdict else ""
        number = ".0f" if row.median >= 100 else ".3f"
        lines.append(
            f"{row.contender:30s} {row.median:12,{number}} {row.lowest:12,{number}} {row.highest:12,{number}}"
            f"  {p50:>8s} {p99:>8s}  {ratio}{target}"
        )
        lines.append(
            f"    {setting.durability}; {setting.processes}; {setting.transport}; {setting.payload}; {setting.client}"
            + (f"; {setting.outstanding} outstanding" if setting.outstanding else "")
            + (f"; {row.note}" if row.note else "")
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
