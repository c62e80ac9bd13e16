"""One case: several contenders, measured in turns, so that a slow moment of the machine meets all of them."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import msgspec


class Setting(msgspec.Struct, frozen=True, kw_only=True):
    """What a figure depends on. Two figures may be compared where all of it is alike, or the difference is named."""

    durability: str
    processes: str
    transport: str
    payload: str
    client: str
    outstanding: int = 0


class Sample(msgspec.Struct, frozen=True):
    """One run: operations per second (or another figure), and latencies in milliseconds where they were taken."""

    value: float
    p50_ms: float | None = None
    p99_ms: float | None = None


class Row(msgspec.Struct, kw_only=True):
    """One contender of one case. ``ratio`` is this row's median over that of ``against``."""

    case: str
    contender: str
    unit: str
    setting: Setting
    median: float
    lowest: float
    highest: float
    runs: int
    p50_ms: float | None = None
    p99_ms: float | None = None
    against: str | None = None
    ratio: float | None = None
    must: float | None = None
    goal: float | None = None
    at_most: bool = False
    """The figure should be small: ``must`` and ``goal`` are upper bounds."""
    note: str = ""

    @property
    def verdict(self) -> str:
        """``goal``, ``must``, ``missed``, ``below the goal`` where there is no must, or nothing without a target."""
        measured = self.ratio if self.against is not None else self.median
        if measured is None or (self.must is None and self.goal is None):
            return ""
        sign = -1 if self.at_most else 1
        if self.goal is not None and sign * measured >= sign * self.goal:
            return "goal"
        if self.must is None:
            return "below the goal"
        return "must" if sign * measured >= sign * self.must else "missed"

    @property
    def target(self) -> str:
        """In words; nothing without one."""
        wanted = [f"must {self.must:g}"] if self.must is not None else []
        wanted += [f"goal {self.goal:g}"] if self.goal is not None else []
        return ", ".join(wanted)


class Contender(msgspec.Struct, kw_only=True):
    """Something to measure: ``run`` is awaited several times, in turns with the others of its case."""

    name: str
    setting: Setting
    run: Callable[[], Awaitable[Sample]]
    unit: str = "ops/s"
    against: str | None = None
    must: float | None = None
    goal: float | None = None
    at_most: bool = False
    note: str = ""


def single(case: str, contender: str, unit: str, setting: Setting, value: float, **more: Any) -> Row:
    """What is measured once: it takes long, or says enough."""
    return Row(
        case=case,
        contender=contender,
        unit=unit,
        setting=setting,
        median=value,
        lowest=value,
        highest=value,
        runs=1,
        **more,
    )


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which ``share`` of ``values`` lie."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def sample(operations: int, seconds: float, latencies: Sequence[float]) -> Sample:
    """Operations per second, with latencies given in seconds."""
    if not latencies:
        return Sample(operations / seconds)
    return Sample(operations / seconds, percentile(latencies, 0.5) * 1000, percentile(latencies, 0.99) * 1000)


async def measure(
    case: str, contenders: Sequence[Contender], runs: int, progress: Callable[[str], None] = lambda _: None
) -> list[Row]:
    """Medians of ``runs`` turns, after one turn that does not count."""
    samples: dict[str, list[Sample]] = {contender.name: [] for contender in contenders}
    for turn in range(runs + 1):
        for contender in contenders:
            gc.collect()
            started = time.perf_counter()
            result = await contender.run()
            progress(f"{case}: {contender.name}: {result.value:,.0f} {contender.unit}" + ("" if turn else " (warm-up)"))
            if turn or time.perf_counter() - started > 20:
                samples[contender.name].append(result)
    rows = [_row(case, contender, samples[contender.name]) for contender in contenders]
    medians = {row.contender: row.median for row in rows}
    for row in rows:
        if row.against in medians:
            row.ratio = row.median / medians[row.against]
    return rows


def _row(case: str, contender: Contender, samples: Sequence[Sample]) -> Row:
    values = [one.value for one in samples]
    p50s = [one.p50_ms for one in samples if one.p50_ms is not None]
    p99s = [one.p99_ms for one in samples if one.p99_ms is not None]
    return Row(
        case=case,
        contender=contender.name,
        unit=contender.unit,
        setting=contender.setting,
        median=statistics.median(values),
        lowest=min(values),
        highest=max(values),
        runs=len(values),
        p50_ms=statistics.median(p50s) if p50s else None,
        p99_ms=statistics.median(p99s) if p99s else None,
        against=contender.against,
        must=contender.must,
        goal=contender.goal,
        at_most=contender.at_most,
        note=contender.note,
    )
