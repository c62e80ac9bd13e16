"""What one seed came to: the same record for every ring, so that tools need not know which ring it was."""

from __future__ import annotations

import re

import msgspec

_CHECK = re.compile(r"([SV]\d+)\b")


class Violation(msgspec.Struct, frozen=True):
    """``check`` names what noticed: an invariant (S8, V1), ``assert`` (the product stopped itself), ``crash`` (any
    other exception) or ``linearizable``."""

    check: str
    message: str
    at_s: float = 0.0

    @property
    def is_of_safety(self) -> bool:
        """Something wrong happened; else something right did not."""
        return self.check.startswith("S") or self.check == "assert"

    @classmethod
    def of(cls, error: BaseException, at_s: float) -> Violation:
        """The check whose name begins the message, or the kind of error it is."""
        text = str(error) or type(error).__name__
        found = _CHECK.match(text)
        if found is not None:
            return cls(found[1], text, at_s)
        kind = "assert" if isinstance(error, AssertionError) else "crash"
        return cls(kind, text if kind == "assert" else f"{type(error).__name__}: {text}", at_s)


class SeedReport(msgspec.Struct):
    """One run. ``operations`` are client operations whose history was judged; ``undecided`` ones are no pass."""

    ring: str
    seed: int
    profile: str
    violation: Violation | None
    trace_hash: str
    coverage: dict[str, int]
    simulated_s: float
    steps: int
    actions: int
    operations: int = 0
    undecided: int = 0

    @property
    def is_passed(self) -> bool:
        return self.violation is None and not self.undecided
