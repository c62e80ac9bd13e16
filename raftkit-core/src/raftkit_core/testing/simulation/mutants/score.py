"""How soon each mutant dies: what was measured once, kept beside the mutants, and replayed for ever after."""

from __future__ import annotations

from pathlib import Path

import msgspec

from raftkit_core.testing.simulation.mutants.mutant import MUTANTS, Mutant

RECORD = Path(__file__).with_name("recorded.json")
SEEDS = 50
"""How many seeds a mutant is tried on, from 0."""


class Kill(msgspec.Struct, frozen=True):
    seed: int
    check: str


class Record(msgspec.Struct):
    """``tried`` seeds from 0 on; ``kills`` are the first few that noticed. What no seed is known to notice, an ordinary
    ``test`` does."""

    tried: int
    kills: list[Kill]
    profile: str = "mixed"
    test: str = ""


def load() -> dict[str, Record]:
    """The recorded kills, by mutant."""
    return msgspec.json.decode(RECORD.read_bytes(), type=dict[str, Record])


def save(records: dict[str, Record]) -> None:
    known = {each: records[each] for each in MUTANTS if each in records}
    rows = [f"  {msgspec.json.encode(each).decode()}: {msgspec.json.encode(known[each]).decode()}" for each in known]
    RECORD.write_text("{\n" + ",\n".join(rows) + "\n}\n")


def countable() -> list[Mutant]:
    """Those that can be noticed at all."""
    return [each for each in MUTANTS.values() if not each.equivalent]


def soon_killed(records: dict[str, Record]) -> set[str]:
    """Those that one of the first seeds notices."""
    return {
        each.id
        for each in countable()
        if each.id in records and (kills := records[each.id].kills) and kills[0].seed < SEEDS
    }


def _share(ids: set[str], mutants: list[Mutant]) -> str:
    count = sum(each.id in ids for each in mutants)
    return f"{count} ({100 * count // max(1, len(mutants))} %)"


def table(records: dict[str, Record]) -> str:
    """All mutants as a Markdown table, after a summary."""
    mutants = countable()
    killed = {each.id: records[each.id] for each in mutants if each.id in records and records[each.id].kills}
    safety = [each for each in mutants if each.harm == "safety"]
    tested = {each.id for each in mutants if each.id in records and records[each.id].test and each.id not in killed}
    soon = soon_killed(records)
    lines = [
        f"{len(mutants)} planted bugs: {len(safety)} against safety, {len(mutants) - len(safety)} against liveness."
        f" Noticed by the simulator: {len(killed)}, by ordinary tests only: {len(tested)}; of those against safety"
        f" {sum(each.id in killed or each.id in tested for each in safety)}."
        f" Within {SEEDS} seeds {_share(soon, mutants)}, of those against safety {_share(soon, safety)}.",
        "",
        "| mutant | what is wrong | harm | ring | seeds to kill | check |",
        "|---|---|---|---|---|---|",
    ]
    for each in mutants:
        record = killed.get(each.id)
        seeds, check = ("survives", "") if record is None else (str(record.kills[0].seed + 1), record.kills[0].check)
        if each.id in tested:
            seeds, check = "-", f"`{records[each.id].test}`"
        if record is not None and record.profile != "mixed":
            seeds += f" ({record.profile})"
        lines.append(f"| `{each.id}` | {each.what} | {each.harm} | {each.ring} | {seeds} | {check} |")
    lines += [
        "",
        "Nothing can notice these, so they do not count:",
        "",
        "| mutant | what is wrong | why it is no bug |",
    ]
    lines.append("|---|---|---|")
    lines += [f"| `{each.id}` | {each.what} | {each.equivalent} |" for each in MUTANTS.values() if each.equivalent]
    return "\n".join(lines) + "\n"
