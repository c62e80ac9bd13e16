"""A history against the final log: nothing acknowledged is lost, nothing refused for certain is there, nothing is there
twice, and what a session did once it did once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from msgspec import UNSET

from raftkit_core.testing.linearizability.findings import Finding, finding
from raftkit_core.testing.linearizability.history import DurableWrite, Operation
from raftkit_core.testing.linearizability.settling import Signature, each_once, signature

CHECK = "durability"
SESSIONS = "sessions"


def check_durability(operations: Sequence[Operation], durable: Sequence[DurableWrite]) -> list[Finding]:
    """``durable`` is the whole committed log, from its beginning (what was purged included)."""
    return [*_lost(operations, durable), *_missing(operations, durable), *_unwanted(operations, durable)]


def _lost(operations: Sequence[Operation], durable: Sequence[DurableWrite]) -> list[Finding]:
    log = {entry.index: entry for entry in durable}
    findings = []
    for operation in operations:
        if operation.outcome != "ok" or operation.kind == "get" or operation.revision is UNSET:
            continue
        entry = log.get(operation.revision)
        if entry is None:
            message = f"an acknowledged write is lost: index {operation.revision} is not in the final log"
            findings.append(finding(CHECK, operation.key, message, operation))
        elif signature(entry) != signature(operation):
            message = f"an acknowledged write is lost: the final log has {_shown(entry)} at {operation.revision}"
            findings.append(finding(CHECK, operation.key, message, operation))
    return findings


def _missing(operations: Sequence[Operation], durable: Sequence[DurableWrite]) -> list[Finding]:
    """Answers that name no place, refusals among them: each must be of some entry, even if nobody knows which."""
    answered = [o for o in operations if o.kind != "get" and o.outcome in ("ok", "refused")]
    named = {o.revision for o in answered if o.revision is not UNSET and o.changed}
    left = Counter(signature(entry) for entry in durable if entry.index not in named)
    findings = []
    for operation in answered:
        if operation.revision is not UNSET:
            continue
        left[signature(operation)] -= 1
        if left[signature(operation)] < 0:
            message = "an acknowledged write is lost: no entry of the final log is left that could be its own"
            findings.append(finding(CHECK, operation.key, message, operation))
    return findings


def _unwanted(operations: Sequence[Operation], durable: Sequence[DurableWrite]) -> list[Finding]:
    """More entries of one kind than calls that may have made them. What a session repeats counts once."""
    writers = [operation for operation in operations if operation.kind != "get"]
    allowed = Counter(signature(operation) for operation in writers if operation.outcome != "failed")
    failed = {signature(operation): operation for operation in writers if operation.outcome == "failed"}
    called = set(allowed) | set(failed)
    found: Counter[Signature] = Counter()  # of this history's calls: what others wrote is not its business
    for entry in each_once(durable):
        if signature(entry) in called:
            found[signature(entry)] += 1
    findings = []
    for what, count in found.items():
        if count > allowed[what]:
            shown = [operation for operation in writers if signature(operation) == what]
            if allowed[what] == 0:
                message = "a write that failed for certain is in the final log"
            else:
                message = f"the final log has {count} of {allowed[what]} writes"
            findings.append(finding(CHECK, what[1], message, *shown))
    return findings


def _shown(entry: DurableWrite) -> str:
    value = "" if entry.value is UNSET else f"={entry.value!r}"
    return f"{entry.kind} {entry.key}{value}"


def check_sessions(operations: Sequence[Operation], durable: Sequence[DurableWrite] | None = None) -> list[Finding]:
    """One (session, serial) is one command with one result, however often it was sent."""
    findings = []
    first: dict[tuple[int, int], Operation] = {}
    for operation in operations:
        if not operation.session or operation.kind == "get":
            continue
        identity = (operation.session, operation.serial)
        known = first.setdefault(identity, operation)
        if signature(known) != signature(operation):
            message = f"serial {operation.serial} of session {operation.session} is two commands"
            findings.append(finding(SESSIONS, operation.key, message, known, operation))
        elif known.outcome != "ok":
            first[identity] = operation if operation.outcome == "ok" else known
        elif operation.outcome == "ok" and _result(known) != _result(operation):
            message = f"serial {operation.serial} of session {operation.session} took effect twice"
            findings.append(finding(SESSIONS, operation.key, message, known, operation))
    commands: dict[tuple[int, int], DurableWrite] = {}
    for entry in durable or ():
        if entry.session:
            known_entry = commands.setdefault((entry.session, entry.serial), entry)
            if signature(known_entry) != signature(entry):
                message = f"serial {entry.serial} of session {entry.session} is {_shown(known_entry)}, {_shown(entry)}"
                findings.append(finding(SESSIONS, entry.key, message))
    return findings


def _result(operation: Operation) -> tuple[object, ...]:
    return (operation.revision, operation.previous_revision, operation.changed)
