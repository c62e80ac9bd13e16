"""A state machine on which every effect shows: it adds up, so what was done twice, or not, is seen in the total."""

from __future__ import annotations

import msgspec

from raftkit_core.errors import CommandRejected
from raftkit_core.state_machine.simple import SimpleStateMachine


class Add(msgspec.Struct, frozen=True, tag="add"):
    """Raise the total by ``amount``, which must not be negative; the result is the new total."""

    amount: int


class Counter(SimpleStateMachine):
    """``counter/1``. From a URL: ``import:raftkit_core.testing.counting:Counter``."""

    name = "counter/1"
    command_type = Add
    result_type = int
    state_type = int

    def __init__(self) -> None:
        self.value = 0

    def apply(self, command: Add) -> int:
        if command.amount < 0:
            raise CommandRejected("it only grows")
        self.value += command.amount
        return self.value

    def get_state(self) -> int:
        return self.value

    def set_state(self, state: int) -> None:
        self.value = state
