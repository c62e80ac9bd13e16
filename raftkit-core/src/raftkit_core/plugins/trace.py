"""What plugins do while they are loaded, step by step: for ``RAFTKIT_TRACE_PLUGINS`` and ``raftkit plugins trace``."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import msgspec

TRACE_VARIABLE = "RAFTKIT_TRACE_PLUGINS"


class TraceStep(msgspec.Struct):
    """An import or a hook call. ``result`` says what came of it, ``error`` what it raised."""

    plugin: str
    step: str
    seconds: float = 0.0
    result: str = ""
    error: str | None = None

    def gave(self, registry: Any, results: Sequence[Any]) -> None:
        """Take note of what a hook registered, or gave back."""
        added = [f"{known.kind}:{known.scheme}" for known in getattr(registry, "registrations", ())]
        self.result = ", ".join(added) if registry is not None else ", ".join(map(repr, results))

    def __str__(self) -> str:
        told = f"raised {self.error}" if self.error is not None else self.result or "-"
        return f"{self.plugin}: {self.step} -> {told} ({self.seconds * 1000:.1f} ms)"


class Trace:
    """Tells ``told`` of every step as it ends. Without one it does nothing."""

    def __init__(self, told: Callable[[TraceStep], None] | None = None) -> None:
        self._told = told

    @contextmanager
    def step(self, plugin: str, step: str) -> Iterator[TraceStep]:
        """One step; what it raises goes on."""
        made = TraceStep(plugin, step)
        began = time.perf_counter()
        try:
            yield made
        except BaseException as error:
            made.error = f"{type(error).__name__}: {error}"
            raise
        finally:
            if self._told is not None:
                made.seconds = time.perf_counter() - began
                self._told(made)


def trace_to_stderr(step: TraceStep) -> None:
    """What ``RAFTKIT_TRACE_PLUGINS=1`` does."""
    print(f"raftkit plugins: {step}", file=sys.stderr)
