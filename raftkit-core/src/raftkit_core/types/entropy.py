"""Randomness as the engine sees it: an argument, never an import."""

from __future__ import annotations

from typing import Protocol


class Entropy(Protocol):
    """What the engine draws election timeouts from; ``random.Random`` fits."""

    def random(self) -> float:
        """A float in [0, 1)."""
        ...
