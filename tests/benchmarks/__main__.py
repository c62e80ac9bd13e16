"""``python -m benchmarks``: one table of medians and ratios."""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import sys
import time
from pathlib import Path

import msgspec

from .measure import Row
from .suite import CASES, FULL, QUICK_PACE, run


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
    parser.add_argument("--quick", action="store_true", help="short runs, fewer of them: under four minutes in all")
    parser.add_argument("--json", action="store_true", help="one JSON document instead of a table")
    parser.add_argument("--page", type=Path, help="put the table into this Markdown page, between its marks")
    parser.add_argument("--into", type=Path, help="keep every row here (JSON lines), and skip the cases that are there")
    arguments = parser.parse_args()
    pace = QUICK_PACE if arguments.quick else FULL
    names = arguments.case or list(CASES)
    kept = _kept(arguments.into)
    names = [name for name in names if name not in {case for case, _ in kept}]
    report = Report(
        started_at=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        python=platform.python_version(),
        machine=platform.machine(),
        cores=os.cpu_count() or 0,
        pace="quick" if arguments.quick else "full",
        load_before=os.getloadavg()[0],
        rows=[row for _, row in kept],
    )
    asyncio.run(_run(names, pace, report, arguments.into))
    if arguments.page is not None:
        write_page(report, arguments.page)
    if arguments.json:
        sys.stdout.buffer.write(msgspec.json.encode(report) + b"\n")
    else:
        print(table(report))


async def _run(names: list[str], pace: object, report: Report, into: Path | None) -> None:
    for name in names:
        rows: list[Row] = []
        async for row in run([name], pace, lambda text: print(text, file=sys.stderr, flush=True)):  # type: ignore[arg-type]
            rows.append(row)
        report.rows += rows
        if into is not None and rows:
            with into.open("ab") as file:  # only when it is whole: the next run goes on behind it
                file.writelines(msgspec.json.encode((name, row)) + b"\n" for row in rows)


def _kept(into: Path | None) -> list[tuple[str, Row]]:
    if into is None or not into.exists():
        return []
    return [msgspec.json.decode(line, type=tuple[str, Row]) for line in into.read_bytes().splitlines()]


BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"


def write_page(report: Report, page: Path) -> None:
    """Replace what is between the marks of ``page`` by the figures of ``report``."""
    head, _, rest = page.read_text().partition(BEGIN)
    _, _, tail = rest.partition(END)
    page.write_text(f"{head}{BEGIN}\n\n{markdown(report)}\n\n{END}{tail}")


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
        target = "" if not row.must else f"must {row.must:g}, goal {row.goal:g}: **{row.verdict}**"
        lines.append(
            f"| {row.case} | {row.contender}: {row.setting.durability}; {row.setting.client}"
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
        target = "" if row.must is None else f" (must {row.must:g}, goal {row.goal:g}: {row.verdict})"
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
