"""The rules a run is judged by, each with its number. ``docs/simulation.md`` is made from this list."""

from __future__ import annotations

import msgspec


class Rule(msgspec.Struct, frozen=True):
    """``by`` says what looks: ``oracle`` (both disks and wire of the runtime ring), ``ring`` (the engine ring),
    ``history`` (the judges of client histories), ``ending`` (what must come about after the faults), or a test."""

    id: str
    title: str
    by: tuple[str, ...]


def _rule(id: str, title: str, *by: str) -> Rule:
    return Rule(id, title, by)


_ALL = (
    _rule("S1", "a leader id has one leader; in single-term mode a term has one", "oracle", "ring"),
    _rule("S2", "who leads was granted by a quorum, its own vote durable", "oracle", "ring"),
    _rule("S3", "a durable vote never falls; nobody votes for a shorter log", "oracle", "ring"),
    _rule("S4", "a vote counts as granted only if somebody won it", "oracle", "ring"),
    _rule(
        "S5", "committed: an entry of the leader's own, durable on a quorum of every configuration", "oracle", "ring"
    ),
    _rule("S6", "what is committed at an index never changes, anywhere", "oracle", "ring"),
    _rule("S7", "a new leader holds everything a lower one committed", "oracle", "ring"),
    _rule("S8", "a log id names one entry after one entry, everywhere", "oracle", "ring"),
    _rule("S9", "no hole in a log, no entry of an earlier leader after one of a later", "oracle", "ring"),
    _rule("S10", "a leader never truncates", "oracle", "ring"),
    _rule("S11", "nothing committed or purged is truncated", "oracle", "ring"),
    _rule("S12", "machines apply every entry once, in order, with equal results and states", "oracle", "ring"),
    _rule(
        "S13", "purged ≤ snapshot (or a durable machine's position) ≤ committed ≤ last, on the disk", "oracle", "ring"
    ),
    _rule("S14", "votes, committed, snapshots and purges never fall on a disk", "oracle", "ring"),
    _rule("S15", "nothing leaves a node before it is durable; nothing is applied before either", "oracle", "ring"),
    _rule("S16", "storage sees writes one at a time, in order", "tests/runtime/test_log_writer.py", "oracle"),
    _rule("S17", "what was acknowledged to a leader is lost only to a greater one", "oracle", "ring"),
    _rule("S18", "memberships change step by step, one at a time", "oracle", "ring"),
    _rule("S19", "only voters campaign", "oracle", "ring"),
    _rule(
        "S20", "a leader outside of the membership is not counted (S5), and stops when its removal is committed", "ring"
    ),
    _rule("S21", "client histories are linearizable", "history", "ring"),
    _rule("S22", "at one moment at most one node holds a read lease", "oracle", "ring"),
    _rule(
        "S23",
        "a write that failed for certain never takes effect; one that succeeded does, once, as does one of a session",
        "oracle",
        "history",
    ),
    _rule("S24", "a snapshot is of what is committed, and restores the same state everywhere", "oracle", "ring"),
    _rule("S25", "only what a snapshot or a durable machine stands for is purged", "oracle"),
    _rule("S26", "a leader believes no more than what a follower said", "oracle", "ring"),
    _rule(
        "S27",
        "strangers and garbage change nothing",
        "tests/network/test_wire.py",
        "tests/network/test_memory_hub.py",
    ),
    _rule("S28", "after a failed write a node says nothing more", "oracle"),
    _rule(
        "S29",
        "queues are bounded, and nothing is left when a node has ended",
        "oracle",
        "ending",
        "tests/runtime/test_hanging_adapters.py",
    ),
    _rule("S30", "one seed is one run, in every process", "tests/simulation/test_runtime_run.py"),
    _rule("S31", "a session is not ended while its client may count on it", "oracle"),
    _rule("V1", "after the faults all members hold the same, within 30 timeouts", "ending", "ring"),
    _rule("V2", "then ten writes and ten reads succeed, within 10 timeouts", "ending", "ring"),
    _rule("V3", "V1 and V2 for a random quorum while the others are dead, mute or deaf for ever", "ending"),
    _rule("V4", "V1 without any new write", "ending"),
    _rule(
        "V5",
        "after the leader is killed another serves within 3 timeouts",
        "tests/simulation/test_liveness_rules.py",
        "ring",
    ),
    _rule("V6", "a lagging member catches up while writes go on", "tests/simulation/test_liveness_rules.py"),
    _rule("V7", "a joint configuration is left; every change ends", "tests/simulation/test_liveness_rules.py", "ring"),
    _rule("V8", "a follower that hangs delays nobody", "tests/simulation/test_liveness_rules.py"),
    _rule("V9", "a removed node does not stop writes", "tests/simulation/test_liveness_rules.py"),
    _rule(
        "V10",
        "every call ends in time, and so does every run",
        "oracle",
        "ending",
        "ring",
        "tests/simulation/test_liveness_rules.py",
    ),
    _rule("V11", "without faults nobody is elected after the first", "tests/simulation/test_liveness_rules.py", "ring"),
    _rule("V12", "a quick restart causes at most one election", "tests/simulation/test_liveness_rules.py"),
    _rule("V13", "a session whose client is gone ends", "ending"),
    _rule("V14", "a leader that no quorum follows any more gives up in time", "ring"),
)
RULES: dict[str, Rule] = {rule.id: rule for rule in _ALL}

NOT_RULES = {
    "assert": "a node stopped itself: one of its own asserts, or an error that must not happen",
    "crash": "an error reached nobody",
}
"""What else a run may be failed by."""

_WORDS = {
    "oracle": "runtime ring: disks and wire",
    "ring": "engine ring",
    "history": "judges of client histories",
    "ending": "end of every run",
}


def table() -> str:
    """The rules as a table in Markdown."""
    lines = ["| rule | holds | looked at by |", "|---|---|---|"]
    for rule in RULES.values():
        by = ", ".join(_WORDS.get(who, f"`{who}`") for who in rule.by)
        lines.append(f"| {rule.id} | {rule.title} | {by} |")
    return "\n".join(lines) + "\n"
