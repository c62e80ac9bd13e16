"""The one door out of the engine: a queue of commands."""

from __future__ import annotations

from raftkit_core.engine.commands import Command


class EngineOutput:
    """Commands in the order they are to be carried out."""

    __slots__ = ("_queue",)

    def __init__(self) -> None:
        self._queue: list[Command] = []

    def push(self, command: Command) -> None:
        self._queue.append(command)

    def take(self) -> list[Command]:
        """Everything emitted since the last call."""
        queue = self._queue
        if not queue:
            return []
        self._queue = []
        return queue
