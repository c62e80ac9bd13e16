"""What happened in one run: a hash over every event, the last few of them in words, and counts of what was seen."""

from __future__ import annotations

import hashlib
from collections import Counter, deque
from collections.abc import Callable

RECENT = 400
"""Events kept for people; the hash covers all."""


class Trace:
    """Events of one run, in order. ``now`` gives virtual seconds."""

    def __init__(self, now: Callable[[], float] = lambda: 0.0) -> None:
        self.now = now
        self.steps = 0
        self.coverage: Counter[str] = Counter()
        self.recent: deque[tuple[float, str, str, object]] = deque(maxlen=RECENT)
        self._hash = hashlib.sha256()

    def event(self, kind: str, node: str, detail: object = "", stamp: object = None) -> None:
        """``stamp`` (None: ``detail``) goes into the hash and must print alike in every process: no addresses, no
        sets. ``detail`` is for people, and formatted only if somebody looks."""
        now = self.now()
        self.steps += 1
        self.recent.append((now, kind, node, detail))
        self._hash.update(f"{now:.9f} {kind} {node} {detail if stamp is None else stamp}\n".encode())

    def seen(self, what: str, count: int = 1) -> None:
        """``what`` happened: coverage, reported by the run."""
        self.coverage[what] += count

    @property
    def hash(self) -> str:
        return self._hash.hexdigest()[:32]

    def tail(self, count: int = 60) -> str:
        """The last events in words."""
        return "\n".join(
            f"{at:10.4f} {kind:<10} {node:<12} {detail}" for at, kind, node, detail in list(self.recent)[-count:]
        )
