"""All checks on one history, in the order of their price, and one verdict."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from raftkit_core.testing.linearizability.durability import check_durability, check_sessions
from raftkit_core.testing.linearizability.findings import Finding, Report, by_key, finding
from raftkit_core.testing.linearizability.history import DurableWrite, History, Operation
from raftkit_core.testing.linearizability.log_order import explains
from raftkit_core.testing.linearizability.search import DEFAULT_BUDGET, OutOfBudget, search
from raftkit_core.testing.linearizability.settling import settle, without_repeats
from raftkit_core.testing.linearizability.witness import check_witness
from raftkit_core.testing.linearizability.zones import can_decide, check_zones

SECOND_OPINION = 5_000
"""Steps of the search for a key that the order of the log has explained."""


def judge(
    history: History | Sequence[Operation],
    *,
    durable: Sequence[DurableWrite] | None = None,
    budget: int = DEFAULT_BUDGET,
    search_all: bool = False,
    first_only: bool = False,
) -> Report:
    """Is this history one a single, correct register per key could have produced? All keys begin absent.

    ``durable`` is the whole final log where somebody has it (default: the history's own). ``budget`` bounds the search
    of one key; a search that is not finished makes the verdict ``undecided``. ``search_all`` searches also the keys
    that the zone check can decide, and reports where the two disagree. ``first_only``: what the cheap checks find is
    enough, and no key is searched then.
    """
    if isinstance(history, History):
        durable = history.durable if durable is None else durable
        operations: Sequence[Operation] = history.operations
    else:
        operations = history
    report = Report(operations=len(operations), outcomes=dict(Counter(o.outcome for o in operations)))
    report.findings += check_sessions(operations, durable)
    operations = without_repeats(operations)
    report.findings += check_witness(operations)
    if durable is not None:
        report.findings += check_durability(operations, durable)
    keys = {} if first_only and report.findings else by_key(settle(operations, durable))
    report.keys = len({operation.key for operation in operations})
    decided: Counter[str] = Counter()
    log: dict[str, list[DurableWrite]] = {}
    for entry in durable or ():
        log.setdefault(entry.key, []).append(entry)
    for key, of_key in keys.items():
        is_explained = durable is not None and explains(of_key, log.get(key, ()))
        findings = _judge_key(key, of_key, budget, search_all, report, decided, is_explained)
        report.findings += findings
    report.decided_by = dict(decided)
    if report.findings:
        report.verdict = "violation"
    elif report.undecided:
        report.verdict = "undecided"
    return report


def _judge_key(
    key: str,
    operations: list[Operation],
    budget: int,
    search_all: bool,
    report: Report,
    decided: Counter[str],
    is_explained: bool,
) -> list[Finding]:
    zoned: list[Finding] | None = None
    if can_decide(operations):
        zoned = check_zones(operations)
        decided["zones"] += 1
        if not search_all:
            return zoned
    if is_explained:
        # The search says so too, where that is cheap: two judges.
        decided["log order"] += 1
        budget = budget if search_all else min(budget, SECOND_OPINION)
    try:
        searched, steps = search(operations, budget=budget)
    except OutOfBudget:
        report.steps += budget
        if zoned is None and not is_explained:
            report.undecided.append(key)
        return zoned or []
    report.steps += steps
    if not is_explained:
        decided["search"] += 1
    # The zones look at values alone, so the search may see more; the other way round one of them is wrong.
    if zoned and not searched:
        return [*zoned, finding("judge", key, "the zone check and the search disagree: one of them has a bug")]
    if searched and is_explained:
        return [*searched, finding("judge", key, "the order of the log and the search disagree: one of them has a bug")]
    return searched or zoned or []
