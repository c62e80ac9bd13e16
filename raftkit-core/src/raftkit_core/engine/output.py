"""The way out of the engine: handlers push commands, the caller takes them."""

from __future__ import annotations

from collections.abc import Callable

from raftkit_core.engine.commands import Command


class EngineOutput:
    """Commands in the order they are to be carried out."""

    __slots__ = ("push", "queue")

    def __init__(self) -> None:
        self.queue: list[Command] = []
        self.push: Callable[[Command], None] = self.queue.append
        """Emit a command: the list's own method, for it is called a dozen times for every write."""

    def take(self) -> list[Command]:
        """Everything emitted since the last call."""
        queue = self.queue
        if not queue:
            return []
        taken = queue.copy()
        queue.clear()
        return taken
