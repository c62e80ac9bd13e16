"""What a soak run has proved so far: one JSON line per round, so that a stopped run goes on where it was."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

SOAK_DIR = Path(os.environ.get("RAFTKIT_SOAK_DIR", ".soak")).resolve()
"""Where ledgers are kept: ``RAFTKIT_SOAK_DIR``, or ``.soak`` in the working directory. Remove it to begin anew."""


class Ledger:
    """Rounds of one suite, appended and flushed one by one."""

    def __init__(self, name: str) -> None:
        SOAK_DIR.mkdir(parents=True, exist_ok=True)
        self._path = SOAK_DIR / f"{name}.jsonl"
        self.rounds: list[dict[str, Any]] = []
        if self._path.exists():
            for line in self._path.read_text().splitlines():
                self.rounds.append(json.loads(line))
        if self.rounds:
            say(f"{name}: going on after {len(self.rounds)} rounds of an earlier run ({self._path})")

    def add(self, entry: dict[str, Any]) -> None:
        self.rounds.append(entry)
        with self._path.open("a") as file:
            file.write(json.dumps(entry) + "\n")
            file.flush()
            os.fsync(file.fileno())


def say(text: str) -> None:
    """Print at once; pytest shows it with ``-s``."""
    print(text, flush=True)


def percentile(values: list[float], share: float) -> float:
    """The value below which ``share`` of all are (nearest rank)."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
