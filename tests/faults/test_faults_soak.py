"""Trials of all kinds until at least 100 nodes were killed. Resumable; prints as it goes; about 8 minutes.

    uv run --group faults pytest -m soak tests/faults/test_faults_soak.py -n 0 -s

Every round is a new cluster, seeded by its number: kills, pauses, hand-overs, power cuts, bad links. Its history must
be linearizable, its nodes must come to one state, nothing acknowledged may be missing. The table it prints at the end
is kept in docs/process-results.md.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from fuse_disk import why_not
from nemeses import PowerCuts, fuse_disks, kills, on, one_way, partitions, pauses, proxied, repeats, slow, transfers
from nodes import Nemesis, RealCluster, Trial, trial

sys.path.append(str(Path(__file__).parents[1] / "soak"))
from ledger import SOAK_DIR, Ledger, percentile, say

KILLS = 100
POWER_CUTS = 30
SEED = 20261126
LINKS = {"slow links": slow, "one-way cuts": one_way, "partitions": partitions, "repeated frames": repeats}

Round = Callable[[int, Path], Awaitable[tuple[Trial, Counter[str]]]]


async def processes(nemesis: Nemesis, count: int, machine: str, seed: int, folder: Path) -> tuple[Trial, Counter[str]]:
    with RealCluster(folder, count, machine=machine) as cluster:
        cluster.start()
        return await trial(cluster, nemesis, seed=seed, keep=SOAK_DIR), cluster.counts


async def power(machine: str, seed: int, folder: Path) -> tuple[Trial, Counter[str]]:
    with fuse_disks(folder, 3) as disks:
        folders = {name: disk.mount / "data" for name, disk in disks.items()}
        with RealCluster(folder, machine=machine, folders=folders) as cluster:
            cluster.start()
            return await trial(cluster, PowerCuts(disks, 8), seed=seed, keep=SOAK_DIR), cluster.counts


async def links(name: str, seed: int, folder: Path) -> tuple[Trial, Counter[str]]:
    async with proxied(folder) as (cluster, links):
        return await trial(cluster, on(links, LINKS[name]), seed=seed, keep=SOAK_DIR), cluster.counts


def plan() -> list[tuple[str, Round]]:
    """One of each kind, over and over."""
    more_kills = partial(kills, rounds=12)
    rounds: list[tuple[str, Round]] = [
        ("kill -9, 3 nodes", partial(processes, more_kills, 3, "kv")),
        ("kill -9, 5 nodes", partial(processes, more_kills, 5, "kv")),
        ("kill -9, 3 nodes, sqlite-kv", partial(processes, more_kills, 3, "sqlite-kv")),
        ("SIGSTOP", partial(processes, pauses, 3, "kv")),
        ("hand-overs and kills", partial(processes, transfers, 3, "kv")),
    ]
    if why_not() is None:
        rounds += [("power cuts", partial(power, "kv")), ("power cuts, sqlite-kv", partial(power, "sqlite-kv"))]
    if sys.platform == "linux":
        rounds += [(name, partial(links, name)) for name in LINKS]
    return rounds


@pytest.mark.soak
@pytest.mark.timeout(7200)
def test_100_killed_nodes_and_every_other_fault_lose_nothing(tmp_path: Path) -> None:
    ledger = Ledger("faults")
    rounds = plan()
    if (reason := why_not()) is not None:
        say(f"no power cuts: {reason}")
    while not is_enough(ledger.rounds, len(rounds)):
        number = len(ledger.rounds)
        name, run = rounds[number % len(rounds)]
        folder = tmp_path / f"round{number}"
        folder.mkdir()
        began = time.monotonic()
        result, counts = asyncio.run(run(SEED + number, folder))
        ledger.add(
            {
                "round": number,
                "kind": name,
                "faults": dict(counts),
                "seconds": round(time.monotonic() - began, 1),
                "operations": result.report.operations,
                "outcomes": result.report.outcomes,
                "acknowledged": result.acknowledged,
                "lost": len(result.report.findings),
                "undecided": len(result.report.undecided),
                "recovery_s": round(result.recovery_s, 2),
            }
        )
        say(f"round {number + 1}, {name}: {result.report.operations} operations, {dict(counts)}; 0 lost, 0 undecided")
    table = table_of(ledger.rounds)
    (SOAK_DIR / "faults.md").write_text(table)
    say(table)
    assert all(entry["lost"] == entry["undecided"] == 0 for entry in ledger.rounds)


def is_enough(rounds: list[dict[str, Any]], kinds: int) -> bool:
    faults = total(rounds)
    has_power = any("power" in entry["kind"] for entry in rounds) or why_not() is not None
    return (
        len(rounds) >= 2 * kinds
        and faults["kill -9"] >= KILLS
        and (why_not() is not None or (has_power and faults["power cut"] >= POWER_CUTS))
    )


def total(rounds: list[dict[str, Any]]) -> Counter[str]:
    counts: Counter[str] = Counter()
    for entry in rounds:
        counts.update(entry["faults"])
    return counts


def table_of(rounds: list[dict[str, Any]]) -> str:
    lines = [
        "| rounds of | count | faults | operations | changes acknowledged | unknown | lost | undecided | recovery |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for kind in dict.fromkeys(entry["kind"] for entry in rounds):
        lines.append(_row(kind, [entry for entry in rounds if entry["kind"] == kind]))
    lines.append(_row("**all**", rounds))
    waits = [entry["recovery_s"] for entry in rounds]
    lines.append("")
    lines.append(
        f"From the end of the faults to the next answered write: median {percentile(waits, 0.5):.2f} s, longest"
        f" {max(waits):.2f} s (nodes that must be started included)."
    )
    return "\n".join(lines) + "\n"


def _row(kind: str, rounds: list[dict[str, Any]]) -> str:
    faults = ", ".join(f"{count} {name}" for name, count in sorted(total(rounds).items()))
    cells = [
        kind,
        str(len(rounds)),
        faults,
        str(sum(entry["operations"] for entry in rounds)),
        str(sum(entry["acknowledged"] for entry in rounds)),
        str(sum(entry["outcomes"].get("unknown", 0) for entry in rounds)),
        str(sum(entry["lost"] for entry in rounds)),
        str(sum(entry["undecided"] for entry in rounds)),
        f"{max(entry['recovery_s'] for entry in rounds):.2f} s",
    ]
    return "| " + " | ".join(cells) + " |"
