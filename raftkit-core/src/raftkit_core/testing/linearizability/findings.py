"""What a checker says: findings, and one verdict for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec

from raftkit_core.testing.linearizability.history import Operation

Verdict = Literal["linearizable", "violation", "undecided"]
"""``undecided``: a search ran out of its budget. That is not a pass."""


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that cannot be: which check saw it, at which key, and the operations that show it."""

    check: str
    key: str
    message: str
    operations: tuple[Operation, ...] = ()

    def __str__(self) -> str:
        return "\n".join([f"{self.check}: {self.message}", *(f"    {operation}" for operation in self.operations)])


class Report(msgspec.Struct, kw_only=True):
    """The judgement of a history."""

    verdict: Verdict = "linearizable"
    findings: list[Finding] = []
    undecided: list[str] = []
    """Keys whose search ran out of its budget."""
    operations: int = 0
    outcomes: dict[str, int] = {}
    keys: int = 0
    decided_by: dict[str, int] = {}
    """How many keys each check decided."""
    steps: int = 0
    """What the searches took."""

    @property
    def is_pass(self) -> bool:
        return self.verdict == "linearizable"

    def __str__(self) -> str:
        counts = ", ".join(f"{count} {name}" for name, count in sorted(self.outcomes.items()))
        lines = [f"{self.verdict}: {self.operations} operations on {self.keys} keys ({counts})"]
        lines += [str(finding) for finding in self.findings]
        lines += [f"undecided: the search of key {key} ran out of its budget" for key in self.undecided]
        return "\n".join(lines)


def finding(check: str, key: str, message: str, *operations: Operation) -> Finding:
    return Finding(check=check, key=key, message=message, operations=operations)


def by_key(operations: Sequence[Operation]) -> dict[str, list[Operation]]:
    """A history of many keys is linearizable if and only if each of its keys is."""
    keys: dict[str, list[Operation]] = {}
    for operation in operations:
        keys.setdefault(operation.key, []).append(operation)
    return keys
